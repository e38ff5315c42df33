"""What of a result goes on record, flat: parameters, metrics, data, loss curve, tags and a description in Markdown.

Names are those that a tracker's compare page groups and sorts well: plain ones for what users compare,
`error_before/digit_3`, `error_after/digit_3`, `adapter/...` and `seconds/...` for the rest.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from lora_exp.config.spec import SIDE, TRAIN_IMAGES
from lora_exp.storage.result import RunResult, as_text

# A tracker is slow a point (0.1 ms), and a chart on a screen shows no more.
CURVE_POINTS = 200
NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description


@dataclass(frozen=True)
class DataPart:
    """A part of a data set, and what the run used it for (`context`).

    `digest` tells parts of different images apart; `schema` and `profile` are JSON, in the form that MLflow has for
    arrays.
    """

    name: str
    context: str
    digest: str
    schema: str
    profile: str


def metrics_of(result: RunResult) -> dict[str, float]:
    """The numbers of the run: errors are rates from 0 to 1, times are seconds.

    The error on the target comes first, since a compare page draws the first at once. A diverged run has no errors,
    accuracies or forgetting: they would be compared with those of sound runs.
    """
    out = result.outcome
    found: dict[str, float] = {}
    if not result.diverged:
        for name in ("target_error", "other_error"):
            found[name], found[f"{name}_before"] = getattr(out, name), getattr(out, f"{name}_before")
        found |= {
            "forgetting": out.forgetting,
            "accuracy_before": out.before.accuracy,
            "accuracy": out.after.accuracy,
        }
        for when, errors in (("before", out.before), ("after", out.after)):
            found |= {f"error_{when}/digit_{digit}": rate for digit, rate in enumerate(errors.error_rates)}
    for name in ("parameters_base", "parameters_adapter", "parameters_total", "overhead_percent"):
        found[name] = getattr(out, name)
    adapter = result.spec.adapter
    if adapter.scaling is not None:
        # Parameters are text, for which MLflow knows neither < nor an order of numbers.
        found["adapter/rank"] = float(adapter.rank)
        found["adapter/alpha"] = float(adapter.rank if isinstance(adapter.alpha, str) else adapter.alpha)
        found["adapter/scaling"] = adapter.scaling
    return found | {f"seconds/{stage}": seconds for stage, seconds in result.times.items()}


def data_of(result: RunResult) -> list[DataPart]:
    """The parts of the data set that the run was trained, chosen and judged on."""
    spec, sha256 = result.spec.data, result.provenance["data_sha256"]
    left = TRAIN_IMAGES - spec.validation
    parts: list[tuple[str, str, int, list[int] | None]] = []
    parts.append(("training", "train", left if spec.limit is None else min(spec.limit, left), None))
    if spec.validation:
        parts.append(("validation", "validation", spec.validation, None))
    counts = result.outcome.before.counts
    parts.append(("evaluation", "test", sum(counts), counts))
    schema = {"features": _array((-1, SIDE, SIDE)), "targets": _array((-1,))}
    return [
        DataPart(
            name=spec.name,
            context=context,
            digest=f"{sha256[:12]}-{part}-{images}",  # MLflow takes two with one name and digest for the same
            schema=json.dumps({"mlflow_tensorspec": schema}),
            profile=json.dumps(
                {"num_rows": images, "num_elements": images * SIDE**2}
                | ({"images_by_digit": by_digit} if by_digit else {})
            ),
        )
        for context, part, images, by_digit in parts
    ]


def curve_of(result: RunResult) -> list[tuple[int, float]]:
    """(step from 1, loss) at evenly spread steps, first and last included; only losses that are finite."""
    losses = [(step, loss) for step, loss in enumerate(result.outcome.loss_curve, 1) if math.isfinite(loss)]
    if len(losses) <= CURVE_POINTS:
        return losses
    return [losses[round(at * (len(losses) - 1) / (CURVE_POINTS - 1))] for at in range(CURVE_POINTS)]


def tags_of(result: RunResult, overrides: Sequence[str]) -> dict[str, str]:
    """What identifies the run and tells how it was made; NOTE is its description."""
    out = result.outcome
    facts = {k: v for k, v in result.provenance.items() if k not in ("versions", "overrides", "config")}
    tags = {name: as_text(value) for name, value in facts.items()} | {
        "status": "diverged" if result.diverged else "finished",
        "base_sha256": out.base_sha256_before,
        "adapter_sha256": out.adapter_sha256,
        "base_unchanged": as_text(out.base_unchanged),
        "adapter_off_equals_base": as_text(out.adapter_off_equals_base),
        "versions": ", ".join(f"{k} {v}" for k, v in result.provenance.get("versions", {}).items()),
        "overrides": shlex.join(overrides),
        NOTE: _note(result, overrides),
    }
    if not result.imported:
        tags["spec_key"] = result.spec.key
    if result.diverged:
        tags["diverged_at"] = str(out.diverged_at)
        tags["error"] = f"the loss stopped being finite at step {out.diverged_at}"
    shown = len(curve_of(result))
    if shown < len(out.loss_curve):
        tags["loss_curve"] = f"{shown} of {len(out.loss_curve)} steps; result.json has all"
    return tags


def _note(result: RunResult, overrides: Sequence[str]) -> str:
    out = result.outcome
    digits = ", ".join(str(digit) for digit in result.spec.finetune.digit)
    command = shlex.join(["lora-exp", *overrides])
    end = (
        f"{out.parameters_adapter:,} parameters added to {out.parameters_base:,} (+{out.overhead_percent:.3f} %)."
        f"\n\n```\n{command}\n```"
    )
    if result.diverged:
        return f"**Diverged:** the loss stopped being finite at step {out.diverged_at}.\n\n{end}"
    rows = {
        f"error on digit {digits}": (out.target_error_before, out.target_error),
        "error on the other digits": (out.other_error_before, out.other_error),
        "accuracy": (out.before.accuracy, out.after.accuracy),
    }
    lines = [[name, _percent(a), _percent(b), f"{100 * (b - a):+.2f}"] for name, (a, b) in rows.items()]
    return f"{markdown_table(['', 'before', 'after', 'points'], lines)}\n\n{end}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text in the first column and numbers in the others, with gaps, which MLflow does not leave."""
    lines = [f"| {' | &emsp;'.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"| --- |{' ---: |' * (len(header) - 1)}", *lines[1:]])


def _array(shape: tuple[int, ...]) -> str:
    """MLflow's JSON for an array of uint8; -1 stands for any length."""
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": shape}}])


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
