"""MLflow: runs are recorded once, read back, and registered as models.

- `connection`: opens and checks the tracking store, a sqlite file or a server.
- `relocation`: a working folder that was moved or copied with its database.
- `migration`: a database of an older MLflow.
- `facts`: what is recorded of a run.
- `summary`: what is recorded of a sweep when it ends.
- `run_names`: what a run of a sweep is called.
- `views`: addresses of MLflow's pages, and the tables of sweeps and of runs.
- `recorder`: writes runs.
- `delivery`: records the jobs of a sweep exactly once, also when the store is away for a while.
- `reader`: reads runs back.
- `registry`: puts a classifier into the model registry.
- `served_classifier`: the script that a registered model holds a copy of; it imports nothing of this package.
"""
