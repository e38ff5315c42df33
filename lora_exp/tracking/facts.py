"""The facts that MLflow records of a run: parameters, metrics, data sets, loss curve, tags, description.

MLflow's compare page sorts metrics by name and groups them at slashes. So what users compare has a plain name, and the
rest is `gains/...`, `error_before/shirt`, `error_after/shirt`, `adapter/...` and `seconds/...`.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

from lora_exp.config.images import MANY_CLASSES
from lora_exp.measures.gains import beyond_words
from lora_exp.storage.result import RunResult
from lora_exp.storage.words import as_text

# Recording takes 0.1 ms a point, and a chart on a screen shows no more points.
CURVE_POINTS = 200
NAME_LIMIT = 200  # characters of a class in a metric's name, of which MLflow takes 250
NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description
ERRORS = ("target_error", "other_error")
# Of the numbers of a run's gains, those with a plain name, which users compare; the others are `gains/...`.
COMPARED = ("balanced_accuracy", "balanced_accuracy_before", "balanced_accuracy_gained", "beyond_shift")


def metrics_of(result: RunResult) -> dict[str, float]:
    """The numbers of the run. Errors are rates from 0 to 1, times are seconds.

    The error on the target comes first, because MLflow's compare page draws the first metric. A diverged run has no
    errors, accuracies or forgetting, so that they are never compared with those of finished runs.
    """
    out = result.outcome
    found: dict[str, float] = {}
    if not result.diverged:
        for name in ERRORS:
            found[name], found[f"{name}_before"] = getattr(out, name), getattr(out, f"{name}_before")
        found |= {"forgetting": out.forgetting, "accuracy_before": out.before.accuracy, "accuracy": out.after.accuracy}
        for name, value in ({} if out.gains is None else out.gains.numbers()).items():
            if value is not None and not math.isnan(value):
                found[name if name in COMPARED else f"gains/{name}"] = float(value)
        for when, errors in (("before", out.before), ("after", out.after)):
            if len(result.facts.classes) <= MANY_CLASSES:
                named = zip(_metric_names(result.facts.classes), errors.error_rates, strict=True)
                found |= {f"error_{when}/{name}": rate for name, rate in named}
    for name in ("parameters_base", "parameters_adapter", "parameters_total", "overhead_percent"):
        found[name] = getattr(out, name)
    adapter = result.spec.adapter
    if adapter.scaling is not None:
        # MLflow can't compare parameters as numbers: they are text.
        found["adapter/rank"] = float(adapter.rank)
        found["adapter/alpha"] = float(adapter.rank if isinstance(adapter.alpha, str) else adapter.alpha)
        found["adapter/scaling"] = adapter.scaling
    return found | {f"seconds/{stage}": seconds for stage, seconds in result.times.items()}


def data_of(result: RunResult) -> list[Any]:
    """The parts of the data set that the run used, as MLflow's entities (`DatasetInput`).

    The digest differs between parts with different images. MLflow's own constructors would need the images.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_SOURCE_NAME

    spec, sha256, facts = result.spec.data, result.provenance["data_sha256"], result.facts
    known = result.provenance.get("images", {})  # an older version wrote none
    counts = result.outcome.before.counts
    parts = [("training", "train", known.get("train")), ("validation", "validation", known.get("validation"))]
    parts += [("evaluation", "test", sum(counts))]
    source = json.dumps({"tags": {MLFLOW_SOURCE_NAME: f"lora-exp data={spec.name}"}})
    schema = {"mlflow_tensorspec": {"features": _array((-1, *facts.shape)), "targets": _array((-1,))}}
    found = []
    for context, part, images in parts:
        if not images:
            continue
        profile: dict[str, Any] = {"num_rows": images, "num_elements": images * facts.pixels}
        if part == "test" and len(counts) <= MANY_CLASSES:
            profile["images_by_class"] = dict(zip(facts.classes, counts, strict=True))
        digest = f"{sha256[:12]}-{part}-{images}"
        dataset = Dataset(spec.name, digest, "code", source, json.dumps(schema), json.dumps(profile))
        found.append(DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)]))
    return found


def curve_of(result: RunResult) -> list[tuple[int, float]]:
    """(step from 1, loss) at up to CURVE_POINTS evenly spread steps, the first and the last among them.

    Losses that are not finite are left out.
    """
    losses = [(step, loss) for step, loss in enumerate(result.outcome.loss_curve, 1) if math.isfinite(loss)]
    if len(losses) <= CURVE_POINTS:
        return losses
    return [losses[round(at * (len(losses) - 1) / (CURVE_POINTS - 1))] for at in range(CURVE_POINTS)]


def tags_of(result: RunResult) -> dict[str, str]:
    """What identifies the run, how it was made, and its description (NOTE)."""
    out = result.outcome
    facts = {k: v for k, v in result.provenance.items() if k not in ("versions", "overrides", "config")}
    tags = {name: as_text(value) for name, value in facts.items()} | {
        "status": "diverged" if result.diverged else "finished",
        "base_sha256": out.base_sha256_before,
        "adapter_sha256": out.adapter_sha256,
        "base_unchanged": as_text(out.base_unchanged),
        "adapter_off_equals_base": as_text(out.adapter_off_equals_base),
        "versions": ", ".join(f"{k} {v}" for k, v in result.provenance.get("versions", {}).items()),
        "overrides": shlex.join(result.provenance["overrides"]),
        NOTE: _description(result),
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


def _description(result: RunResult) -> str:
    """The run in Markdown: what it gained and cost, and its command."""
    out = result.outcome
    command = shlex.join(["lora-exp", *result.provenance["overrides"]])
    end = (
        f"{out.parameters_adapter:,} parameters added to {out.parameters_base:,} (+{out.overhead_percent:.3f} %)."
        f"\n\n```\n{command}\n```"
    )
    if result.diverged:
        return f"**Diverged:** the loss stopped being finite at step {out.diverged_at}.\n\n{end}"
    rows = {
        f"error on {result.target_words}": (out.target_error_before, out.target_error),
        "error on the other classes": (out.other_error_before, out.other_error),
        "accuracy": (out.before.accuracy, out.after.accuracy),
    }
    if out.gains is not None:
        for name in ("balanced_accuracy", "precision", "f1"):
            rows[name.replace("_", " ")] = (getattr(out.gains.before, name), getattr(out.gains.after, name))
        end = f"Judged beside a moved threshold: {beyond_words(out.gains.beyond)}. {end}"
    lines = [[name, percent(a), percent(b), f"{100 * (b - a):+.2f}"] for name, (a, b) in rows.items()]
    return f"{markdown_table(['', 'before', 'after', 'points'], lines)}\n\n{end}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text in the first column and numbers in the others, with the gaps that MLflow's style lacks."""
    lines = [f"| {' | &emsp;'.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"| --- |{' ---: |' * (len(header) - 1)}", *lines[1:]])


def _metric_names(classes: Sequence[str]) -> list[str]:
    """Names of classes as MLflow allows them in those of metrics; where two would be equal, with their labels."""
    names = [re.sub(r"[^\w.\- :]", "_", name)[:NAME_LIMIT] for name in classes]
    return [name if names.count(name) == 1 else f"{name}_{label}" for label, name in enumerate(names)]


def _array(shape: tuple[int, ...]) -> str:
    """MLflow's JSON for an array of uint8; -1 means any length."""
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": shape}}])


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"
