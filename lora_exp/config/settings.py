"""Where runs are made and recorded: settings, none of which changes a number of a result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.executor_settings import ExecutorSettings
from lora_exp.config.fields import allow, integer, is_int, is_name, is_number, is_text
from lora_exp.config.spec import checked
from lora_exp.errors import LoraExpError
from lora_exp.training.halving import Halving

if TYPE_CHECKING:
    import torch

    from lora_exp.executors.remote import Crew
    from lora_exp.training.laboratory import Laboratory

DEVICES = ("auto", "cpu", "cuda", "mps")
TRACKING = ("sqlite", "server", "off")
SAMPLERS = ("tpe", "nsga2", "cmaes", "random", "grid", "qmc")
# Error measures by which jobs are compared, and what a search may minimise.
ERRORS = ("target_error", "forgetting", "both_errors")
OBJECTIVES = (*ERRORS, "parameters")
# Claims of papers that a report can judge; `report.claims.catalogue` has a function for each.
CLAIMS = (
    "rank_saturates",
    "learns_less_forgets_less",
    "rslora_high_rank",
    "lora_plus_faster",
    "pissa_odd_even",
    "replay_price",
)


@dataclass(frozen=True)
class DeviceSettings:
    """`threads` packs train side by side on a CPU; null means one a core."""

    name: str = allow("one of " + ", ".join(DEVICES), lambda v: v in DEVICES, default="auto")
    threads: int | None = allow(
        "null or an integer of at least 1",
        lambda v: v is None or (is_int(v) and v >= 1),
        default=None,
    )


@dataclass(frozen=True)
class TrackingSettings:
    """Where MLflow runs go: a sqlite file, a server, or nowhere."""

    kind: str = allow("one of " + ", ".join(TRACKING), lambda v: v in TRACKING, default="sqlite")
    uri: str = allow("sqlite:///FILE or http://HOST:PORT", is_text, default="sqlite:///mlflow.db")
    artifacts: str = allow("a folder", is_text, default="mlartifacts")
    experiment: str = allow("a name", is_text, default="lora_exp")


@dataclass(frozen=True)
class StoreSettings:
    """Where trained bases and results are kept, and how many GiB of them when a run or a sweep ends."""

    folder: str = allow("a folder", is_text, default="cache/store")
    limit: float | None = allow(
        "null or a number of GiB of at least 0",
        lambda v: v is None or (isinstance(v, int | float) and not isinstance(v, bool) and v >= 0),
        default=None,
    )


@dataclass(frozen=True)
class ReportSettings:
    """Where a sweep's report goes, `folder/name` (that of the sweep when null), and the claim it judges, if any."""

    folder: str = allow("a folder", is_text, default="multirun_reports")
    name: str | None = allow(
        "null or a name without slashes, of at most 200 bytes",
        lambda v: v is None or is_name(v),
        default=None,
    )
    claim: str | None = allow("null or one of " + ", ".join(CLAIMS), lambda v: v is None or v in CLAIMS, default=None)

    def place(self, sweep: str) -> Path:
        """The folder of the report of the sweep of that name."""
        return Path(self.folder).absolute() / (self.name or sweep)


@dataclass(frozen=True)
class SweepSettings:
    """How much memory (GiB) the packs of a sweep may hold at a time (null: half of what is free); only plan?"""

    memory: float | None = allow(
        "null or a number of GiB above 0",
        lambda v: v is None or (is_number(v) and v > 0),
        default=None,
    )
    plan: bool = allow("true or false", lambda v: isinstance(v, bool), default=False)


@dataclass(frozen=True)
class HalvingSettings:
    """Successive halving: one job in `eta` goes on at each rung, the first after `first` steps; null: all run on."""

    eta: float | None = allow("null or a number above 1", lambda v: v is None or (is_number(v) and v > 1), default=None)
    first: int = allow("an integer of at least 1", lambda v: is_int(v) and v >= 1, default=10)
    objective: str = allow("one of " + ", ".join(ERRORS), lambda v: v in ERRORS, default="both_errors")


@dataclass(frozen=True)
class SearchSettings:
    """How `hydra/sweeper=optuna` searches, and what it makes small: `objectives`, on the validation images.

    Trials are asked `batch` at a time: the next batch knows what came of those before.
    """

    trials: int = integer(1, default=40)
    batch: int | None = allow(
        "null or an integer of at least 1", lambda v: v is None or (is_int(v) and v >= 1), default=None
    )
    sampler: str = allow("one of " + ", ".join(SAMPLERS), lambda v: v in SAMPLERS, default="tpe")
    seed: int = integer(0, default=0)
    objectives: tuple[str, ...] = allow(
        "a list of one or several of " + ", ".join(OBJECTIVES),
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and set(v) <= set(OBJECTIVES) and len(set(v)) == len(v),
        default=("both_errors",),
    )


@dataclass(frozen=True)
class DataFolder:
    """Where data sets lie."""

    root: str = allow("a folder", is_text, default="cache/data")


# Top-level config group -> dataclass of its settings.
SETTINGS: dict[str, type[Any]] = {
    "device": DeviceSettings,
    "tracking": TrackingSettings,
    "store": StoreSettings,
    "report": ReportSettings,
    "sweep": SweepSettings,
    "halving": HalvingSettings,
    "search": SearchSettings,
    "executor": ExecutorSettings,
}


@dataclass(frozen=True)
class Settings:
    """All settings of a config, checked."""

    device: DeviceSettings
    tracking: TrackingSettings
    store: StoreSettings
    report: ReportSettings
    sweep: SweepSettings
    halving: HalvingSettings
    search: SearchSettings
    executor: ExecutorSettings
    data: DataFolder

    def laboratory(self) -> Laboratory:
        """The place where runs are made.

        Raises LoraExpError for an absent device and LoraExpError for a folder that can't be written to.
        """
        from lora_exp.storage.store import Store
        from lora_exp.training.laboratory import Laboratory

        device = torch_device(self.device.name)
        store = Store(Path(self.store.folder).absolute())
        store.prepare()
        root, how = Path(self.data.root).absolute(), self.halving
        halving = None if how.eta is None else Halving(how.eta, how.first, how.objective)
        return Laboratory(store, root, device, self._threads(device), self._memory(device), self.crew(device), halving)

    def crew(self, device: torch.device) -> Crew | None:
        """Who trains packs elsewhere, if anybody is to; nothing is started yet."""
        logs = Path(self.store.folder).absolute().parent / "slurm"
        return self.executor.crew(device, self._threads(device), logs)

    def _threads(self, device: torch.device) -> int:
        """One pack keeps an accelerator busy; a CPU runs one pack a thread."""
        return (self.device.threads or os.cpu_count() or 1) if device.type == "cpu" else 1

    def _memory(self, device: torch.device) -> int:
        if self.sweep.memory is not None:
            return int(self.sweep.memory * 2**30)
        if device.type == "cuda":
            import torch

            return torch.cuda.mem_get_info(device)[0] // 2
        import psutil

        return int(psutil.virtual_memory().available) // 2


def settings_from(config: Mapping[str, Any]) -> Settings:
    """The settings of a resolved config.

    Raises LoraExpError with one line that names key, value and what is allowed.
    """
    # A config that was saved before a group was thought of has its defaults.
    given = {group: config.get(group, {}) for group in SETTINGS}
    for group, values in given.items():
        if not isinstance(values, Mapping):
            raise LoraExpError(f"{group}: must be a config group")
    parts = {group: checked(cls, group, given[group]) for group, cls in SETTINGS.items()}
    parts["executor"].check()
    folder = {key: value for key, value in config["data"].items() if key == "root"}
    return Settings(**parts, data=checked(DataFolder, "data", folder))


def torch_device(name: str) -> torch.device:
    """The device of that name; `auto` takes CUDA, then MPS, then the CPU.

    Raises LoraExpError when the machine has no such device.
    """
    import torch

    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise LoraExpError(f"device={name}: this machine has none; allowed here: auto, {', '.join(present)}")
    return torch.device(name)
