"""One pack from specs to results: fine-tuning, evaluation, and the check that the base did not change."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from safetensors.numpy import save

from lora_exp.adapters.adapted import encode_adapter
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, adapter_plan
from lora_exp.config.spec import RunSpec
from lora_exp.measures.class_errors import ClassErrors
from lora_exp.measures.logits import Array, Logits, compact, to_tensors
from lora_exp.measures.measured import gains
from lora_exp.model.architecture import Cut
from lora_exp.model.base import BaseModel, layer_table, network
from lora_exp.model.data import ImageData, Images, Split
from lora_exp.storage.result import ADAPTER, PREDICTIONS, Outcome, RunResult
from lora_exp.training.base import TrainedBase
from lora_exp.training.checkpoint import Checkpoint
from lora_exp.training.evaluation import Predictions, class_errors, frozen_constants, predict_pack
from lora_exp.training.loop import Job, Progress, TrainingImages, batch_order, fine_tune, step_count
from lora_exp.training.packing import JobSize, job_size

log = logging.getLogger(__name__)

Evaluated = list[tuple[RunResult, dict[str, bytes]]]


@dataclass(frozen=True)
class PlannedJob:
    """A job before training: the plan of its adapter, and its steps, cost and memory."""

    plan: AdapterPlan
    size: JobSize


def plan_jobs(specs: Sequence[RunSpec], data: ImageData) -> dict[RunSpec, PlannedJob]:
    """Plan jobs that share a base. Raises LoraExpError when a pattern of an adapter matches no layer."""
    form, of_classes = network(specs[0].model, data.facts), functools.cache(data.train.of_classes)
    planned = {}
    for spec in specs:
        target = data.target(spec.finetune)
        plan = adapter_plan(spec.adapter, form.layers, spec.finetune.seed, target)
        steps = step_count(spec.finetune, len(of_classes(target)))
        size = job_size(plan, form, spec.finetune.batch_size, steps, len(data.test.labels))
        planned[spec] = PlannedJob(plan, size)
    return planned


def frozen_cut(base: BaseModel, data: ImageData, jobs: Mapping[RunSpec, PlannedJob], memory: int | None) -> Cut | None:
    """Where the part of a base ends that none of the jobs adapts; None where its outputs need more than `memory` bytes.

    They are kept of all images, with `memory=None` without a bound.
    """
    plans = [job.plan.layers for job in jobs.values()]
    adapted = [any(own.update != "none" for own in layer) for layer in zip(*plans, strict=True)]
    cut = base.forward.cut(adapted)
    count = sum(len(split.labels) for split in (data.train, data.validation, data.test) if split is not None)
    if cut is not None and memory is not None and cut.bytes * count > memory:
        log.info(
            "the frozen part of the base is computed in each step: its outputs need %.1f GiB of sweep.memory=%.1f",
            cut.bytes * count / 2**30,
            memory / 2**30,
        )
        return None
    return cut


class PackTrainer:
    """Trains and evaluates packs of one base. All packs share its data and what its frozen part computes of it."""

    def __init__(self, base: TrainedBase, data: ImageData, jobs: Mapping[RunSpec, PlannedJob], cut: Cut | None) -> None:
        """`cut` is where the part of the base ends whose outputs are kept (`frozen_cut`)."""
        self.base, self.data, self.jobs = base, data, jobs
        self._of_classes = functools.cache(data.train.of_classes)
        self._sha256 = base.model.sha256()
        pixels, labels, self._index = self._drawn_images()
        validation = None if data.validation is None else data.validation.images
        constants = functools.partial(frozen_constants, base.model, cut=cut)
        self._of_test = constants(data.test.images)
        self._of_validation = None if validation is None else constants(validation)
        self._images = TrainingImages(pixels, labels, constants(pixels))

    def train(
        self, pack: Sequence[RunSpec], progress: Progress | None, checkpoints: Sequence[Checkpoint] = ()
    ) -> Evaluated:
        """Train and evaluate one pack; return each job's result, and its adapter and predictions as files.

        `checkpoints`, one per job, continue earlier training.
        """
        started = time.perf_counter()
        tuned = fine_tune(self.base.model, self._loop_jobs(pack), self._images, progress, checkpoints)
        seconds = time.perf_counter() - started
        return self.evaluate(pack, tuned.pack, tuned.losses, {"fine_tuning": seconds / len(pack)})

    def train_to_step(
        self, pack: Sequence[RunSpec], stop: int, progress: Progress | None, checkpoints: Sequence[Checkpoint] = ()
    ) -> list[tuple[ClassErrors, Checkpoint]]:
        """Train one pack up to step `stop`; return each job's errors on the validation images and its checkpoint."""
        assert self.data.validation is not None, "the settings were checked before"
        jobs = [dataclasses.replace(job, order=job.order[:stop]) for job in self._loop_jobs(pack)]
        tuned = fine_tune(self.base.model, jobs, self._images, progress, checkpoints)
        predictions = predict_pack(self.base.model, tuned.pack, self.data.validation, self._of_validation)
        errors = [class_errors(own, self.data.validation.labels) for own in predictions]
        return list(zip(errors, tuned.checkpoints(), strict=True))

    def evaluate(
        self, pack: Sequence[RunSpec], adapters: AdapterPack, losses: Sequence[torch.Tensor], times: dict[str, float]
    ) -> Evaluated:
        """Evaluate trained adapters; `losses` are each job's by step, empty for an imported adapter."""
        model, data = self.base.model, self.data
        started = time.perf_counter()
        on_test = predict_pack(model, adapters, data.test, self._of_test)
        on_validation: Sequence[Predictions | None] = [None] * len(pack)
        if data.validation is not None:
            on_validation = predict_pack(model, adapters, data.validation, self._of_validation)
        # After training: the same forward pass without adapters, and the hash of the base's weights.
        [off] = predict_pack(model, AdapterPack(()), data.test, self._of_test)
        checks = {
            "adapter_off_equals_base": torch.equal(off.predicted, self.base.test.predicted),
            "base_sha256_before": self._sha256,
            "base_sha256_after": model.sha256(),
        }
        seconds = (time.perf_counter() - started) / len(pack)
        times = {"base_training": self.base.seconds, **times, "evaluation": seconds}
        results = []
        before = _compact(self.base.test), _compact(self.base.validation)
        all_factors = adapters.factors(model.network.layers)
        for row, (factors, added) in enumerate(zip(all_factors, self._trained_parameters(adapters), strict=True)):
            spec = pack[row]
            weights = encode_adapter(factors, self._scaling(spec), self._sha256)
            checks["adapter_sha256"] = hashlib.sha256(weights).hexdigest()
            test = _logits(data.test, before[0], on_test[row])
            validation = _logits(data.validation, before[1], on_validation[row])
            outcome = self._outcome(spec, losses[row], on_test[row], on_validation[row], added, checks)
            if outcome.diverged_at is None:
                outcome = dataclasses.replace(outcome, gains=gains(test, validation, data.target(spec.finetune)))
            files = {ADAPTER: weights, PREDICTIONS: save(to_tensors(test, validation))}
            results.append((RunResult(spec, outcome, times, facts=data.facts), files))
        return results

    def _order(self, spec: RunSpec) -> torch.Tensor:
        """Draw the training images of a job: indices [T, B] int64."""
        labels = self.data.target(spec.finetune)
        target, rest = self._of_classes(labels), self._of_classes(self.data.facts.others(labels))
        return batch_order(spec.finetune, self.jobs[spec].size.steps, labels, target, rest)

    def _loop_jobs(self, pack: Sequence[RunSpec]) -> list[Job]:
        return [Job(self.jobs[spec].plan, spec.finetune.learning_rate, self._index[self._order(spec)]) for spec in pack]

    def _drawn_images(self) -> tuple[Images, torch.Tensor, torch.Tensor]:
        """Collect the training images that any job draws, their labels, and the index of each image of the split.

        Each job's order is drawn here and again in its pack: that is cheaper than to keep thousands of orders.
        """
        train = self.data.train
        is_drawn = torch.zeros(len(train.labels), dtype=torch.bool)
        for spec in self.jobs:
            is_drawn[self._order(spec).flatten()] = True
        drawn = is_drawn.nonzero().flatten()
        index = torch.full((len(is_drawn),), -1)
        index[drawn] = torch.arange(len(drawn))
        chosen = train.where(drawn)
        return chosen.images, chosen.labels, index

    def _scaling(self, spec: RunSpec) -> dict[str, float]:
        plans = zip(self.base.model.layers, self.jobs[spec].plan.layers, strict=True)
        return {layer.name: plan.scaling for layer, plan in plans if plan.rank}

    def _trained_parameters(self, pack: AdapterPack) -> list[list[int]]:
        """Count, for each job and layer, the parameters that Adam trained."""
        layers = range(len(self.base.model.layers))
        return [
            [sum(part.rows.numel() for part in parts if part.layer == at) for at in layers]
            for parts in pack.trained(pack.stacks())
        ]

    def _outcome(
        self,
        spec: RunSpec,
        losses: torch.Tensor,
        on_test: Predictions,
        on_validation: Predictions | None,
        added: list[int],
        checks: Mapping[str, Any],
    ) -> Outcome:
        model, labels = self.base.model, self.data.test.labels
        before, after = class_errors(self.base.test, labels), class_errors(on_test, labels)
        target = self.data.target(spec.finetune)
        rest = self.data.facts.others(target)
        not_finite = (~losses.isfinite()).nonzero().flatten().tolist()
        if not not_finite and not math.isfinite(after.loss):  # no training loss follows the last step's update
            not_finite = [len(losses) - 1]
        return Outcome(
            before=before,
            after=after,
            target_error_before=before.error_of(target),
            target_error=after.error_of(target),
            other_error_before=before.error_of(rest),
            other_error=after.error_of(rest),
            forgetting=after.error_of(rest) - before.error_of(rest),
            parameters_base=model.parameters,
            parameters_adapter=sum(added),
            parameters_total=model.parameters + sum(added),
            overhead_percent=100 * sum(added) / model.parameters,
            layers=layer_table(model, added),
            steps=len(losses),
            loss_curve=losses.tolist(),
            base_unchanged=checks["base_sha256_before"] == checks["base_sha256_after"],
            **checks,
            diverged_at=not_finite[0] + 1 if not_finite else None,
            validation_before=_errors_on(self.data.validation, self.base.validation),
            validation_after=_errors_on(self.data.validation, on_validation),
        )


def _errors_on(split: Split | None, predictions: Predictions | None) -> ClassErrors | None:
    return None if split is None or predictions is None else class_errors(predictions, split.labels)


@overload
def _compact(predictions: Predictions) -> Array: ...


@overload
def _compact(predictions: Predictions | None) -> Array | None: ...


def _compact(predictions: Predictions | None) -> Array | None:
    """Return logits as they are stored; None without predictions."""
    return None if predictions is None else compact(predictions.logits.numpy())


@overload
def _logits(split: Split, before: Array, after: Predictions) -> Logits: ...


@overload
def _logits(split: Split | None, before: Array | None, after: Predictions | None) -> Logits | None: ...


def _logits(split: Split | None, before: Array | None, after: Predictions | None) -> Logits | None:
    """Return the logits of a split as they are stored; None without the split."""
    if split is None or before is None or after is None:
        return None
    return Logits(split.labels.cpu().numpy().astype(np.min_scalar_type(before.shape[1] - 1)), before, _compact(after))
