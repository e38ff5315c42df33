"""Settings: where runs train, and where they are stored and recorded. None of them changes a number of a result."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_exp.config.contest import ContestSettings
from lora_exp.config.fields import allow, flag, integer, is_int, is_name, is_number, is_text, one_of, optional, positive
from lora_exp.config.spec import KNOWN_SETS, NOT_SPEC, checked
from lora_exp.errors import LoraExpError

CACHE = "cache/data"
DEVICES = ("auto", "cpu", "cuda", "mps")
TRACKING = ("sqlite", "server", "off")
SAMPLERS = ("tpe", "nsga2", "cmaes", "random", "grid", "qmc")
# Error measures by which jobs are compared, and what a search may minimise.
ERRORS = ("target_error", "forgetting", "both_errors", "balanced_error")
OBJECTIVES = (*ERRORS, "parameters")
# Claims of papers that a report can judge; `report.claims.catalogue` has a function for each.
CLAIMS = (
    *("rank_saturates", "learns_less_forgets_less", "rslora_high_rank"),
    *("lora_plus_faster", "pissa_odd_even", "replay_price", "threshold_or_learning"),
)
# Executor -> the keys that it uses.
EXECUTORS = {
    "local": (),
    "processes": ("workers",),
    "ray": ("workers", "cpus", "gpus", "memory", "address"),
    "slurm": ("workers", "cpus", "gpus", "memory", "cluster", "partition", "minutes"),
}


def _optional_count() -> Any:
    return optional("an integer of at least 1", lambda v: is_int(v) and v >= 1)


@dataclass(frozen=True)
class DeviceSettings:
    """The device, and how many packs train at a time on a CPU (`threads`; null: one per core).

    With `portable` a CPU uses kernels that have the same bits on all x86-64 processors with AVX2.
    """

    name: str = one_of(DEVICES, default="auto")
    threads: int | None = _optional_count()
    portable: bool = flag(default=False)


@dataclass(frozen=True)
class ExecutorSettings:
    """Where packs train, how many at a time (`workers`; null: as many as fit), and the resources of each.

    Null `gpus` means one on an accelerator; null `memory` (GiB) means what the pack is expected to need.
    """

    kind: str = one_of(EXECUTORS, default="local")
    workers: int | None = _optional_count()
    cpus: float = positive(default=1.0)
    gpus: float | None = optional("a number of at least 0", lambda v: is_number(v) and v >= 0)
    memory: float | None = optional("a number of GiB above 0", lambda v: is_number(v) and v > 0)
    address: str | None = optional("HOST:PORT of a Ray cluster", lambda v: is_text(v) and ":" in v)
    cluster: str = one_of(("slurm", "local"), default="slurm")
    partition: str | None = optional("the name of a partition", is_name)
    minutes: int = integer(1, default=60)

    def check(self) -> None:
        """Raise LoraExpError for a key that is set but that this kind of executor does not use."""
        for known in dataclasses.fields(self):
            value = getattr(self, known.name)
            if known.name not in ("kind", *EXECUTORS[self.kind]) and value != known.default:
                raise LoraExpError(f"executor.{known.name}={value}: must be left out with executor={self.kind}")


def _is_experiment(value: object) -> bool:
    """Whether MLflow accepts a name of an experiment."""
    return is_text(value) and len(str(value)) <= 500


@dataclass(frozen=True)
class TrackingSettings:
    """Where MLflow runs are recorded: a sqlite file, a server, or nowhere."""

    kind: str = one_of(TRACKING, default="sqlite")
    uri: str = allow("sqlite:///FILE or http://HOST:PORT", is_text, default="sqlite:///mlflow.db")
    artifacts: str = allow("a folder", is_text, default="mlartifacts")
    experiment: str = allow("a name of at most 500 characters", _is_experiment, default="lora_exp")


@dataclass(frozen=True)
class StoreSettings:
    """The folder of trained bases and results, and its size limit in GiB, applied when a run or a sweep ends."""

    folder: str = allow("a folder", is_text, default="cache/store")
    limit: float | None = optional("a number of GiB of at least 0", lambda v: is_number(v) and v >= 0)


@dataclass(frozen=True)
class ReportSettings:
    """Where a sweep's report goes (`folder/name`; null: the sweep's name), and the claim that it judges, if any."""

    folder: str = allow("a folder", is_text, default="multirun_reports")
    name: str | None = optional("a name without slashes, of at most 200 bytes", is_name)
    claim: str | None = optional("one of " + ", ".join(CLAIMS), lambda v: v in CLAIMS)

    def place(self, sweep: str) -> Path:
        """Return the folder of the report of the sweep of that name."""
        return Path(self.folder).absolute() / (self.name or sweep)


@dataclass(frozen=True)
class SweepSettings:
    """Memory (GiB) of all packs that train at a time (null: half of what is free), and whether only to plan."""

    memory: float | None = optional("a number of GiB above 0", lambda v: is_number(v) and v > 0)
    plan: bool = flag(default=False)


@dataclass(frozen=True)
class HalvingSettings:
    """Successive halving: one job in `eta` continues at each rung, the first after `first` steps; null: no halving.

    `objective` is the error on validation images by which jobs are compared.
    """

    eta: float | None = optional("a number above 1", lambda v: is_number(v) and v > 1)
    first: int = integer(1, default=10)
    objective: str = one_of(ERRORS, default="both_errors")


@dataclass(frozen=True)
class SearchSettings:
    """How `hydra/sweeper=optuna` searches, and what it minimises on the validation images (`objectives`).

    The sampler proposes `batch` trials at a time and knows the outcome of all earlier batches.
    """

    trials: int = integer(1, default=40)
    batch: int | None = _optional_count()
    sampler: str = one_of(SAMPLERS, default="tpe")
    seed: int = integer(0, default=0)
    objectives: tuple[str, ...] = allow(
        "a list of one or several of " + ", ".join(OBJECTIVES),
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and set(v) <= set(OBJECTIVES) and len(set(v)) == len(v),
        default=("both_errors",),
    )


@dataclass(frozen=True)
class DataFolder:
    """Where images are: the folder of a data set, or its file; and the folder of the prepared sets.

    Where `root` is null, known sets lie in CACHE. Their prepared files lie beside them, others in CACHE.
    """

    root: str | None = optional("a folder", is_text)
    file: str | None = optional("a file", is_text)
    prepared: str | None = optional("a folder", is_text)

    def below(self, folder: Path, name: str) -> DataFolder:
        """All places of data set `name`, where relative ones start at `folder`."""
        own = self.root if name in KNOWN_SETS else None
        root, prepared = (str(folder / (one or CACHE)) for one in (self.root, self.prepared or own))
        return DataFolder(root, self.file and str(folder / self.file), prepared)


@dataclass(frozen=True)
class BaseFile:
    """Where the weights are from which a base is trained, or which are the base."""

    weights: str | None = optional("a .safetensors file", is_text)


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
    contest: ContestSettings
    executor: ExecutorSettings
    data: DataFolder
    base: BaseFile


# Top-level config group -> dataclass of its settings.
SETTINGS: dict[str, type[Any]] = typing.get_type_hints(Settings)
del SETTINGS["data"], SETTINGS["base"]  # whose other keys belong to the spec


def settings_from(config: Mapping[str, Any]) -> Settings:
    """The settings of a resolved config. Raises LoraExpError with one line for the first value that is not allowed."""
    # A config saved by an earlier version may lack a group, which then has its defaults.
    given = {group: config.get(group, {}) for group in SETTINGS}
    if wrong := [group for group, values in given.items() if not isinstance(values, Mapping)]:
        raise LoraExpError(f"{wrong[0]}: must be a config group")
    parts = {group: checked(cls, group, given[group]) for group, cls in SETTINGS.items()}
    parts["executor"].check()
    folder = {key: value for key, value in config["data"].items() if ("data", key) in NOT_SPEC}
    file = {key: value for key, value in config.get("base", {}).items() if key == "weights"}
    return Settings(**parts, data=checked(DataFolder, "data", folder), base=checked(BaseFile, "base", file))
