"""`hydra/sweeper=optuna`: a search of the swept values, batch by batch, each launched as ordinary jobs."""

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
class OptunaSweeperConf:
    """`params` as of the grid sweeper; how to search is in the config's own `search`."""

    _target_: str = "hydra_plugins.lora_exp_launcher.optuna_sweeper.OptunaSweeper"
    params: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="lora_exp")


class OptunaSweeper(Sweeper):
    """Hands the space to `lora_exp.sweeps.search`."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Keep the values of the config; Hydra builds the sweeper from `OptunaSweeperConf`."""
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives, and let it make the launcher that the config names."""
        from hydra.core.plugins import Plugins

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.given = (hydra_context, config, launcher)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Run the trials of the search; see `lora_exp.sweeps.search.search`."""
        from lora_exp.sweeps.search import search

        return search(*self.given, [f"{key}={values}" for key, values in self.params.items()] + arguments)
