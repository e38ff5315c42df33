"""`hydra/sweeper=contest`: run the rounds of a contest as ordinary jobs of one sweep, each decided by those before.

What is run follows from the protocol, which is written first, and from results: see `lora_exp.contest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from lora_exp.config.compose import one_line_errors
from lora_exp.contest.protocol import CONTEST, JUDGING, Protocol
from lora_exp.contest.rounds import Points, judging, rounds, selection
from lora_exp.contest.scores import Entry, Score, score_of
from lora_exp.contest.space import FURTHER, first_points
from lora_exp.errors import JobsFailed, LoraExpError
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_file import note, read_about
from lora_exp.sweeps.contestants import contest_of
from lora_exp.sweeps.job import finished_run, open_laboratory
from lora_exp.sweeps.job_configs import JobConfigs, job_configs
from lora_exp.sweeps.search import check_validation
from lora_exp.sweeps.sweep import MAX_JOBS, open_sweep

if TYPE_CHECKING:
    from lora_exp.training.laboratory import Laboratory


def contest(context: HydraContext, config: DictConfig, launcher: Launcher, given: list[str]) -> Sequence[JobReturn]:
    """Compare the adapters that the overrides in `given` sweep, as the config group `contest` says; report a verdict.

    Raises LoraExpError, before anything is computed, for arms, a space or a job that are not valid, and JobsFailed when
    jobs fail: nothing is decided without them. Jobs that diverge are results of a contest, and no failures.
    """
    with one_line_errors():
        overrides = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
    configs = job_configs(context.config_loader, config)
    protocol, places, first, settings = contest_of(context, config, overrides)
    laboratory = open_laboratory(settings)
    check_validation(laboratory, first.data, "a contest")
    tried = {arm.name: first_points(arm) for arm in protocol.arms}
    begin, end, widening = _sizes(protocol, tried)
    if begin + end + protocol.widenings * widening > MAX_JOBS:
        raise LoraExpError(f"a contest of {begin + end:,} jobs and more: a sweep can have {MAX_JOBS:,}")
    if settings.sweep.plan:
        print("\n".join(_plan(laboratory, configs, protocol, places, tried)))
        return []
    with open_sweep(config, [], first, settings, contest=protocol):
        return _run(protocol, places, launcher, configs, Path(str(config.hydra.sweep.dir)))


def _run(
    protocol: Protocol, places: Sequence[str], launcher: Launcher, configs: JobConfigs, folder: Path
) -> list[JobReturn]:
    """Run round after round; return what each job returned. `places` are overrides of all that are no part of it.

    Raises LoraExpError when the jobs in the folder are not those of the protocol, and JobsFailed when jobs fail.
    """
    scores: dict[Entry, Score] = {}
    jobs: list[list[str]] = []
    returns: list[JobReturn] = []
    recorded = read_about(folder)["jobs"]
    for batch in rounds(protocol, scores):
        begin = len(jobs)
        jobs += [[*places, *entry.overrides(protocol)] for entry in batch]
        if recorded[begin : len(jobs)] != jobs[begin : begin + len(recorded[begin : len(jobs)])]:
            raise LoraExpError(f"{folder}: holds jobs that do not follow from its {CONTEST}; choose another folder")
        if len(recorded) < len(jobs):
            note(folder, jobs=jobs)
        for own in _launches(protocol, batch):
            at = begin + own.start
            returns += launcher.launch(jobs[at : begin + own.stop], initial_job_idx=at)
        results = [finished_run(folder / str(at), configs.read(jobs[at])[0]) for at in range(begin, len(jobs))]
        _check_failures(folder, protocol, batch, results, returns[begin:])
        for entry, result in zip(batch, results, strict=True):
            score = None if result is None else score_of(result, protocol.measure)
            if score is not None:
                scores[entry] = score
    return returns


def _launches(protocol: Protocol, batch: Sequence[Entry]) -> Iterator[range]:
    """The jobs of a round that are launched together: all, or with halving those of an arm, which compete."""
    if not protocol.halving:
        yield range(len(batch))
        return
    begin = 0
    for _, own in groupby(batch, key=lambda entry: entry.arm):
        end = begin + len(list(own))
        yield range(begin, end)
        begin = end


def _check_failures(
    folder: Path,
    protocol: Protocol,
    batch: Sequence[Entry],
    results: Sequence[RunResult | None],
    returns: Sequence[JobReturn],
) -> None:
    """Raise JobsFailed for jobs without a result, unless halving stopped them: those returned an error rate."""
    reasons = [
        str(returned._return_value)
        for returned, result in zip(returns, results, strict=True)
        if result is None and returned.status is not JobStatus.COMPLETED
    ]
    if reasons:
        phase = batch[0].phase
        raise JobsFailed(
            f"{len(reasons)} of {len(batch)} jobs of {phase} failed, and nothing is decided without them; "
            f"lora-exp resume {folder} tries them again; the first: {reasons[0]}"
        )


def _sizes(protocol: Protocol, tried: Points) -> tuple[int, int, int]:
    """How many jobs the first selection, judging and a widening have."""
    cells = len(protocol.targets) * protocol.seeds
    per_point, arms = cells * len(protocol.selection), len(protocol.arms)
    return sum(map(len, tried.values())) * per_point, arms * cells * len(protocol.judging), arms * FURTHER * per_point


def _plan(
    laboratory: Laboratory, configs: JobConfigs, protocol: Protocol, places: Sequence[str], tried: Points
) -> Iterator[str]:
    """The plan of a contest as lines of text: jobs, time and memory of each phase."""
    from lora_exp.sweeps.plan import duration, planned

    _, _, widening = _sizes(protocol, tried)
    middle = {name: points[len(points) // 2] for name, points in tried.items()}
    points = len(next(iter(tried.values())))
    parts = {
        f"selection, {points} points an arm on {len(protocol.selection)} bases": selection(protocol, tried),
        f"{JUDGING} on {len(protocol.judging)} other bases": judging(protocol, middle),
    }
    yield f"a contest of {', '.join(arm.name for arm in protocol.arms)}; protocol {protocol.sha256[:12]}"
    total = rate = 0.0
    for what, entries in parts.items():
        plan = planned(laboratory, [configs.read([*places, *entry.overrides(protocol)])[0] for entry in entries])
        total += plan.seconds
        if plan.missing:
            rate = max(rate, plan.seconds / plan.missing)
        yield f"  {what}: {plan.counts}, about {duration(plan.seconds)}, {plan.memory / 2**20:,.0f} MiB at a time"
    if protocol.widenings:
        yield (
            f"  each widening, of at most {protocol.widenings}: {widening:,} jobs, at most {duration(rate * widening)}"
        )
    workers = laboratory.executor.workers
    yield f"expected time: about {duration(total)}, without widenings, with {workers} packs at a time"
