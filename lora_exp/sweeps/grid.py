"""A sweep: every combination of the values is a job."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from lora_exp.config.compose import is_experiment, refusing
from lora_exp.sweeps.job import open_laboratory
from lora_exp.sweeps.sweep import checked, conducted, raise_failed


def sweep(context: HydraContext, config: DictConfig, launcher: Launcher, given: list[str]) -> Sequence[JobReturn]:
    """Launch every combination of the values in `given`, and report whatever came of it.

    Raises LoraExpError, before anything is computed, when one of the jobs is not valid, and JobsFailed at the end
    when jobs failed.
    """
    with refusing(HydraException):
        overrides = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
        [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    if not is_experiment(config):
        return launcher.launch(jobs, initial_job_idx=0)
    specs, settings = checked(context, config, jobs)
    if settings.sweep.plan:
        from lora_exp.sweeps.plan import plan_text

        print(plan_text(open_laboratory(settings), specs))
        return []
    with conducted(config, jobs, specs[0], settings):
        returns = launcher.launch(jobs, initial_job_idx=0)
    raise_failed(returns)
    return returns
