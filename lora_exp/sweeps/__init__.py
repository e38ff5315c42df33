"""The Hydra application: from overrides to jobs, and around the jobs what every sweep does.

In reading order:

- `application`: from the command line to a run or a sweep
- `job`: one job, from a config to a result in its folder
- `recording`: what is recorded of runs, by two processes beside the launching one
- `records`: what these do: runs in MLflow, figures, the report of a sweep
- `background`: a process that carries out requests
- `job_configs`: the configs of a sweep's jobs, composed quickly
- `launcher`: trains the results of all jobs in packs, then runs each job in its folder
- `sweep`: a grid, and what every sweep does: check the jobs, begin, and have the report written
- `plan`: what a sweep would do, without doing it
- `search`: a search instead of a grid, batch by batch
- `search_space`: Hydra's sweep syntax as the dimensions of a search
- `samplers`: which values the next trial gets
- `contestants`: from overrides to the protocol of a contest
- `arms`: its arms, at equal rank or equal size
- `contest`: its rounds, run as jobs of one sweep
- `study`: the trials, kept in the file `study.db`
"""
