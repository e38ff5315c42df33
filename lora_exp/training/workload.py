"""How much work each job of one base is: its adapter's plan, its steps, the images it draws, cost and memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from lora_exp.adapters.plan import AdapterPlan, adapter_plan
from lora_exp.config.spec import RunSpec
from lora_exp.model.architecture import layer_shapes
from lora_exp.model.data import ImageData
from lora_exp.training.evaluation import others
from lora_exp.training.loop import batch_order, step_count
from lora_exp.training.packing import JobSize

# Small batches and Adam make an operation of training cost more time than one of evaluation, which runs at the
# rate of plain products (docs/performance.md).
TRAINING_EFFICIENCY = 0.72
# A step of Adam passes a weight, its gradient and its moments through memory: as long as so many plain operations.
OPERATIONS_A_WEIGHT = 200


class Workload:
    """The jobs of one base, before anything is trained."""

    def __init__(self, specs: Sequence[RunSpec], data: ImageData) -> None:
        """Raises LoraExpError when a pattern of the adapter matches no layer."""
        self.data = data
        self.layers = layer_shapes(specs[0].model)
        self.plans: dict[RunSpec, AdapterPlan] = {
            spec: adapter_plan(spec.adapter, self.layers, spec.finetune.seed) for spec in specs
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
        plan, batch = self.plans[spec], spec.finetune.batch_size
        frozen = factors = own = activations = 0
        for at, (layer, done) in enumerate(zip(self.layers, plan.layers, strict=True)):
            weights = layer.outputs * layer.inputs
            # The first layer's frozen product is computed once for all jobs, and nothing needs its gradient.
            frozen += layer.places * weights if at > 0 or layer.convolution is not None else 0
            factors += layer.places * done.padded * (layer.outputs + layer.inputs)
            own += done.parameters(layer.outputs, layer.inputs) if done.update == "dense" else 0
            activations += layer.places * (layer.outputs + layer.inputs)
        stored = own + sum(
            done.padded * (a.outputs + a.inputs) for a, done in zip(self.layers, plan.layers, strict=True)
        )
        steps, judged = self.steps(spec), len(self.data.test.labels)
        trained = steps * (2.0 * batch * (2 * frozen + 3 * factors) / TRAINING_EFFICIENCY + OPERATIONS_A_WEIGHT * own)
        cost = trained + 2.0 * judged * (frozen + factors)
        # Factors, gradients and Adam's two moments; activations and their gradients; the evaluation's logits.
        floats = 4 * stored + 2 * batch * activations + 40 * judged
        return JobSize(batch, plan.owns_weights, plan.shape, steps, cost, 4 * floats)
