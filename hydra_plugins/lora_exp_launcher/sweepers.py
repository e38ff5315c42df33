"""The sweepers: `grid` runs every combination of the swept values, `optuna` searches them, `contest` compares them."""

# No `from __future__ import annotations`: Hydra's scanner executes this file without an entry in sys.modules, where
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
class SweeperConf:
    """`params` maps a key to its swept values, written as on the command line: `adapter.rank: 1,2,4`."""

    _target_: str
    params: dict[str, Any] = field(default_factory=dict)


for name, target in {"grid": "GridSweeper", "optuna": "OptunaSweeper", "contest": "ContestSweeper"}.items():
    node = SweeperConf(f"hydra_plugins.lora_exp_launcher.sweepers.{target}")
    ConfigStore.instance().store(group="hydra/sweeper", name=name, node=node, provider="lora_exp")


class OwnSweeper(Sweeper):
    """What the sweepers share; abstract, since Hydra registers every concrete sweeper that it finds in this file."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Keep the swept values of the config."""
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Let Hydra make the launcher that the config names."""
        from hydra.core.plugins import Plugins

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.given = (hydra_context, config, launcher)

    def overrides(self, arguments: list[str]) -> list[str]:
        """The swept values of the config and of the command line, whose values win."""
        return [f"{key}={values}" for key, values in self.params.items()] + arguments


class GridSweeper(OwnSweeper):
    """Run every combination of the swept values."""

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """See `lora_exp.sweeps.sweep.sweep`."""
        from lora_exp.sweeps.sweep import sweep

        return sweep(*self.given, self.overrides(arguments))


class OptunaSweeper(OwnSweeper):
    """Search the swept values."""

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """See `lora_exp.sweeps.search.search`."""
        from lora_exp.sweeps.search import search

        return search(*self.given, self.overrides(arguments))


class ContestSweeper(OwnSweeper):
    """Compare the swept adapters, each tuned with the same effort."""

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """See `lora_exp.sweeps.contest.contest`."""
        from lora_exp.sweeps.contest import contest

        return contest(*self.given, self.overrides(arguments))
