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
from lora_exp.config.compose import composed, config_folder, one_line, read, refusing, register, without_hydra
from lora_exp.config.fields import is_text
from lora_exp.config.hydra_rules import check_overrides
from lora_exp.errors import LoraExpError
from lora_exp.storage.store import DISK_FULL


def run(config: DictConfig) -> float | None:
    """One job: see `job.py`. Imported here, since it loads torch."""
    from lora_exp.sweeps.job import run_job

    return run_job(config)


def main() -> None:
    """Entry point. Exit code 2 with one line for bad input, 1 when jobs failed, 130 when interrupted."""
    # Hydra then lets errors through, instead of printing them its own way.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _mend_streams()
    # Libraries make a million objects once and keep them: looking through these again and again took two seconds.
    gc.set_threshold(50_000)
    # Whoever ends the process politely gets the same clean end as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    try:
        code = _do(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
    except LoraExpError as error:
        _stop(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _stop(one_line(error), 2)
    except BrokenPipeError:
        _stop("nobody reads the output any more; what was finished is kept", 1)
    except OSError as error:
        _stop(f"{error.filename or 'a file'}: {error.strerror or error}", 1 if error.errno in DISK_FULL else 2)
    except KeyboardInterrupt:
        _stop("interrupted; what was finished is kept; the same command goes on from there", 130)
    finally:
        gc.freeze()  # nor does the end of a process have to look for garbage in them


def _do(arguments: list[str]) -> int:
    """What was asked for; its exit code."""
    for argument in arguments:
        if argument and not is_text(argument):
            raise LoraExpError(f"{argument!a}: holds a control character, or is not Unicode")
    try:
        here = str(Path.cwd())
    except FileNotFoundError as error:
        raise LoraExpError("the working folder is gone") from error
    if not is_text(here):
        raise LoraExpError(f"the working folder {here!a}: its name is no text in this locale, such as LC_ALL=C.UTF-8")
    if arguments[:1] and arguments[0] in COMMANDS:
        module, _, function = COMMANDS[arguments[0]].partition(":")
        command = getattr(importlib.import_module(f"lora_exp.commands.{module}"), function or "main")
        outcome: int | list[str] = command(arguments[1:])
        return outcome if isinstance(outcome, int) else _do(outcome)
    # Hydra's own parser, which reads sys.argv, knows no flags of ours.
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
        with refusing(OSError):
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

    Raises LoraExpError for what it can't read, and for configs from elsewhere: they can run code.
    """
    parser = get_args_parser()
    parser.exit_on_error = parser.allow_abbrev = False
    given = argparse.Namespace()
    with refusing():
        unknown = parser.parse_known_args(namespace=given)[1]
    if unknown:
        raise LoraExpError(
            f"{unknown[0]}: no such option, or an override apart from the others; --help shows what there is"
        )
    for name in ("config_dir", "config_name", "config_path", "experimental_rerun"):
        if getattr(given, name) is not None:
            raise LoraExpError(f"--{name.replace('_', '-')}: can't be chosen; configs are those in {config_folder()}")
    if sum(map(bool, (given.run, given.multirun, given.cfg, given.info, given.shell_completion))) > 1:
        raise LoraExpError("only one of --run, --multirun, --cfg, --info and --shell-completion can be chosen")
    if given.resolve and not (given.cfg or given.help):
        raise LoraExpError("--resolve: goes with --cfg or --help")
    return given


def _is_sweep(overrides: list[str], multirun: bool) -> bool:
    """Whether a sweep is asked for. A run is checked before Hydra makes its folder; a sweep's jobs are in `grid.py`."""
    config = composed(overrides, multirun)
    if multirun or config.hydra.mode == RunMode.MULTIRUN:
        return True
    spec, settings = read(without_hydra(config))
    from lora_exp.sweeps.job import check

    check([spec], settings)
    return False


def _mend_streams() -> None:
    """Standard streams that are closed lead nowhere, and what their encoding lacks is written as escapes."""
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
    except OSError:  # Python would complain of what is left, when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
