"""`hydra/launcher=packed`: jobs as Hydra runs them, but trained in packs."""

# No `from __future__ import annotations`: Hydra's scanner executes this file without an entry in sys.modules, where
# dataclasses would look names up.

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class PackedLauncherConf:
    """No keys: `sweep.memory` and `device.threads` of the application's config limit the packs."""

    _target_: str = "hydra_plugins.lora_exp_launcher.packed_launcher.PackedLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="lora_exp")


class PackedLauncher(Launcher):
    """Pass all jobs to `lora_exp.sweeps.launcher` at once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the arguments for `launch`."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every job; see `lora_exp.sweeps.launcher.launch`."""
        from lora_exp.sweeps.launcher import launch

        return launch(self.hydra_context, self.task_function, self.config, job_overrides, initial_job_idx)
