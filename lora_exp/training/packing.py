"""Which jobs train together, by their cost and memory. Nothing here changes a number of a result.

Jobs of one base and batch size may share a pack. Jobs that train all weights share no product with others, so they have
packs of their own. A pack trains on one thread, so there are at least as many packs as threads, of about equal cost.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lora_exp.adapters.plan import AdapterPlan
from lora_exp.model.architecture import Network
from lora_exp.numerics import MIN_ROWS

# More jobs make the frozen products more efficient until the activations no longer fit the cache. On the reference
# model packs of 17 to 25 were fastest, 10 % faster than packs of 10 (docs/performance.md).
FULL_PACK = 25
# A job of so many rows and multiplications fills a product well: then smaller packs are as fast, and need less memory.
MANY_ROWS, MUCH_WORK, FULL_PACK_OF_MANY = 100, 500_000, 8
# Fewer jobs are not worth a thread of their own: their products are small and slow.
SMALL_PACK = 4
# Jobs that train all weights share no product. Packs of 1, 2, 4 and 8 are equally fast within noise
# (docs/performance.md), and packs of 1 need least memory.
OWN_WEIGHTS_PACK = 1
# Speed of training relative to evaluation, which runs at the speed of plain products: small batches and Adam cost time
# (docs/performance.md).
TRAINING_EFFICIENCY = 0.72
# Adam moves a weight, its gradient and its moments through memory. That takes as long as this many operations.
OPERATIONS_PER_WEIGHT = 200


@dataclass(frozen=True)
class JobSize:
    """A job as packing sees it: `cost` in floating-point operations of plain products, `memory` in bytes.

    Jobs of equal `shape` are stacked (`AdapterPlan.shape`). With `owns_weights` a job shares no frozen product. `rows`
    are those that a job brings to the product of a layer in a step, `work` its multiplications there (medians of the
    layers).
    """

    batch_size: int
    owns_weights: bool
    shape: tuple[tuple[str, int], ...]
    steps: int
    cost: float
    memory: int
    rows: int = 1
    work: float = 0.0

    @property
    def full_pack(self) -> int:
        """So many jobs like this fill a pack: more would not be faster."""
        if self.owns_weights:
            return OWN_WEIGHTS_PACK
        return FULL_PACK_OF_MANY if self.rows >= MANY_ROWS and self.work >= MUCH_WORK else FULL_PACK


def job_size(plan: AdapterPlan, network: Network, batch_size: int, steps: int, test_images: int) -> JobSize:
    """Estimate cost and memory of a job: two products per frozen weight and training step, one in the evaluation."""
    frozen = factors = own = stored = 0
    activations, largest = network.activations, 0
    first = next((at for at, layer_plan in enumerate(plan.layers) if layer_plan.update != "none"), len(plan.layers))
    constant = network.constant(first)
    for at, (layer, layer_plan) in enumerate(zip(network.layers, plan.layers, strict=True)):
        # What is computed once for all jobs needs no gradient either.
        frozen += layer.positions * layer.outputs * layer.inputs if at >= constant else 0
        factor_size = layer_plan.padded * (layer.outputs + layer.inputs)
        factors += layer.positions * factor_size
        own += layer_plan.parameters(layer.outputs, layer.inputs) if layer_plan.owns_product else 0
        stored += factor_size
        activations += layer.positions * (layer.outputs + layer.inputs)
        largest = max(largest, layer.positions * (layer.outputs + layer.inputs))
    products = 2.0 * batch_size * (2 * frozen + 3 * factors)
    training = steps * (products / TRAINING_EFFICIENCY + OPERATIONS_PER_WEIGHT * own)
    cost = training + 2.0 * test_images * (frozen + factors)
    # Trained parts, gradients and Adam's two moments; activations and their gradients, or a chunk of the evaluation,
    # whichever is more; logits of the evaluation.
    floats = 4 * (own + stored) + max(2 * batch_size * activations, 3 * MIN_ROWS * largest) + 40 * test_images
    rows = round(batch_size * statistics.median(layer.positions for layer in network.layers))
    work = batch_size * statistics.median(own.positions * own.outputs * own.inputs for own in network.layers)
    return JobSize(batch_size, plan.owns_weights, plan.shape, steps, cost, 4 * floats, rows, work)


def plan_packs(jobs: Sequence[JobSize], workers: int, memory: int) -> list[list[int]]:
    """Return the indices of each pack's jobs, in the order that training needs: equal shapes adjacent, longer first.

    `memory` (bytes) limits `workers` packs together; a job above the limit trains alone.
    """
    packs = []
    for kind in sorted({(job.batch_size, job.owns_weights) for job in jobs}):
        members = [index for index, job in enumerate(jobs) if (job.batch_size, job.owns_weights) == kind]
        # Jobs of similar length are together, so that a pack stays large until near its end.
        members.sort(key=lambda index: (-jobs[index].steps, jobs[index].shape, index))
        for pack in _cut([jobs[index] for index in members], workers, memory // max(1, workers)):
            chosen = [members[at] for at in pack]
            packs.append(sorted(chosen, key=lambda i: (jobs[i].shape, -jobs[i].steps, i)))
    return packs


def _cut(jobs: Sequence[JobSize], workers: int, memory: int) -> list[range]:
    """Cut jobs of one kind into runs of about equal cost; only a single job may exceed `memory` bytes."""
    full, small = jobs[0].full_pack, 1 if jobs[0].owns_weights else SMALL_PACK
    rounds = max(1, -(-len(jobs) // (full * workers)))
    while True:
        count = max(1, min(rounds * workers, -(-len(jobs) // small) if rounds == 1 else len(jobs)))
        runs = _equal_cost(jobs, count)
        if count >= len(jobs) or all(sum(jobs[at].memory for at in run) <= memory for run in runs):
            return runs
        rounds += 1


def _equal_cost(jobs: Sequence[JobSize], count: int) -> list[range]:
    share = sum(job.cost for job in jobs) / count
    runs: list[range] = []
    start, spent = 0, 0.0
    for at, job in enumerate(jobs):
        spent += job.cost
        left = count - len(runs) - 1
        enough = spent >= share * (len(runs) + 1) * (1 - 1e-9)
        if (enough or len(jobs) - at - 1 == left) and left > 0 and len(jobs) - at - 1 >= left:
            runs.append(range(start, at + 1))
            start = at + 1
    runs.append(range(start, len(jobs)))
    return runs
