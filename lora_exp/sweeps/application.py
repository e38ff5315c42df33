"""The Hydra application: what `lora-exp` does with overrides and Hydra's flags."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora_exp.config.compose import (
    PRESETS,
    compose_config,
    config_folder,
    error_line,
    one_line_errors,
    read,
    register,
)
from lora_exp.config.hydra_rules import check_overrides
from lora_exp.errors import LoraExpError, closest, did_you_mean


def run_application() -> None:
    """Run the command line in `sys.argv`. Raises LoraExpError for bad input, and JobsFailed when jobs failed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    raised: list[Exception] = []

    def run(config: DictConfig) -> float | None:
        from lora_exp.sweeps import job  # loads torch

        return job.run(config)

    def alone(config: DictConfig) -> None:
        try:
            run(config)
        except Exception as error:  # Hydra would print it
            raised.append(error)

    try:
        given = _given()
        application = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
        if given.help or given.hydra_help or given.cfg or given.info or given.shell_completion:
            with one_line_errors(OSError):
                register()
                check_overrides(given.overrides)
                if given.config_dir is not None:  # whose presets could choose logs that call code
                    compose_config(_arguments(given), given.multirun)
                application(run)()
        else:
            config = compose_config(_arguments(given), given.multirun)
            is_sweep = given.multirun or config.hydra.mode == RunMode.MULTIRUN
            if is_sweep or _is_to_run(config):
                with _mode_is(config.hydra.mode):
                    application(run if is_sweep else alone)()
    except (HydraException, OmegaConfBaseException) as error:
        raise LoraExpError(error_line(error)) from error
    if raised:
        raise raised[0]


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
        known = [flag for action in parser._actions for flag in action.option_strings]
        meant = did_you_mean(closest(unknown[0], [*known, "--plan"])) or "; lora-exp --help lists them"
        if unknown[0].startswith("-"):
            raise LoraExpError(f"{unknown[0]}: no such flag{meant}")
        raise LoraExpError(f"{unknown[0]}: overrides must stand side by side, after the flags")
    for name in ("config_name", "config_path", "experimental_rerun"):
        if getattr(given, name) is not None:
            raise LoraExpError(f"--{name.replace('_', '-')}: can't be chosen; configs are those in {config_folder()}")
    if sum(map(bool, (given.run, given.multirun, given.cfg, given.info, given.shell_completion))) > 1:
        raise LoraExpError("only one of --run, --multirun, --cfg, --info and --shell-completion can be chosen")
    if given.resolve and not (given.cfg or given.help):
        raise LoraExpError("--resolve: needs --cfg or --help")
    return given


def _arguments(given: argparse.Namespace) -> list[str]:
    """The overrides of the command line, and the folder of one's own presets as `compose_config` takes it."""
    return [*([] if given.config_dir is None else [f"{PRESETS}{given.config_dir}"]), *given.overrides]


def _is_to_run(config: DictConfig) -> bool:
    """Check a single run before Hydra makes its folder; False where only its plan is wanted, which is then printed."""
    from lora_exp.sweeps.job import check, open_laboratory

    spec, settings = read(config)
    check([spec], settings)
    if settings.sweep.plan:
        from lora_exp.sweeps.plan import plan_text

        print(plan_text(open_laboratory(settings), [spec]))
    return not settings.sweep.plan


@contextlib.contextmanager
def _mode_is(mode: RunMode | None) -> Iterator[None]:
    """A block in which Hydra does not compose the config once more to find out `hydra.mode`."""
    asked, Hydra.get_mode = Hydra.get_mode, lambda *_, **__: mode
    try:
        yield
    finally:
        Hydra.get_mode = asked
