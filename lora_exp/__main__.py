"""The command line: `lora-exp [overrides]` is the Hydra application, `lora-exp ui` and others are sub-commands."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import logging
import os
import signal
import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora_exp.commands import COMMANDS
from lora_exp.config.compose import compose_config, config_folder, error_line, one_line_errors, read, register
from lora_exp.config.fields import is_text
from lora_exp.config.hydra_rules import check_overrides
from lora_exp.errors import LoraExpError
from lora_exp.storage.store import DISK_FULL


def run(config: DictConfig) -> float | None:
    """Run one job: see `sweeps/job.py`. Imported here, since it loads torch."""
    from lora_exp.sweeps import job

    return job.run(config)


def main() -> None:
    """Entry point. Exit codes: 2, with one line, for bad input; 1 when jobs failed; 130 when interrupted."""
    # Hydra then raises errors instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _mend_streams()
    # Libraries create a million objects at import and keep them; collecting among them took two seconds.
    gc.set_threshold(50_000)
    # SIGTERM ends the process as cleanly as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    try:
        code = _do(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
    except LoraExpError as error:
        _stop(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _stop(error_line(error), 2)
    except BrokenPipeError:
        _stop("the reader of the output has closed it; finished jobs are kept", 1)
    except OSError as error:
        _stop(f"{error.filename or 'a file'}: {error.strerror or error}", 1 if error.errno in DISK_FULL else 2)
    except KeyboardInterrupt:
        _stop("interrupted; finished jobs are kept, and the same command takes them from the store", 130)
    finally:
        gc.freeze()  # no search for garbage at exit


def _do(arguments: list[str]) -> int:
    """Run a sub-command or the Hydra application; the exit code."""
    for argument in arguments:
        if argument and not is_text(argument):
            raise LoraExpError(f"{argument!a}: contains a control character, or is not Unicode")
    try:
        here = str(Path.cwd())
    except FileNotFoundError as error:
        raise LoraExpError("the working folder does not exist any more") from error
    if not is_text(here):
        raise LoraExpError(f"the working folder {here!a}: its name is not text in this locale; try LC_ALL=C.UTF-8")
    if arguments[:1] and arguments[0] in COMMANDS:
        module, _, function = COMMANDS[arguments[0]].partition(":")
        command = getattr(importlib.import_module(f"lora_exp.commands.{module}"), function or "main")
        outcome: int | list[str] = command(arguments[1:])
        return outcome if isinstance(outcome, int) else _do(outcome)
    # Hydra's own parser reads sys.argv and knows only its own flags.
    sys.argv[1:] = ["sweep.plan=true" if argument == "--plan" else argument for argument in arguments]
    given = _given()
    raised: list[Exception] = []

    def alone(config: DictConfig) -> None:
        try:
            run(config)
        except Exception as error:  # Hydra would print it
            raised.append(error)

    application = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
    if given.help or given.hydra_help or given.cfg or given.info or given.shell_completion:
        with one_line_errors(OSError):
            register()
            check_overrides(given.overrides)
            application(run)()
    else:
        application(run if _is_sweep(given.overrides, given.multirun) else alone)()
    if raised:
        raise raised[0]
    return 0


def _given() -> argparse.Namespace:
    """The command line as Hydra reads it.

    Raises LoraExpError for options that do not exist, and for those that choose another config: it could run code.
    """
    parser = get_args_parser()
    parser.exit_on_error = parser.allow_abbrev = False
    given = argparse.Namespace()
    with one_line_errors():
        unknown = parser.parse_known_args(namespace=given)[1]
    if unknown:
        raise LoraExpError(
            f"{unknown[0]}: no such option, or an override separated from the others; --help lists the options"
        )
    for name in ("config_dir", "config_name", "config_path", "experimental_rerun"):
        if getattr(given, name) is not None:
            raise LoraExpError(f"--{name.replace('_', '-')}: can't be chosen; configs are those in {config_folder()}")
    if sum(map(bool, (given.run, given.multirun, given.cfg, given.info, given.shell_completion))) > 1:
        raise LoraExpError("only one of --run, --multirun, --cfg, --info and --shell-completion can be chosen")
    if given.resolve and not (given.cfg or given.help):
        raise LoraExpError("--resolve: needs --cfg or --help")
    return given


def _is_sweep(overrides: list[str], multirun: bool) -> bool:
    """Whether the command is a sweep. A single run is checked here, before Hydra makes its folder."""
    config = compose_config(overrides, multirun)
    if multirun or config.hydra.mode == RunMode.MULTIRUN:
        return True
    spec, settings = read(config)
    from lora_exp.sweeps.job import check

    check([spec], settings)
    return False


def _mend_streams() -> None:
    """Open closed standard streams on the null device, and escape characters that their encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # a log that can't be written stops nothing


def _stop(line: str, code: int) -> None:
    logging.shutdown()
    with contextlib.suppress(OSError):
        print(f"lora-exp: {' '.join(line.split())}", file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at exit, and print an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
