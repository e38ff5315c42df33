"""The sub-commands of `lora-exp`, one a file: the parser of its arguments beside what it runs.

- `arguments`: separates overrides of settings from other arguments, for all commands.
- `ui`: serve MLflow's UI.
- `export`: write an adapter for PEFT (`export`), or merged weights (`merge`).
- `import_peft`: evaluate an adapter that PEFT trained.
- `register`: put a classifier into MLflow's model registry.
- `report`: write a report again, or one report of several sweeps.
- `reproduce`: make a run again and compare; `stored_run` reads what is stored of it, `differences` compares.
- `resume`: go on with a sweep (`resume`), or record in MLflow what is missing there (`sync`).
- `relocate`: put MLflow's database right after the working folder was moved.
- `store`: list, verify or prune the store.
- `doctor`: check the installation.
"""

# Command -> `module` with a function `main`, or `module:function`, loaded on use. The function takes the arguments
# after the command. It returns the exit code, or the arguments of a run or a sweep to start instead.
COMMANDS = {
    "ui": "ui",
    "export": "export",
    "merge": "export:merge_main",
    "import": "import_peft",
    "register": "register",
    "report": "report",
    "reproduce": "reproduce",
    "resume": "resume",
    "sync": "resume:sync_main",
    "relocate": "relocate",
    "store": "store",
    "doctor": "doctor",
}
