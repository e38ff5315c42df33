"""The command line: `lora-exp OVERRIDES` is the Hydra application, `lora-exp ui` and others are sub-commands."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import sys
import time
from pathlib import Path

from lora_exp import __version__
from lora_exp.child import INTERRUPTIONS
from lora_exp.commands import COMMANDS
from lora_exp.config.fields import is_text
from lora_exp.errors import LoraExpError, closest, did_you_mean, explained
from lora_exp.sweeps.recording import recording

# Commands with these compute nothing, and runs with those record nothing.
HELP = {"--help", "-h"}
ASKING = HELP | {"--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
PLANNING = "sweep.plan=true"
# Flags that take no value: Hydra wants the overrides side by side, so these may not stand among them.
FLAGS = {"-m", "--multirun", "-r", "--run", "--resolve"}
NO_TRACKING = {"tracking=off", "tracking.kind=off"}
SECONDS_TO_END = 10.0


def main() -> None:
    """Entry point. Exit codes: 2, with one line, for bad input; 1 when jobs failed; 130 when interrupted."""
    _mend_streams()
    # Libraries create a million objects at import and keep them; collecting among them took two seconds.
    gc.set_threshold(50_000)
    interruptions = _Interruptions()
    for number in INTERRUPTIONS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, interruptions)

    try:
        code = _do(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        _stop("the reader of the output has closed it; finished jobs are kept", 1)
    except (LoraExpError, OSError) as error:
        _stop(str(explained(error)), explained(error).exit_code)
    except MemoryError:
        _stop("there is not enough memory; finished jobs are kept; sweep.memory bounds what packs use", 1)
    except ImportError as error:
        _stop(f"a library can't be loaded ({error}); lora-exp doctor says what is wrong", 1)
    except KeyboardInterrupt:
        _stop("interrupted; finished jobs are kept, and the same command takes them from the store", 130)
    finally:
        gc.freeze()  # no search for garbage at exit
        interruptions.is_ending = True


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
    first = arguments[0] if arguments else "help"
    if first in COMMANDS:
        outcome = COMMANDS[first].run(arguments[1:])
        return outcome if isinstance(outcome, int) else _run(outcome)
    if "--version" in arguments:
        print(f"lora-exp {__version__}")
        return 0
    if "=" not in first and not first.startswith(("-", "~")):
        meant = did_you_mean(closest(first, COMMANDS)) or "; lora-exp help lists the commands"
        raise LoraExpError(f"{first or ascii(first)}: must be a command, or an override KEY=VALUE{meant}")
    return _run(arguments)


def _run(arguments: list[str]) -> int:
    """Run the Hydra application; the exit code."""
    given = list(map(_for_hydra, arguments))
    # Hydra's own parser reads sys.argv and knows only its own flags.
    sys.argv[1:] = sorted(given, key=lambda argument: argument not in FLAGS)
    if HELP & set(given):
        from lora_exp.commands.help import ABOUT, command_lines

        print(f"{ABOUT}\n{command_lines()}\n")
    elif not any(argument.partition("=")[0] in ASKING for argument in given):
        if PLANNING not in given or sys.stdout.isatty():  # else the plan alone is asked for
            with contextlib.suppress(OSError):
                print(f"{time.strftime('%H:%M:%S')} starting; libraries take seconds to load", flush=True)
        if PLANNING not in given:
            # It imports MLflow while this process imports Hydra and torch.
            recording().start(with_mlflow=not NO_TRACKING & set(given))
    from lora_exp.sweeps.application import run_application

    run_application()
    return 0


def _for_hydra(argument: str) -> str:
    """An argument in a form that Hydra knows: it has no --plan, and takes no null as an option on a command line."""
    group, _, options = argument.partition("=")
    if group == "experiment":
        return "experiment=" + ",".join("none" if option == "null" else option for option in options.split(","))
    return PLANNING if argument == "--plan" else argument


class _Interruptions:
    """What Ctrl-C, SIGTERM and the end of the terminal do: the first ends the process cleanly.

    Further ones wait for the clean end, and after SECONDS_TO_END they end the process at once. Python, and libraries,
    swallow an exception here and there: so a timer raises the first one again until it is being handled.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self.is_ending = False  # nothing can catch what is raised at the exit

    def __call__(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            signal.signal(signal.SIGALRM, self)
            signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
        if now - self._first > SECONDS_TO_END and number != signal.SIGALRM:
            os._exit(130)
        handled = sys.exc_info()[1]
        while handled is not None and not isinstance(handled, KeyboardInterrupt):
            handled = handled.__context__
        if handled is None and not self.is_ending:
            raise KeyboardInterrupt


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
        # A line may hold what a file from elsewhere says, which must not control the terminal.
        plain = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in " ".join(line.split()))
        print(f"lora-exp: {plain}", file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at exit, and print an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
