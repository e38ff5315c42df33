"""`hydra/sweeper=contest`: run the rounds of a contest as ordinary jobs of one sweep, each decided by those before.

What is run follows from the protocol, which is written first, and from results: see `lora_exp.contest`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from lora_exp.config.compose import one_line_errors
from lora_exp.contest.protocol import CONTEST, Protocol
from lora_exp.contest.rounds import FIRST_BASES, Points, judging, rounds, selection
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

WIDTH = 80  # of a plan

if TYPE_CHECKING:
    from lora_exp.sweeps.plan import Plan
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
    surely, widening = _sizes(protocol, tried)
    if (most := surely + protocol.widenings * widening) > MAX_JOBS:
        raise LoraExpError(
            f"a contest of up to {most:,} jobs, {surely:,} without contest.widenings={protocol.widenings}: a sweep can "
            f"have {MAX_JOBS:,}"
        )
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
        returns += launcher.launch(jobs[begin:], initial_job_idx=begin)
        results = [finished_run(folder / str(at), configs.read(jobs[at])[0]) for at in range(begin, len(jobs))]
        _check_failures(folder, batch, results, returns[begin:])
        for entry, result in zip(batch, results, strict=True):
            score = None if result is None else score_of(result, protocol.measure)
            if score is not None:
                scores[entry] = score
    return returns


def _check_failures(
    folder: Path,
    batch: Sequence[Entry],
    results: Sequence[RunResult | None],
    returns: Sequence[JobReturn],
) -> None:
    """Raise JobsFailed for jobs without a result; one that diverged has one."""
    reasons = [str(returned._return_value) for returned, result in zip(returns, results, strict=True) if result is None]
    if reasons:
        phase = batch[0].phase
        raise JobsFailed(
            f"{len(reasons)} of {len(batch)} jobs of {phase} failed, and nothing is decided without them; "
            f"lora-exp resume {folder} tries them again; the first: {reasons[0]}"
        )


def _sizes(protocol: Protocol, tried: Points) -> tuple[int, int]:
    """How many jobs a contest has without widenings, and how many a widening has."""
    cells = len(protocol.targets) * protocol.seeds
    per_point, arms = cells * len(protocol.selection), len(protocol.arms)
    first = sum(map(len, tried.values())) * per_point
    return first + arms * cells * len(protocol.judging), arms * FURTHER * per_point


def _plan(
    laboratory: Laboratory, configs: JobConfigs, protocol: Protocol, places: Sequence[str], tried: Points
) -> Iterator[str]:
    """The plan of a contest as lines of text: jobs, time and memory of each phase."""
    from lora_exp.sweeps.plan import duration, planned

    def plan_of(entries: Sequence[Entry]) -> Plan:
        return planned(laboratory, [configs.read([*places, *entry.overrides(protocol)])[0] for entry in entries])

    points = len(next(iter(tried.values())))
    middle = {name: own[points // 2] for name, own in tried.items()}
    widening = _sizes(protocol, tried)[1]
    chosen, judged = plan_of(selection(protocol, tried, protocol.selection)), plan_of(judging(protocol, middle))
    bases, others = len(protocol.selection), len(protocol.judging)
    yield from textwrap.wrap(f"a contest of {'; '.join(tried)}; protocol {protocol.sha256[:12]}", WIDTH)
    for what, plan in (
        (f"selection of {points} points on {bases} bases", chosen),
        (f"judging on {others} other bases", judged),
    ):
        yield f"{what}: {plan.counts}"
        yield f"  about {duration(plan.seconds)}, {plan.memory / 2**20:,.0f} MiB at a time"
    if protocol.halving and bases > FIRST_BASES:
        yield f"  half of the points run on {FIRST_BASES} of the bases only, which saves time"
    if protocol.widenings:
        each = (chosen.seconds - chosen.base_seconds) * widening / max(1, chosen.missing)
        time = f", about {duration(each)} each" if chosen.missing else ""
        yield f"at most {protocol.widenings} widening{'s' * (protocol.widenings > 1)} of {widening:,} jobs{time}"
    total, workers = chosen.seconds + judged.seconds, laboratory.executor.workers
    yield f"expected time: about {duration(total)}, without widenings, with {workers} packs at a time"
