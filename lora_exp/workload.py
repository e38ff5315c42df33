"""How much work each job of one base is: its adapter's plan, its steps, the images it draws, cost and memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise

import torch

from lora_exp.adapters import AdapterPlan, adapter_plan
from lora_exp.base_model import layer_names, widths
from lora_exp.data import ImageData
from lora_exp.evaluation import others
from lora_exp.packing import JobSize
from lora_exp.spec import RunSpec
from lora_exp.training import batch_order, step_count

# Small batches and Adam make an operation of training cost more time than one of evaluation, which runs at the
# rate of plain products (docs/performance.md).
TRAINING_EFFICIENCY = 0.72


class Workload:
    """The jobs of one base, before anything is trained."""

    def __init__(self, specs: Sequence[RunSpec], data: ImageData) -> None:
        """Raises SpecError when a pattern of `adapter.layers` matches no layer."""
        self.data = data
        names = layer_names(specs[0].model)
        self.plans: dict[RunSpec, AdapterPlan] = {
            spec: adapter_plan(spec.adapter, names, spec.finetune.seed) for spec in specs
        }
        self._of_classes = functools.cache(data.train.of_classes)

    def steps(self, spec: RunSpec) -> int:
        """Steps of a job."""
        return step_count(spec.finetune, len(self._of_classes(spec.finetune.digit)))

    def order(self, spec: RunSpec) -> torch.Tensor:
        """Which training image stands where: [T, B] int64."""
        digits = spec.finetune.digit
        target, rest = self._of_classes(digits), self._of_classes(others(digits))
        return batch_order(spec.finetune, self.steps(spec), target, rest)

    def size(self, spec: RunSpec) -> JobSize:
        """Cost and memory of a job: two products a frozen weight and step, one when judging."""
        sizes, padded, batch = widths(spec.model), self.plans[spec].padded, spec.finetune.batch_size
        pairs = list(pairwise(sizes))
        # The first layer's frozen product is computed once for all jobs, and nothing needs its gradient.
        frozen = sum(inputs * outputs for inputs, outputs in pairs[1:])
        factors = sum(rank * (inputs + outputs) for rank, (inputs, outputs) in zip(padded, pairs, strict=True))
        steps, judged = self.steps(spec), len(self.data.test.labels)
        trained = 2.0 * steps * batch * (2 * frozen + 3 * factors) / TRAINING_EFFICIENCY
        cost = trained + 2.0 * judged * (frozen + factors)
        # Factors, gradients and Adam's two moments; activations and their gradients; the evaluation's logits.
        floats = 4 * factors + 4 * batch * sum(sizes) + 40 * judged
        return JobSize(batch, padded, steps, cost, 4 * floats)
