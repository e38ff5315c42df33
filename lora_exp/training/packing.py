"""Which jobs train together. Pure: sizes in, packs out; nothing here changes a number of a result.

Jobs of one base that share a batch size may share a pack, whatever else differs; but jobs that train all weights
share no product with others, and keep to themselves. A pack trains on one thread, so there are at least as many packs
as threads, of about equal cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# More jobs in a pack make the frozen products more efficient until the activations leave the cache: packs of
# 17 to 25 were fastest in the reference model, 10 % faster than packs of 10 (docs/performance.md).
FULL_PACK = 25
# A last pack of a few jobs runs at the speed of small products, so fewer are not worth a thread of their own.
SMALL_PACK = 4
# Jobs with weights of their own share no product: packs of 1, 2, 4 and 8 are equally fast within noise
# (docs/performance.md), and one at a time holds least memory.
OWN_WEIGHTS_PACK = 1


@dataclass(frozen=True)
class JobSize:
    """What planning needs to know of a job: `cost` in plain operations that take as long, `memory` in bytes.

    Jobs of equal `shape` are stacked (`AdapterPlan.shape`); `owns_weights` tells that it shares no frozen product.
    """

    batch_size: int
    owns_weights: bool
    shape: tuple[tuple[str, int], ...]
    steps: int
    cost: float
    memory: int


def plan_packs(jobs: Sequence[JobSize], workers: int, memory: int) -> list[list[int]]:
    """Indices of the jobs of each pack, in the order the trainer needs: equal shapes adjacent, longer first.

    `memory` (bytes) bounds what `workers` packs hold at a time; a job that alone exceeds it trains alone.
    """
    packs = []
    for kind in sorted({(job.batch_size, job.owns_weights) for job in jobs}):
        members = [index for index, job in enumerate(jobs) if (job.batch_size, job.owns_weights) == kind]
        # Jobs of similar length together: a pack keeps its size until near its end.
        members.sort(key=lambda index: (-jobs[index].steps, jobs[index].shape, index))
        for pack in _cut([jobs[index] for index in members], workers, memory // max(1, workers)):
            chosen = [members[at] for at in pack]
            packs.append(sorted(chosen, key=lambda i: (jobs[i].shape, -jobs[i].steps, i)))
    return packs


def _cut(jobs: Sequence[JobSize], workers: int, memory: int) -> list[range]:
    """Cut jobs of one kind into runs of about equal cost, none above a full pack or `memory` bytes unless single."""
    full, small = (OWN_WEIGHTS_PACK, 1) if jobs[0].owns_weights else (FULL_PACK, SMALL_PACK)
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
