"""The result of a run, its file `result.json`, and its settings and numbers in words.

`Outcome` has the same bits each time a spec runs on the same kind of machine. Times and provenance belong to one run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_exp.config.images import MNIST, ImageFacts, facts_from
from lora_exp.config.models import MODELS
from lora_exp.config.spec import SPECS, RunSpec, from_dict
from lora_exp.errors import LoraExpError, in_words
from lora_exp.measures.class_errors import ClassErrors, error_of
from lora_exp.measures.gains import Choice, Gains, beyond_words
from lora_exp.measures.gains import from_dict as gains_from_dict
from lora_exp.storage.schema import conform, parsed
from lora_exp.storage.words import Kind, adapted, as_text, in_a_sentence

RESULT, ADAPTER, PREDICTIONS = "result.json", "adapter.safetensors", "predictions.safetensors"
# Provenance of an adapter that was trained elsewhere: the folder it came from.
IMPORTED_FROM = "imported_from"
# Parts of the spec that are unknown for such an adapter.
UNKNOWN_SETTINGS = {
    "adapter": ("init", "init_std", "learning_rate_ratio"),
    "finetune": ("steps", "epochs", "batch_size", "learning_rate", "seed", "replay"),
}
# `RunResult.parameters` names a parameter GROUP_FIELD, those of `adapter` and `finetune` FIELD, and these so:
SHORT_NAMES = {"model_hidden": "model", "data_name": "data"}


@dataclass(frozen=True)
class Outcome:
    """The numbers of a run. Errors are rates from 0 to 1; the error on several classes is the mean of their rates.

    `forgetting` is the rise of the error on the classes that are not the target. `layers` has one row a layer with
    its shape and parameter counts. An imported adapter has 0 `steps` and no losses. `diverged_at` is the first step
    (from 1) whose loss, or the loss after it, was not finite; None for a run that did not diverge. `gains` is None for
    a diverged run, and in a result that an older version wrote.
    """

    before: ClassErrors
    after: ClassErrors
    target_error_before: float
    target_error: float
    other_error_before: float
    other_error: float
    forgetting: float
    parameters_base: int
    parameters_adapter: int
    parameters_total: int
    overhead_percent: float
    layers: list[dict[str, Any]]
    steps: int
    loss_curve: list[float]
    base_sha256_before: str
    base_sha256_after: str
    base_unchanged: bool
    adapter_off_equals_base: bool
    adapter_sha256: str
    diverged_at: int | None = None
    validation_before: ClassErrors | None = None
    validation_after: ClassErrors | None = None
    gains: Gains | None = None

    @property
    def final_loss(self) -> float | None:
        """The loss of the last step; None for an imported adapter."""
        return self.loss_curve[-1] if self.loss_curve else None

    @property
    def choice(self) -> Choice:
        """By what the run is chosen among others; by its test images where an older version wrote the result."""
        if self.gains is not None:
            return self.gains.choice
        every = range(len(self.after.error_rates))
        gained = self.before.error_of(every) - self.after.error_of(every)
        return Choice("the test images", gained, self.forgetting, gained, self.forgetting)


@dataclass(frozen=True)
class RunResult:
    """A run that trained to its end, or diverged: its spec, outcome, times, provenance, and the facts of its images.

    `times` are seconds: `base_training` (of the base, perhaps by an earlier run), `fine_tuning` and `evaluation`
    (this job's share of its pack). `provenance` holds versions, commit, data hash, device, threads and the promise
    about equal bits.
    """

    spec: RunSpec
    outcome: Outcome
    times: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    facts: ImageFacts = MNIST  # an older version wrote none, and knew sets of its form only

    @property
    def target(self) -> tuple[int, ...]:
        """The labels of the classes that it was fine-tuned on."""
        return self.facts.positions("finetune.target", self.spec.finetune.target)

    @property
    def target_text(self) -> str:
        """The names of these classes: `shirt,coat`."""
        return ",".join(self.facts.named(self.target))

    @property
    def target_words(self) -> str:
        """What a sentence calls them: `class 9` for a name that is a number, else the name, `shirt and coat`."""
        return in_a_sentence(self.target_text)

    @property
    def imported(self) -> bool:
        """Whether the adapter was trained elsewhere, so that the settings of its training are unknown."""
        return IMPORTED_FROM in self.provenance

    @property
    def name(self) -> str:
        """The name of the spec with those of the classes; `target-9_lora_rank-4_alpha-1_imported` if so."""
        name = self.spec.named("-".join(self.facts.named(self.target)))
        return f"{name.rpartition('_seed-')[0]}_imported" if self.imported else name

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The spec by group and key, without the keys that are unknown for an imported adapter."""
        unknown = UNKNOWN_SETTINGS if self.imported else {}
        return {
            group: {name: value for name, value in own.items() if name not in unknown.get(group, ())}
            for group, own in dataclasses.asdict(self.spec).items()
        }

    @property
    def diverged(self) -> bool:
        """Whether the loss became infinite or NaN; the errors of such a run mean nothing."""
        return self.outcome.diverged_at is not None

    @property
    def kind(self) -> Kind:
        """Method and rank."""
        adapter = self.spec.adapter
        return adapter.method, None if adapter.scaling is None else adapter.rank

    @property
    def description(self) -> str:
        """`fine-tuned on class 9 at rank 4`, `fine-tuned on shirt at rank 4`."""
        return f"fine-tuned on {self.target_words} {adapted(self.kind)}"

    @property
    def summary(self) -> str:
        """One line: balanced accuracy and errors before and after fine-tuning, and the size of the adapter."""
        out, (method, rank) = self.outcome, self.kind
        head = f"{self.target_words} {method}{'' if rank is None else f' rank {rank}'}"
        if self.diverged:
            return f"{head}: diverged at step {out.diverged_at}; a lower finetune.learning_rate may help"
        gains = out.gains
        balanced = ""
        if gains is not None:
            before, after = gains.before.balanced_accuracy, gains.after.balanced_accuracy
            balanced = f"balanced accuracy {100 * before:.2f} % -> {100 * after:.2f} %, "
        return (
            f"{head}: {balanced}target error {100 * out.target_error_before:.2f} % -> {100 * out.target_error:.2f} %, "
            f"other classes {100 * out.other_error_before:.2f} % -> {100 * out.other_error:.2f} %, "
            f"{out.parameters_adapter:,} parameters (+{out.overhead_percent:.3f} %)"
            + ("" if gains is None else f"; {beyond_words(gains.beyond)}")
        )

    def parameters(self) -> dict[str, str]:
        """Return every known setting as text by a flat name, without those that the method or the model does not use.

        `steps` is the number of steps made, also where `finetune.epochs` set it.
        """
        found: dict[str, Any] = {}
        used = {
            "adapter": ("method", *self.spec.adapter.keys),
            "model": ("kind", *MODELS[self.spec.model.kind]),
        }
        for group in reversed(SPECS):
            prefix = "" if group in ("adapter", "finetune") else f"{group}_"
            for name, value in self.settings[group].items():
                if name in used.get(group, (name,)):
                    found[SHORT_NAMES.get(prefix + name, prefix + name)] = value
        if not self.imported:
            found["steps"] = self.outcome.steps
        found["model"] = self.spec.model.label or "no hidden layers"
        return {name: as_text(value) for name, value in found.items()}

    def objectives(self, names: Sequence[str]) -> list[float]:
        """Return the objectives of these names, in their order; the errors are those on the validation images.

        Raises ValueError for a run without validation images.
        """
        before, after = self.outcome.validation_before, self.outcome.validation_after
        if before is None or after is None:
            raise ValueError(f"{self.name}: has no errors on validation images")
        size, target = float(self.outcome.parameters_adapter), self.target
        rates = before.error_rates, after.error_rates
        return [size if name == "parameters" else error_of(name, target, *rates) for name in names]

    def to_json(self) -> str:
        """Return JSON, a line for each field. Losses that are not finite become strings, since JSON has no NaN."""
        return _lines(_plain(self))


def from_json(text: str) -> RunResult:
    """Return the result that `to_json` wrote. Raises ValueError, KeyError or TypeError for any other text."""
    values = parsed(text)
    outcome = dict(values["outcome"])
    for name in ("before", "after", "validation_before", "validation_after"):
        if outcome.get(name) is not None:
            own = outcome[name]
            losses = [float(loss) for loss in own.get("losses", ())]
            outcome[name] = ClassErrors(**{**own, "loss": float(own["loss"]), "losses": losses})
    outcome["loss_curve"] = [float(loss) for loss in outcome["loss_curve"]]
    if outcome.get("gains") is not None:
        outcome["gains"] = gains_from_dict(outcome["gains"])
    spec, facts = from_dict(values["spec"]), facts_from(values.get("facts"))
    found = RunResult(spec, Outcome(**outcome), values["times"], values["provenance"], facts)
    out, classes = found.outcome, len(facts.classes)
    _ = found.target  # its classes must exist
    for value, kind, name in ((out, Outcome, "outcome"), (found.times, dict[str, float], "times")):
        conform(value, kind, name)
    for own in (out.before, out.after, out.validation_before, out.validation_after):
        if own is not None and not _is_whole(own, classes):
            raise ValueError(f"errors must be {classes} numbers of images of each class that were classified wrongly")
    return found


def _is_whole(errors: ClassErrors, classes: int) -> bool:
    """Whether errors and counts of all classes are there and possible."""
    lists = (errors.counts, errors.errors, errors.error_rates, errors.confusion)
    return all(len(own) == classes for own in lists) and all(
        0 <= wrong <= count and 0 <= rate <= 1
        for count, wrong, rate in zip(errors.counts, errors.errors, errors.error_rates, strict=True)
    )


def read(folder: Path) -> RunResult:
    """Read the result in a run's folder."""
    return from_json((folder / RESULT).read_text(encoding="utf-8"))


def read_run(folder: Path) -> RunResult:
    """Read the result of the run (or the job of a sweep) in `folder`. Raises LoraExpError when there is none."""
    try:
        return read(folder)
    except FileNotFoundError as error:
        raise LoraExpError(f"{folder}: holds no {RESULT}, so it is not the folder of a finished run") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoraExpError(f"{folder / RESULT}: can't be read ({in_words(error)})") from error


def whole_adapter(folder: Path, result: RunResult) -> Path:
    """The file of a run's adapter. Raises LoraExpError unless it has the hash that `result` holds."""
    path = folder / ADAPTER
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise LoraExpError(f"{path}: can't be read ({error.strerror})") from error
    if sha256 != result.outcome.adapter_sha256:
        raise LoraExpError(f"{path}: is damaged, or of another run: its SHA-256 is not that in {RESULT}")
    return path


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, and floats that JSON can't hold as strings, such as 'nan', which float() reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode  # in C, which indents nothing


def _lines(value: Any, margin: str = "\n") -> str:
    """JSON in which each entry of an object is on a line of its own, and lists are not broken."""
    if not isinstance(value, dict) or not value:
        return _encode(value)
    inner = f"{margin} "
    parts = (f"{inner}{_encode(name)}: {_lines(part, inner)}" for name, part in value.items())
    return f"{{{','.join(parts)}{margin}}}"
