"""The sub-commands of `lora-exp`, one a file: the parser of its arguments beside what it runs.

- `help`: what `lora-exp` alone prints, and its version.
- `glossary`: the terms of reports and messages, a line each.
- `arguments`: separates overrides of settings from other arguments, for all commands.
- `ui`: serve MLflow's UI.
- `export`: write an adapter for PEFT (`export`), or merged weights (`merge`).
- `import_peft`: evaluate an adapter that PEFT trained.
- `register`: put a classifier into MLflow's model registry.
- `report`: write a report again, or one report of several sweeps.
- `reproduce`: make a run again and compare; `stored_run` reads what is stored of it, `differences` compares.
- `contest`: compare adapters, each tuned with the same effort.
- `resume`: go on with a sweep (`resume`), or record in MLflow what is missing there (`sync`).
- `relocate`: put MLflow's database right after the working folder was moved.
- `store`: list, verify or prune the store.
- `doctor`: check the installation.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """A sub-command: `module` with a function `main`, or `module:function`, and what it does in a line.

    The function takes the arguments after the command. It returns the exit code, or the arguments of a run or a sweep
    to start instead.
    """

    place: str
    line: str

    def run(self, arguments: Sequence[str]) -> int | list[str]:
        """Load the module and call its function."""
        module, _, function = self.place.partition(":")
        outcome: int | list[str] = getattr(importlib.import_module(f"{__name__}.{module}"), function or "main")(
            arguments
        )
        return outcome


COMMANDS = {
    "ui": Command("ui", "compare runs in MLflow's pages"),
    "report": Command("report", "write a sweep's report again, or one report of several sweeps"),
    "contest": Command("contest", "compare adapters fairly, each tuned with the same effort"),
    "resume": Command("resume", "go on with a sweep that was interrupted"),
    "reproduce": Command("reproduce", "make a run again, from scratch, and compare every number"),
    "export": Command("export", "write a run's adapter as a folder that PEFT loads"),
    "merge": Command("export:merge_main", "write the weights with the adapter merged into them"),
    "import": Command("import_peft", "judge an adapter that PEFT trained"),
    "register": Command("register", "put a run's classifier into MLflow's model registry"),
    "sync": Command("resume:sync_main", "record in MLflow what is missing there"),
    "relocate": Command("relocate", "put MLflow's database right after the working folder was moved"),
    "store": Command("store", "list, verify or prune the store of bases and results"),
    "doctor": Command("doctor", "check the installation, and say how to mend it"),
    "glossary": Command("glossary", "explain the terms of reports and messages, a line each"),
    "help": Command("help", "print the short help, as lora-exp alone does"),
}
