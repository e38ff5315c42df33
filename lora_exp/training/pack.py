"""One pack from plan to results: fine-tuning, evaluation, and the proof that the base did not change."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence

import torch
from safetensors.torch import save

from lora_exp.adapters.adapter_file import encoded
from lora_exp.adapters.pack import AdapterPack
from lora_exp.config.spec import RunSpec
from lora_exp.model.base import layer_table
from lora_exp.model.data import Split
from lora_exp.storage.result import ADAPTER, PREDICTIONS, ClassErrors, Outcome, RunResult
from lora_exp.training.base import TrainedBase
from lora_exp.training.checkpoint import Checkpoint
from lora_exp.training.evaluation import Evaluation, Predictions, frozen_first_layer, others, predict_pack, summarise
from lora_exp.training.loop import Job, TrainingImages, fine_tune
from lora_exp.training.workload import Workload


class Bench:
    """What all packs of one base share: base, data, each job's work, and the first layer's frozen products."""

    def __init__(self, specs: Sequence[RunSpec], base: TrainedBase, work: Workload) -> None:
        self.base, self.work, self.data = base, work, work.data
        self.sha256 = base.model.sha256()
        self.first_test = frozen_first_layer(base.model, self.data.test.images)
        held = self.data.validation
        self.first_validation = None if held is None else frozen_first_layer(base.model, held.images)
        self.drawn, self.place = self._drawn_images(specs)

    def run_pack(
        self,
        pack: Sequence[RunSpec],
        progress: Callable[[int], object] | None,
        begin: Sequence[Checkpoint] = (),
    ) -> list[tuple[RunResult, dict[str, bytes]]]:
        """Fine-tune and judge one pack; results in its order, each with its adapter and predictions as files.

        With `begin`, a checkpoint of each job, training goes on from there.
        """
        started = time.perf_counter()
        tuned = fine_tune(self.base.model, self._jobs(pack), self.drawn, progress, begin)
        seconds = time.perf_counter() - started
        return self.judge(pack, tuned.pack, tuned.losses, {"fine_tuning": seconds / len(pack)})

    def run_rung(
        self,
        pack: Sequence[RunSpec],
        stop: int,
        progress: Callable[[int], object] | None,
        begin: Sequence[Checkpoint] = (),
    ) -> list[tuple[Evaluation, Checkpoint]]:
        """Fine-tune one pack up to step `stop`: what it says of the validation images, and where it stands."""
        assert self.data.validation is not None, "checked before anything ran"
        jobs = [dataclasses.replace(job, order=job.order[:stop]) for job in self._jobs(pack)]
        tuned = fine_tune(self.base.model, jobs, self.drawn, progress, begin)
        said = predict_pack(self.base.model, tuned.pack, self.data.validation, self.first_validation)
        judged = [summarise(own, self.data.validation.labels) for own in said]
        return list(zip(judged, tuned.checkpoints(), strict=True))

    def _jobs(self, pack: Sequence[RunSpec]) -> list[Job]:
        work = self.work
        return [Job(work.plans[spec], spec.finetune.learning_rate, self.place[work.order(spec)]) for spec in pack]

    def judge(
        self, pack: Sequence[RunSpec], adapters: AdapterPack, losses: Sequence[torch.Tensor], times: dict[str, float]
    ) -> list[tuple[RunResult, dict[str, bytes]]]:
        """Judge a pack whose adapters are trained; `losses` are each job's by step, none for an imported adapter."""
        model, data = self.base.model, self.data
        started = time.perf_counter()
        said = predict_pack(model, adapters, data.test, self.first_test)
        held: Sequence[Predictions | None] = [None] * len(pack)
        if data.validation is not None and self.first_validation is not None:
            held = predict_pack(model, adapters, data.validation, self.first_validation)
        # The proof, after training: the same forward pass with adapters off, and the base's weights once more.
        [off] = predict_pack(model, AdapterPack(()), data.test, self.first_test)
        off_equals_base = torch.equal(off.predicted, self.base.test.predicted)
        sha256_after = model.sha256()
        seconds = (time.perf_counter() - started) / len(pack)
        times = {"base_training": self.base.seconds, **times, "evaluation": seconds}
        results = []
        all_factors = adapters.factors([layer.shape for layer in model.layers])
        for row, (factors, added) in enumerate(zip(all_factors, self._trained_parameters(adapters), strict=True)):
            spec = pack[row]
            weights = encoded(factors, self._scaling(spec), self.sha256)
            outcome = self._outcome(
                spec, losses[row], said[row], held[row], weights, added, off_equals_base, sha256_after
            )
            files = {ADAPTER: weights, PREDICTIONS: _predictions_file(self.base.test, said[row])}
            results.append((RunResult(spec, outcome, times), files))
        return results

    def _drawn_images(self, specs: Sequence[RunSpec]) -> tuple[TrainingImages, torch.Tensor]:
        """The training images that any of the jobs draws, and where each image of the split is among them.

        Each job's order is drawn twice, here and in its pack: that costs less than keeping thousands of them.
        """
        train = self.data.train
        is_drawn = torch.zeros(len(train.labels), dtype=torch.bool)
        for spec in specs:
            is_drawn[self.work.order(spec).flatten()] = True
        used = is_drawn.nonzero().flatten()
        place = torch.full((len(is_drawn),), -1)
        place[used] = torch.arange(len(used))
        used = used.to(train.labels.device)
        pixels = train.images[used]
        return TrainingImages(pixels, train.labels[used], frozen_first_layer(self.base.model, pixels)), place

    def _scaling(self, spec: RunSpec) -> dict[str, float]:
        plans = zip(self.base.model.layers, self.work.plans[spec].layers, strict=True)
        return {layer.name: plan.scaling for layer, plan in plans if plan.rank}

    def _trained_parameters(self, pack: AdapterPack) -> list[list[int]]:
        """For each job how many parameters of each layer were trained, counted in what Adam was given."""
        counts = []
        for views in pack.trained(pack.stacks()):
            counts.append(
                [sum(v.rows.numel() for v in views if v.layer == at) for at in range(len(self.base.model.layers))]
            )
        return counts

    def _outcome(
        self,
        spec: RunSpec,
        losses: torch.Tensor,
        said: Predictions,
        held: Predictions | None,
        weights: bytes,
        added: list[int],
        off_equals_base: bool,
        sha256_after: str,
    ) -> Outcome:
        model, labels = self.base.model, self.data.test.labels
        before, after = summarise(self.base.test, labels), summarise(said, labels)
        target, rest = spec.finetune.digit, others(spec.finetune.digit)
        not_finite = (~losses.isfinite()).nonzero().flatten().tolist()
        if not not_finite and not math.isfinite(after.loss):  # the last step's update, which no training loss has seen
            not_finite = [len(losses) - 1]
        return Outcome(
            before=_class_errors(before),
            after=_class_errors(after),
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
            base_sha256_before=self.sha256,
            base_sha256_after=sha256_after,
            base_unchanged=self.sha256 == sha256_after,
            adapter_off_equals_base=off_equals_base,
            adapter_sha256=hashlib.sha256(weights).hexdigest(),
            diverged_at=not_finite[0] + 1 if not_finite else None,
            validation_before=_judge(self.base.validation, self.data.validation),
            validation_after=_judge(held, self.data.validation),
        )


def _judge(said: Predictions | None, split: Split | None) -> ClassErrors | None:
    return None if said is None or split is None else _class_errors(summarise(said, split.labels))


def _class_errors(judged: Evaluation) -> ClassErrors:
    confusion = [list(row) for row in judged.confusion]
    return ClassErrors(judged.accuracy, judged.loss, judged.counts, judged.errors, judged.error_rates, confusion)


def _predictions_file(before: Predictions, after: Predictions) -> bytes:
    """Class and confidence of every test image before and after, for galleries of mended and broken images."""
    tensors = {
        "before_predicted": before.predicted,
        "before_confidence": before.confidence.half(),
        "predicted": after.predicted,
        "confidence": after.confidence.half(),
    }
    content: bytes = save(tensors)
    return content
