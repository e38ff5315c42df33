"""The protocol of a contest: all that is decided before anything runs, in the file `contest.yaml`.

Its SHA-256 stands in the verdict, so that a reader can check that nothing was decided afterwards.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lora_exp.errors import LoraExpError, in_words
from lora_exp.storage.sweep_file import write_whole

CONTEST = "contest.yaml"
SELECTION, JUDGING = "selection", "judging"
VERSION = 1
HEAD = """\
# What this contest of lora_exp compares and how it decides, written before anything ran.
# The SHA-256 of this file stands in the verdict: another protocol is another contest.
"""


@dataclass(frozen=True)
class Arm:
    """One of the compared: its name (`dora`, `lora, rank 4`), method and overrides.

    It trains `parameters` parameters, and tries first every combination of the values in `space`, by key, of which RATE
    is one. `note` says how its size differs from that of the others, if it does.
    """

    name: str
    method: str
    overrides: tuple[str, ...]
    parameters: int
    space: tuple[tuple[str, tuple[Any, ...]], ...]
    note: str = ""


@dataclass(frozen=True)
class Protocol:
    """What a contest compares and how it decides.

    `reference` is the arm with which the others are compared. `targets` and `fixed` are overrides: one for each target
    (empty for that of the config), and those of every job. Jobs have one of the seeds of `selection` or of `judging`
    for their base, and `seeds` orders of images on each. `margin` is in percentage points: a smaller difference of
    `measure` does not matter. The range of rates is widened at most `widenings` times. `halving` says whether the worse
    half of each arm's points runs on the first bases of selection only. `settings` are all other settings of a job,
    `classes` the names of the targets, and `data_sha256` the hash of the images and labels, for a reader.
    """

    arms: tuple[Arm, ...]
    reference: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    fixed: tuple[str, ...]
    equal: str
    measure: str
    margin: float
    widenings: int
    selection: tuple[int, ...]
    judging: tuple[int, ...]
    seeds: int
    steps: int | None
    halving: bool
    data_sha256: str
    settings: Mapping[str, Any]

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def orders(self, base: int) -> range:
        """The seeds of fine-tuning over a base: no two bases share one."""
        return range(base * self.seeds, (base + 1) * self.seeds)

    @property
    def text(self) -> str:
        """The content of `contest.yaml`."""
        values = {"version": VERSION, **dataclasses.asdict(self)}
        return HEAD + str(yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True, width=100))

    @property
    def sha256(self) -> str:
        """The hash of that content."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def state(protocol: Protocol, folder: Path) -> None:
    """Write `contest.yaml` into a folder, or check that what is there is the same.

    Raises LoraExpError where another protocol was stated, or the file was changed.
    """
    path = folder / CONTEST
    if not path.exists():
        write_whole(path, protocol.text.encode())
    elif path.read_text(encoding="utf-8") != protocol.text:
        raise LoraExpError(
            f"{path}: states another protocol than this command, which makes it another contest; choose another folder"
        )


def read_protocol(folder: Path) -> Protocol:
    """Read `contest.yaml`. Raises LoraExpError when it can't be read, or is not what this version writes."""
    path = folder / CONTEST
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        values.pop("version")
        arms = tuple(
            Arm(**{**own, "overrides": tuple(own["overrides"]), "space": tuple(_space(own["space"]))})
            for own in values.pop("arms")
        )
        lists = {name: tuple(values[name]) for name in ("targets", "fixed", "selection", "judging", "classes")}
        protocol = Protocol(arms=arms, **{**values, **lists})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise LoraExpError(f"{path}: is not the protocol of a contest ({in_words(error)})") from error
    if protocol.text != text:
        raise LoraExpError(f"{path}: was changed after it was written")
    return protocol


def _space(values: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for key, own in values.items():
        yield key, tuple(own)


def _plain(value: Any) -> Any:
    """The same with lists for tuples, and a mapping for the pairs of a space, as YAML has them."""
    if isinstance(value, Mapping):
        return {
            key: {name: _plain(values) for name, values in own} if key == "space" else _plain(own)
            for key, own in value.items()
        }
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
