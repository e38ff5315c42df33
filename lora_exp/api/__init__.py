"""What `import lora_exp` offers: runs and sweeps from Python, as the command line makes them, and what they say.

In reading order:

- `session`: `run` and `sweep`: the command line's own application, in this process
- `run`: `Run` and `load_run`: a run's numbers, predictions, figures and classifier
- `sweep`: `Sweep` and `load_sweep`: a sweep's table, figures, runs and the best of them
- `listing`: `list_sweeps`: the sweeps in a folder
- `shown`: how runs, sweeps and figures look in a notebook
"""
