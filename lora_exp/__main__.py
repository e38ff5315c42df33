"""The command line: `lora-exp [overrides]` is the Hydra application, `lora-exp ui` and others are sub-commands."""

from __future__ import annotations

import errno
import logging
import os
import sys

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora_exp.cli import COMMANDS
from lora_exp.config import config_folder, one_line, read, register, without_hydra
from lora_exp.spec import SpecError
from lora_exp.store import StoreError


def run(config: DictConfig) -> float | None:
    """One job: see `job.py`. Imported here, since it loads torch."""
    from lora_exp.job import run_job

    return run_job(config)


def main() -> None:
    """Entry point. Exit code 2 with one line for bad input, 1 when jobs failed, 130 when interrupted."""
    # Hydra then lets errors through, instead of printing them its own way.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    from lora_exp.job import JobsFailed
    from lora_exp.records import TrackingError

    try:
        if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
            sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
        # Hydra's own parser knows no flags of ours.
        sys.argv = ["sweep.plan=true" if argument == "--plan" else argument for argument in sys.argv]
        register()
        _check_single_run()
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(run)()
    except (SpecError, StoreError, TrackingError) as error:
        _stop(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        _stop(one_line(error), 2)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _stop(f"{error.filename or 'a file'}: {error.strerror or error}", 1 if full else 2)
    except JobsFailed as error:
        _stop(str(error), 1)
    except KeyboardInterrupt:
        _stop("interrupted; what was finished is kept, the same command goes on from there", 130)


def _check_single_run() -> None:
    """Compose and check a single run before Hydra makes a folder for it; a sweep's jobs are checked in `grid.py`.

    Whatever composing raises is bad input, and becomes a SpecError of one line.
    """
    given = get_args_parser().parse_args()
    shows = (given.help, given.hydra_help, given.cfg, given.info, given.shell_completion)
    if any(shows) or given.multirun or given.config_dir or given.config_name or given.config_path:
        return
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra.compose("config", given.overrides, return_hydra_config=True)
        if config.hydra.mode == RunMode.MULTIRUN:
            return
        spec, settings = read(without_hydra(config))
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(one_line(error)) from error
    from lora_exp.job import check

    check([spec], settings)


def _stop(line: str, code: int) -> None:
    logging.shutdown()
    print(f"lora-exp: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
