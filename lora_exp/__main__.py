"""The command line: `lora-exp [overrides]` is the Hydra application, `lora-exp ui` and others are sub-commands."""

from __future__ import annotations

import logging
import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora_exp.cli import COMMANDS
from lora_exp.config import config_folder, one_line, register
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
        register()
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(run)()
    except (SpecError, StoreError, TrackingError) as error:
        _stop(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        _stop(one_line(error), 2)
    except JobsFailed as error:
        _stop(str(error), 1)
    except KeyboardInterrupt:
        _stop("interrupted; what was finished is kept, the same command goes on from there", 130)


def _stop(line: str, code: int) -> None:
    logging.shutdown()
    print(f"lora-exp: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
