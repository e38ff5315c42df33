"""Where packs train: on this machine, in worker processes of it, on a Ray cluster or in Slurm jobs.

An executor changes no number. `training.executor` defines what the laboratory expects of one.

In reading order:

- `choice`: from settings to a laboratory with its device and executor
- `local`: forked processes or threads of this process
- `remote`: worker pools: what all of them share
- `processes`: a pool of worker processes on this machine
- `ray`: a pool of workers on a Ray cluster
- `ray_end`: what clears away a Ray of this machine, also when its sweep is killed
- `slurm`: a pool of Slurm jobs
- `worker`: what runs in a worker: one pack, trained from its task
"""
