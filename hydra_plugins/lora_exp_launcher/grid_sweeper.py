"""`hydra/sweeper=grid`: every combination of the swept values, with a report and an MLflow parent at the end."""

# No `from __future__ import annotations`: Hydra's scanner runs this file without a place in sys.modules, where
# dataclasses would look names up.

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    """`params` maps a key to the values it takes, as on the command line: `adapter.rank: 1,2,4`."""

    _target_: str = "hydra_plugins.lora_exp_launcher.grid_sweeper.GridSweeper"
    params: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="lora_exp")


class GridSweeper(Sweeper):
    """Hands the grid to `lora_exp.sweeps.grid`."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Keep the values of the config; Hydra builds the sweeper from `GridSweeperConf`."""
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives, and let it make the launcher that the config names."""
        from hydra.core.plugins import Plugins

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.given = (hydra_context, config, launcher)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Run every combination; see `lora_exp.sweeps.grid.sweep`."""
        from lora_exp.sweeps.grid import sweep

        return sweep(*self.given, [f"{key}={values}" for key, values in self.params.items()] + arguments)
