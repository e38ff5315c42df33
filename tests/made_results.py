"""Made-up but valid results, for tests of the report only: the numbers are drawn, seeded, and not trained.

The pictures are the real test images, so that figures can be judged by eye.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.data.embedded import EMBEDDED
from lora_exp.measures.class_errors import ClassErrors
from lora_exp.measures.logits import Logits, compact, to_tensors
from lora_exp.measures.measured import gains
from lora_exp.storage.result import PREDICTIONS, RESULT, Outcome, RunResult

WIDTHS = (784, 1000, 2000, 10)


def pictures_and_labels() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The 10,000 MNIST test images [N, 1, 28, 28] and their labels [N]."""
    raw = [
        np.frombuffer(lzma.decompress((EMBEDDED / f"t10k-{name}.xz").read_bytes()), np.uint8)
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    return raw[0][16:].reshape(-1, 1, 28, 28), raw[1][8:]


def made_run(
    labels: NDArray[np.uint8],
    digit: tuple[int, ...] = (9,),
    rank: int = 4,
    alpha: float | str = 1.0,
    seed: int = 0,
    diverged_at: int | None = None,
    steps: int = 100,
    method: str = "lora",
    base_seed: int = 0,
    classes: tuple[str, ...] = MNIST.classes,
) -> tuple[RunResult, dict[str, NDArray[Any]]]:
    """A result and its predictions: the base errs on 5 % of all; the target is mended and others broken."""
    count = len(classes)
    random = np.random.default_rng([*digit, rank, seed])
    before = _mistaken(labels, np.random.default_rng(0), {d: 0.02 + 0.006 * (d % 10) for d in range(count)})
    cost = 0.02 + 0.03 * random.random() * np.log2(2 * rank)
    after = before.copy()
    targets = np.isin(labels, digit)
    mended = targets & (random.random(len(labels)) < 0.85)
    after[mended] = labels[mended]
    broken = ~targets & (random.random(len(labels)) < cost * (1 + 3 * np.isin(labels, [4, 7])))
    after[broken] = digit[0]

    curve = np.exp(-np.arange(steps) / 12) * 2.3 * random.lognormal(0, 0.6, steps) + 0.002 * rank
    if diverged_at is not None:
        curve[diverged_at - 1 :] = np.nan
    layers = []
    for number, (inputs, outputs) in enumerate(pairwise(WIDTHS), 1):
        base, added = outputs * (inputs + 1), rank * (inputs + outputs)
        layers.append(
            {"layer": f"linear{number}", "shape": [outputs, inputs], "base": base, "adapter": added}
            | {"overhead_percent": 100 * added / base}
        )
    rest = tuple(d for d in range(count) if d not in digit)
    first, last = _class_errors(labels, before, count), _class_errors(labels, after, count)
    parameters_base, adapter = sum(row["base"] for row in layers), sum(row["adapter"] for row in layers)
    outcome = Outcome(
        before=first,
        after=last,
        target_error_before=_error_of(first, digit),
        target_error=_error_of(last, digit),
        other_error_before=_error_of(first, rest),
        other_error=_error_of(last, rest),
        forgetting=_error_of(last, rest) - _error_of(first, rest),
        parameters_base=parameters_base,
        parameters_adapter=adapter,
        parameters_total=parameters_base + adapter,
        overhead_percent=100 * adapter / parameters_base,
        layers=layers,
        steps=steps,
        loss_curve=curve.tolist(),
        base_sha256_before="ab" * 32,
        base_sha256_after="ab" * 32,
        base_unchanged=True,
        adapter_off_equals_base=True,
        adapter_sha256="cd" * 32,
        diverged_at=diverged_at,
    )
    facts = replace(MNIST, classes=classes)
    spec = RunSpec(
        ModelSpec(WIDTHS[1:-1]),
        DataSpec("mnist"),
        BaseSpec(seed=base_seed),
        AdapterSpec(method, rank, alpha).used(),
        FinetuneSpec(target=digit if classes == MNIST.classes else facts.named(digit), seed=seed, steps=steps),
    )
    times = {"base_training": 30.0, "fine_tuning": 0.5, "evaluation": 0.25}
    provenance = {
        "overrides": overrides_of(spec),
        "versions": {"torch": "2.14.1"},
        "device": "cpu",
        "pack": rank,
        "data_sha256": "ef" * 32,
    }
    logits = Logits(labels, *(_logits(predicted, random, count) for predicted in (before, after)))
    if diverged_at is None:
        outcome = replace(outcome, gains=gains(logits, None, digit))
    return RunResult(spec, outcome, times, provenance, facts), to_tensors(logits, None)


def class_errors(wrong: int, loss: float = 0.25) -> ClassErrors:
    """Ten classes of ten images each, `wrong` of each taken for the next class."""
    confusion = [[0] * 10 for _ in range(10)]
    for digit in range(10):
        confusion[digit][digit] = 10 - wrong
        confusion[digit][(digit + 1) % 10] += wrong
    return ClassErrors(1 - wrong / 10, loss, [10] * 10, [wrong] * 10, [wrong / 10] * 10, confusion, [loss] * 10)


def small_result(**changed: object) -> RunResult:
    """A result with round numbers; `changed` replaces parts of its outcome."""
    spec = RunSpec(
        ModelSpec((1000, 2000)),
        DataSpec("mnist", validation=500),
        BaseSpec(seed=3),
        AdapterSpec(rank=4, alpha=2.0, layers=("linear1", "linear2")),
        FinetuneSpec(target=(3, 8), steps=3, seed=7, replay=0.25),
    )
    outcome = Outcome(
        before=class_errors(1),
        after=class_errors(2),
        target_error_before=0.1,
        target_error=0.2,
        other_error_before=0.1,
        other_error=0.2,
        forgetting=0.1,
        parameters_base=2_807_010,
        parameters_adapter=27_176,
        parameters_total=2_834_186,
        overhead_percent=100 * 27_176 / 2_807_010,
        layers=[{"layer": "linear1", "shape": [1000, 784], "base": 785_000, "adapter": 7136}],
        steps=3,
        loss_curve=[0.1, 1 / 3, 0.05],
        base_sha256_before="a" * 64,
        base_sha256_after="a" * 64,
        base_unchanged=True,
        adapter_off_equals_base=True,
        adapter_sha256="b" * 64,
    )
    times = {"base_training": 30.5, "fine_tuning": 0.1, "evaluation": 0.2}
    provenance = {"versions": {"torch": "2.14.1"}, "commit": None, "threads": 2}
    return RunResult(spec, replace(outcome, **changed), times, provenance)


def overrides_of(spec: RunSpec) -> list[str]:
    """What a user would have typed for it."""
    digits = ",".join(str(digit) for digit in spec.finetune.target)
    digits = f"[{digits}]" if len(spec.finetune.target) > 1 else digits
    return [
        f"adapter.rank={spec.adapter.rank}",
        f"finetune.digit={digits}",
        f"finetune.seed={spec.finetune.seed}",
    ]


def write_result(folder: Path, result: RunResult) -> None:
    """The `result.json` of a run."""
    (folder / RESULT).write_text(result.to_json() + "\n", encoding="utf-8")


def write_run(folder: Path, run: tuple[RunResult, Mapping[str, NDArray[Any]]]) -> None:
    """A finished run's folder."""
    folder.mkdir(parents=True)
    write_result(folder, run[0])
    save_file(dict(run[1]), folder / PREDICTIONS)


def write_failure(folder: Path, error: str, overrides: Sequence[str]) -> None:
    """A failed run's folder."""
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"error": error, "overrides": list(overrides)}))


def write_sweep(folder: Path, runs: Sequence[tuple[RunResult, Mapping[str, NDArray[Any]]] | str | None]) -> Path:
    """A sweep's folder; a job is a run, or the error it failed with, or None if it never ran."""
    jobs = []
    for job, run in enumerate(runs):
        overrides = [f"finetune.digit={job % 10}", "adapter.layers=[linear1, 'linear2']"]
        if isinstance(run, str):
            write_failure(folder / str(job), run, overrides)
        elif run is not None:
            overrides = overrides_of(run[0].spec)
            write_run(folder / str(job), run)
        jobs.append(overrides)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "name": "ranks by digit",
        "command": "lora-exp -m adapter.rank=1,2",
        "started": "2026-01-02T03:04:05",
    }
    (folder / "sweep.json").write_text(json.dumps({**about, "jobs": jobs}))
    return folder


def unproven(run: RunResult) -> RunResult:
    """The same run, had it changed its base."""
    return replace(run, outcome=replace(run.outcome, base_unchanged=False))


def _mistaken(labels: NDArray[np.uint8], random: np.random.Generator, rates: Mapping[int, float]) -> NDArray[np.uint8]:
    wrong = random.random(len(labels)) < np.array(list(rates.values()))[labels]
    other = (labels + random.integers(1, len(rates), len(labels))) % len(rates)
    return np.where(wrong, other, labels).astype(np.uint8)


def _logits(predicted: NDArray[np.uint8], random: np.random.Generator, count: int) -> NDArray[Any]:
    """Logits with these predictions, more and less sure."""
    logits = random.normal(0, 1, (len(predicted), count))
    rows = np.arange(len(predicted))
    logits[rows, predicted] = logits.max(axis=1) + random.uniform(0.1, 3, len(predicted))
    return compact(logits.astype(np.float32))


def _class_errors(labels: NDArray[np.uint8], predicted: NDArray[np.uint8], count: int) -> ClassErrors:
    confusion = np.bincount(labels.astype(int) * count + predicted, minlength=count**2).reshape(count, count)
    counts = confusion.sum(axis=1)
    errors = counts - confusion.diagonal()
    return ClassErrors(
        accuracy=float(1 - errors.sum() / counts.sum()),
        loss=0.2,
        counts=counts.tolist(),
        errors=errors.tolist(),
        error_rates=(errors / counts).tolist(),
        confusion=confusion.tolist(),
    )


def _error_of(errors: ClassErrors, digits: Sequence[int]) -> float:
    return sum(errors.error_rates[digit] for digit in digits) / len(digits)
