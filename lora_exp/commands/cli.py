"""The sub-commands of `lora-exp`; each takes its arguments and returns an exit code."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_exp.commands.resume import sync
from lora_exp.config.compose import compose_settings


def ui(arguments: Sequence[str]) -> int:
    """Open the MLflow UI on the store that runs are recorded in."""
    parser = argparse.ArgumentParser(prog="lora-exp ui", description=ui.__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default 5000)")
    parser.add_argument("overrides", nargs="*", help="such as tracking.uri=sqlite:///other.db")
    options = parser.parse_args(arguments)
    from lora_exp.tracking.connection import serve_ui

    return serve_ui(compose_settings(options.overrides).tracking, options.port)


def export(arguments: Sequence[str]) -> int:
    """Write the adapter of a run as a folder that PEFT loads, with its base beside it."""
    parser = argparse.ArgumentParser(prog="lora-exp export", description=export.__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or of one job of a sweep")
    parser.add_argument("--format", choices=["peft"], default="peft", help="of the folder that is written")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default RUN/peft)")
    parser.add_argument("overrides", nargs="*", default=[], help="where things are now, such as store.folder=elsewhere")
    options = parser.parse_intermixed_args(arguments)
    from lora_exp.commands.export import export_peft

    print(export_peft(options.run, options.out, options.overrides))
    return 0


def import_(arguments: Sequence[str]) -> int:
    """Judge an adapter that PEFT trained (LoRA, rsLoRA or DoRA) on a base, as one of ours."""
    parser = argparse.ArgumentParser(prog="lora-exp import", description=import_.__doc__)
    parser.add_argument("folder", type=Path, help="that PEFT's save_pretrained wrote")
    parser.add_argument("--into", type=Path, metavar="SWEEP", help="folder of a sweep: add it there, as one more job")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="which base and target digit, such as model=tiny finetune.digit=9"
    )
    options = parser.parse_intermixed_args(arguments)
    from lora_exp.commands.import_peft import import_peft

    print("\n".join(import_peft(options.folder, options.into, options.overrides)))
    return 0


def merge(arguments: Sequence[str]) -> int:
    """Write the classifier of a run, its adapter made part of the weights, as a state dict in safetensors."""
    parser = argparse.ArgumentParser(prog="lora-exp merge", description=merge.__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or of one job of a sweep")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to (default RUN/merged.safetensors)")
    parser.add_argument("overrides", nargs="*", default=[], help="where things are now, such as store.folder=elsewhere")
    options = parser.parse_intermixed_args(arguments)
    from lora_exp.commands import export as exchange

    print(exchange.merge(options.run, options.out, options.overrides))
    return 0


def report(arguments: Sequence[str]) -> int:
    """Write the report of a sweep again, or one report of several sweeps or of an MLflow experiment."""
    parser = argparse.ArgumentParser(prog="lora-exp report", description=report.__doc__)
    parser.add_argument("folder", type=Path, nargs="*", help="of a sweep or of a run")
    parser.add_argument("--experiment", metavar="NAME", help="an MLflow experiment instead of folders")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default multirun_reports/NAME)")
    given, overrides = _apart(arguments)
    options = parser.parse_args(given)
    if bool(options.folder) == (options.experiment is not None):
        parser.error("give folders of sweeps, or --experiment NAME")
    from lora_exp.commands import report as joined_report

    if options.experiment is None:
        out = joined_report.report(options.folder, options.out, overrides)
    else:
        out = joined_report.experiment_report(options.experiment, options.out, overrides)
    print(f"report   {out / 'report.html'}\n         {out / 'report.md'}")
    return 0


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments, and the overrides of settings (GROUP.KEY=VALUE) among them."""
    from lora_exp.config.settings import SETTINGS

    groups = (*SETTINGS, "data")
    overrides = [one for one in arguments if "=" in one and one.partition("=")[0].partition(".")[0] in groups]
    return [one for one in arguments if one not in overrides], overrides


def register(arguments: Sequence[str]) -> int:
    """Register the classifier of a run, its adapter made part of the weights, in MLflow's model registry."""
    parser = argparse.ArgumentParser(prog="lora-exp register", description=register.__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or of one job of a sweep")
    parser.add_argument("--name", help="of the model, which gets one more version (default DATA-classifier)")
    parser.add_argument("overrides", nargs="*", default=[], help="where things are now, such as store.folder=elsewhere")
    options = parser.parse_intermixed_args(arguments)
    from lora_exp.tracking import registry

    print("\n".join(registry.register(options.run, options.name, options.overrides)))
    return 0


def reproduce(arguments: Sequence[str]) -> int:
    """Make runs again from nothing, and compare every number and tensor with what was kept of them."""
    parser = argparse.ArgumentParser(prog="lora-exp reproduce", description=reproduce.__doc__)
    what = "folder of a run or of a job, MLflow run id, SWEEP:JOB, or a report's summary.csv:JOB"
    parser.add_argument("run", nargs="+", help=f"{what}; tracking.uri=sqlite:///other.db says where MLflow runs are")
    given = parser.parse_args(arguments).run
    tracking = [argument for argument in given if argument.startswith("tracking") and "=" in argument]
    from lora_exp.commands import reproduce as again

    return again.reproduce([run for run in given if run not in tracking], tracking)


def store(arguments: Sequence[str]) -> int:
    """List, verify or prune the store of bases and results."""
    parser = argparse.ArgumentParser(prog="lora-exp store", description=store.__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="every entry with its size, age and last use, and the totals")
    actions.add_parser("verify", help="try every checksum; what is damaged is set aside, and the exit code 1")
    pruning = actions.add_parser("prune", help="remove what was used longest ago and no running process uses")
    pruning.add_argument("--older-than", type=_amount, metavar="DAYS", help="what was not used for so long")
    pruning.add_argument("--to-size", type=_amount, metavar="GIB", help="until no more than this is left")
    pruning.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    for action in actions.choices.values():
        action.add_argument("overrides", nargs="*", default=[], help="such as store.folder=elsewhere")
    options = parser.parse_args(arguments)
    from lora_exp.commands.store import list_lines, prune_lines, verify_lines
    from lora_exp.storage.pruning import GIB, prune
    from lora_exp.storage.store import Store

    own = Store(Path(compose_settings(options.overrides).store.folder).absolute())
    if options.action == "prune" and options.older_than is None and options.to_size is None:
        pruning.error("say what is to go: --older-than DAYS, --to-size GIB, or both")
    whole = True
    if options.action == "list":
        lines = list_lines(own)
    elif options.action == "verify":
        lines, whole = verify_lines(own)
    else:
        to_size = None if options.to_size is None else options.to_size * GIB
        removed = prune(own, options.older_than, to_size, dry_run=options.dry_run)
        lines = prune_lines(removed, options.dry_run)
    print("\n".join(lines))
    return 0 if whole else 1


def doctor(arguments: Sequence[str]) -> int:
    """Look whether everything that runs need is in order; what is not is said, with how to mend it."""
    parser = argparse.ArgumentParser(prog="lora-exp doctor", description=doctor.__doc__)
    parser.add_argument("--full", action="store_true", help="try every checksum of the store (reads all of it)")
    parser.add_argument("overrides", nargs="*", default=[], help="such as store.folder=elsewhere tracking=server")
    options = parser.parse_intermixed_args(arguments)
    from lora_exp.commands.doctor import examine

    return examine(options.overrides, options.full)


def _amount(text: str) -> float:
    """A number of at least 0. Raises ArgumentTypeError for anything else."""
    with contextlib.suppress(ValueError):
        if 0 <= (amount := float(text)) < float("inf"):
            return amount
    raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 0")


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "ui": ui,
    "export": export,
    "import": import_,
    "merge": merge,
    "report": report,
    "register": register,
    "reproduce": reproduce,
    "sync": sync,
    "store": store,
    "doctor": doctor,
}
