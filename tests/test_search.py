"""python -m pytest tests/test_search.py

A search finds what a whole grid would, by validation images alone, and loses nothing when it is killed. Real processes.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from optuna.trial import FrozenTrial, TrialState
from places import QUICK, Place, prepared
from scipy.stats import norm

from lora_exp.__main__ import main
from lora_exp.config.settings import OBJECTIVES, SAMPLERS, SearchSettings
from lora_exp.errors import LoraExpError
from lora_exp.model.data import ImageData
from lora_exp.storage.result import read
from lora_exp.storage.sweep_file import read_about
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.storage.table import unbeaten
from lora_exp.sweeps.search_space import Choice, Interval, Range, Space, parse_space
from lora_exp.sweeps.study import Study

SEARCH = ("-m", "hydra/sweeper=optuna")
TASK = (*QUICK, "data.validation=5000", "finetune.digit=3", "finetune.steps=50", "tracking=off")
RANKS = "1,2,4,8"
RATES = "1e-5,3e-5,6e-5,1e-4,2e-4,4e-4,8e-4,16e-4"
SPACE = (f"adapter.rank=choice({RANKS})", f"finetune.learning_rate=choice({RATES})")
OPEN = ("adapter.rank=choice(1,2,4,8)", "finetune.learning_rate=tag(log,interval(1e-5,1e-3))")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Place:
    """One store for all tests that only look at what a search finds."""
    return prepared(tmp_path_factory.mktemp("lab"), data_root)


@pytest.fixture
def place(tmp_path: Path, data_root: Path, mnist: ImageData) -> Place:
    return prepared(tmp_path, data_root)


def run(place: Place, name: str, *arguments: str, code: int = 0) -> tuple[Path, str]:
    out, err = place.run(*SEARCH, *TASK, f"hydra.sweep.dir=runs/all/{name}", *arguments, code=code)
    return place.folder / "runs/all" / name, out + err


def study_of(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db").trials


def agrees(folder: Path, trials: int) -> None:
    """Every job has one trial and every trial one job, with the same settings and the numbers of its result."""
    told, jobs = study_of(folder), read_about(folder)["jobs"]
    assert len(told) == len(jobs) == trials
    assert [trial.user_attrs["job"] for trial in told] == list(range(trials))
    assert (read_sweep(folder).frame["status"] == "finished").all()
    for trial, overrides in zip(told, jobs, strict=True):
        assert trial.state is TrialState.COMPLETE
        assert overrides[-len(trial.params) :] == [f"{key}={value}" for key, value in trial.params.items()]
        assert trial.values == read(folder / str(trial.number)).objectives(["both_errors"])


@pytest.fixture(scope="module")
def grid(lab: Place) -> pd.DataFrame:
    """All 32 settings: what each has for the sum of both errors on the validation images, and its standard error."""
    lab.run("-m", *TASK, f"adapter.rank={RANKS}", f"finetune.learning_rate={RATES}", "hydra.sweep.dir=runs/all/grid")
    rows = []
    for job, overrides in enumerate(read_about(lab.folder / "runs/all/grid")["jobs"]):
        result = read(lab.folder / "runs/all/grid" / str(job))
        held = result.outcome.validation_after
        assert held is not None
        variances = [rate * (1 - rate) / count for rate, count in zip(held.error_rates, held.counts, strict=True)]
        variance = variances[3] + sum(variances[:3] + variances[4:]) / 81
        rows.append((tuple(overrides[-2:]), result.objectives(["both_errors"])[0], variance**0.5))
    return pd.DataFrame(rows, columns=["setting", "error", "deviation"])


def as_good_as_the_best(error: float, grid: pd.DataFrame) -> bool:
    """Whether an error lies within the confidence interval (95 %, one-sided) of the grid's lowest."""
    best = grid.loc[grid["error"].idxmin()]
    return bool(error <= best["error"] + norm.ppf(0.95) * best["deviation"])


def test_a_quarter_of_the_trials_finds_a_setting_as_good_as_the_best_of_the_grid(
    lab: Place, grid: pd.DataFrame
) -> None:
    before = lab.results_made()
    folder, told = run(lab, "quarter", *SPACE, "search.trials=8", "search.batch=2")
    agrees(folder, 8)
    found = min(study_of(folder), key=lambda trial: trial.values[0])
    assert as_good_as_the_best(found.values[0], grid)
    assert f"Search: job {found.number} has the lowest sum of both errors of 8 finished trials" in told
    assert lab.results_made() == before, "what the store had was computed again"
    report = (lab.folder / "multirun_reports" / "all-quarter" / "report.md").read_text()
    assert "## Search" in report and "Sampler tpe, seed 0; 8 of 8 trials, in batches of 2" in report
    assert "The test set played no part in the choice" in report and "test: forgetting (points)" in report


def searched(
    space: Space, settings: SearchSettings, value: Callable[[dict[str, Any]], float], file: Path | None = None
) -> list[dict[str, Any]]:
    """The settings that a search tries, by batches, where `value` says what comes of each."""
    study = Study(file, space, settings)
    tried: list[dict[str, Any]] = []
    while len(tried) < settings.trials:
        while len(study.jobs()) < len(tried) + (settings.batch or 1):
            study.ask()
        for job, overrides in enumerate(study.jobs()[len(tried) :], len(tried)):
            tried.append(dict(override.split("=") for override in overrides))
            study.tell(job, [value(tried[-1])])
    return tried


def test_tpe_does_so_from_nine_of_ten_seeds_at_least(grid: pd.DataFrame) -> None:
    errors = dict(zip(grid["setting"], grid["error"], strict=True))
    space = parse_space(OverridesParser.create().parse_overrides(list(SPACE)))

    def error_of(values: dict[str, Any]) -> float:
        return float(errors[tuple(f"{key}={value}" for key, value in values.items())])

    hits = 0
    for seed in range(10):
        tried = searched(space, SearchSettings(trials=8, batch=2, seed=seed), error_of)
        hits += as_good_as_the_best(min(map(error_of, tried)), grid)
    assert hits >= 9, hits


BOWL = Space(("a=1",), (Interval("x", 0.0, 10.0), Interval("y", 1e-4, 1.0, log=True), Choice("z", ("0", "3"))))


def bowl(values: dict[str, Any]) -> float:
    return abs(float(values["x"]) - 7) + abs(math.log10(float(values["y"])) + 3) + float(values["z"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_asks_by_its_seed_and_goes_on_from_the_file_as_if_nothing_had_happened(
    sampler: str, tmp_path: Path
) -> None:
    space = BOWL if sampler != "grid" else Space((), (Range("x", tuple(range(10))), Choice("y", ("1", "2", "3"))))
    value = bowl if sampler != "grid" else lambda values: float(values["x"])
    settings = SearchSettings(trials=24, batch=6, sampler=sampler, seed=3)
    whole = searched(space, settings, value)
    assert whole == searched(space, settings, value)
    assert whole != searched(space, dataclasses.replace(settings, seed=4), value)
    # Another process, by the file: after a whole batch, within one that is being asked, and within one being told.
    file = tmp_path / "a folder?" / "study.db"
    file.parent.mkdir()
    searched(space, dataclasses.replace(settings, trials=6), value, file)
    Study(file, space, settings).ask()
    study = Study(file, space, settings)
    for _ in range(5):
        study.ask()
    study.tell(6, [value(whole[6])])
    study = Study(file, space, settings)
    assert (study.finished(), len(study.jobs())) == (7, 12)
    for job in range(7, 12):
        study.tell(job, [value(whole[job])])
    study = Study(file, space, settings)
    for _ in range(6):
        study.ask()
    assert [dict(override.split("=") for override in job) for job in study.jobs()] == whole[:18]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_samplers_that_learn_end_lower_than_chance(sampler: str) -> None:
    lowest: dict[str, float] = {}
    for name in (sampler, "random"):
        found = [
            min(map(bowl, searched(BOWL, SearchSettings(trials=60, batch=6, sampler=name, seed=seed), bowl)))
            for seed in range(5)
        ]
        lowest[name] = sum(found)
    assert lowest[sampler] < lowest["random"]


def test_a_trial_that_failed_is_told_as_such_and_may_succeed_later(tmp_path: Path) -> None:
    file, settings = tmp_path / "study.db", SearchSettings(trials=2, batch=2)
    study = Study(file, BOWL, settings)
    study.ask()
    study.ask()
    study.tell(0, None)
    study.tell(1, [1.0])
    [failed, sound] = study_of(tmp_path)
    assert failed.state is TrialState.FAIL and failed.values is None and sound.state is TrialState.COMPLETE
    again = Study(file, BOWL, settings)
    assert again.finished() == 2 and not again.has_values(0)
    again.tell(0, [2.0])
    again = Study(file, BOWL, settings)
    assert again.has_values(0) and again.finished() == len(again.jobs()) == 2 and again.jobs() == study.jobs()
    assert [trial.values for trial in study_of(tmp_path)] == [None, [1.0], [2.0]]


def test_a_file_that_is_no_study_of_this_space_is_one_line(tmp_path: Path) -> None:
    file, settings = tmp_path / "study.db", SearchSettings(trials=2, batch=2)
    file.write_text("not a database" * 100)
    with pytest.raises(LoraExpError, match=r"study.db: is not the study of this search \(DatabaseError"):
        Study(file, BOWL, settings)
    file.unlink()
    Study(file, BOWL, settings).ask()
    with pytest.raises(LoraExpError, match="is not the study of this search"):
        Study(file, Space((), (Interval("other", 0.0, 1.0),)), settings)


def test_a_search_killed_at_several_moments_ends_as_one_that_was_not(place: Place) -> None:
    given = (*OPEN, "finetune.steps=400", "search.trials=12", "search.batch=4")
    whole, _ = run(place, "whole", *given)
    place.computed.unlink()
    shutil.rmtree(place.folder / "cache" / "store")
    folder = place.folder / "runs/all/killed"
    arguments: list[str] = [*SEARCH, *TASK, "hydra.sweep.dir=runs/all/killed", *given]
    for moment in ("study.db", "1/result.json", "5/.hydra/config.yaml"):
        process = place.start(*arguments)
        while not (folder / moment).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        arguments = ["resume", str(folder)]
    out, _ = place.run(*arguments)
    assert "of 12 finished trials" in out
    agrees(folder, 12)
    assert read_about(folder)["jobs"] == read_about(whole)["jobs"]
    for one, other in zip(study_of(folder), study_of(whole), strict=True):
        assert (one.params, one.values, one.distributions) == (other.params, other.values, other.distributions)
    assert place.made_once() == 12
    assert place.partial_files() == []
    # More trials go on from there.
    run(place, "killed", *given[:-2], "search.trials=14", "search.batch=4")
    agrees(folder, 14)
    assert read_about(folder)["jobs"][:12] == read_about(whole)["jobs"]


def test_a_job_that_fails_is_told_as_failed_and_tried_again_when_the_search_goes_on(place: Place) -> None:
    given = ("adapter.rank=choice(1,2)", "search.sampler=grid", "search.batch=2", "tracking=sqlite")
    arguments = [*SEARCH, *TASK, *given, "finetune.learning_rate=1e-4", "hydra.sweep.dir=runs/all/failing"]
    out, err = place.run(*arguments, code=1, FAULTS="3=raise")
    folder = place.folder / "runs/all/failing"
    assert err.splitlines()[-1].startswith("lora-exp: 1 of 2 jobs failed; the first: target-3_lora_rank-2")
    assert "Search: job" in out and "of 1 finished trials" in out
    assert {trial.state for trial in study_of(folder)} == {TrialState.FAIL, TrialState.COMPLETE}
    assert place.statuses() == {"FINISHED": 2, "FAILED": 1}
    out, _ = place.run("resume", str(folder))
    assert "of 2 finished trials" in out
    states = [trial.state for trial in study_of(folder)]
    assert states.count(TrialState.COMPLETE) == 2 and states.count(TrialState.FAIL) == 1
    assert (read_sweep(folder).frame["status"] == "finished").all()
    assert place.statuses() == {"FINISHED": 3}
    assert set(place.results_made().values()) == {1}


def test_several_objectives_give_a_front(lab: Place, grid: pd.DataFrame) -> None:
    names = ["target_error", "forgetting", "parameters"]
    folder, told = run(lab, "front", *SPACE, f"search.objectives=[{','.join(names)}]", "search.trials=12")
    values = {job: read(folder / str(job)).objectives(names) for job in range(12)}
    assert {trial.number: trial.values for trial in study_of(folder)} == values
    front = unbeaten(values)
    assert len(front) > 1 and f"jobs {', '.join(map(str, front))} are on the Pareto front of target error" in told
    report = (lab.folder / "multirun_reports" / "all-front" / "report.md").read_text()
    rows = report.partition("## Search")[2].partition("\n## ")[0].splitlines()
    assert [int(cell) for row in rows if (cell := row.partition("|")[2].partition("|")[0].strip()).isdigit()] == front


def test_objectives_are_of_the_validation_images(lab: Place, grid: pd.DataFrame) -> None:
    result = read(lab.folder / "runs/all/grid/0")
    before, after = result.outcome.validation_before, result.outcome.validation_after
    assert before is not None and after is not None and sum(after.counts) == 5000
    target, *rest = result.objectives(OBJECTIVES)
    others = [(after.error_rates[digit], before.error_rates[digit]) for digit in range(10) if digit != 3]
    assert target == after.error_rates[3] != result.outcome.target_error
    assert rest[0] == pytest.approx(sum(one - other for one, other in others) / 9)
    assert rest[1] == pytest.approx(target + sum(one for one, _ in others) / 9)
    assert rest[2] == pytest.approx((target + sum(one for one, _ in others)) / 10)
    assert rest[3] == result.outcome.parameters_adapter
    bare = dataclasses.replace(result, outcome=dataclasses.replace(result.outcome, validation_after=None))
    with pytest.raises(ValueError, match="has no errors on validation images"):
        bare.objectives(["both_errors"])


@pytest.fixture
def command(lab: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The command line, in this process: exit code, and the error, or what it prints."""
    state, handlers = copy.deepcopy(Singleton.get_state()), logging.getLogger().handlers[:]
    monkeypatch.chdir(lab.folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def given(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lora-exp", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), (err or out).strip()

    yield given
    Singleton.set_state(state)
    logging.getLogger().handlers[:] = handlers


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search.sampler=gp"], "search.sampler=gp: must be one of tpe, nsga2, cmaes, random, grid, qmc"),
        (["search.objectives=[test_error]"], 'search.objectives=["test_error"]: must be a list of one or several of'),
        (["search.objectives=[forgetting,forgetting]"], "must be a list of one or several of target_error,"),
        (["search.objectives=[]"], "search.objectives=[]: must be a list of one or several of"),
        (["search.trials=0"], "search.trials=0: must be an integer of at least 1"),
        (["search.batch=0"], "search.batch=0: must be null or an integer of at least 1"),
        (["search.foo=1"], "search.foo: no such key; allowed in search: trials, batch, sampler, seed, objectives"),
        (["search.seed=1,2"], "search.seed=1,2: can't be searched; only keys of model, base, adapter, finetune can"),
        (["data.limit=200,300"], "data.limit=200,300: can't be searched; only keys of"),
        (["data.validation=0"], "data.validation=0: must be enough for images of all classes, such as 5000"),
        (["data.validation=2"], "data.validation=2: must be enough for images of all classes, such as 5000"),
        (["adapter.rank=3"], "hydra/sweeper=optuna: needs a space to search, such as adapter.rank=choice(1,2,4)"),
        (["adapter.rank=interval(1,8)"], "adapter.rank=1.0: must be an integer of at least 1"),
        (["adapter.rank=choice(1,0)"], "adapter.rank=0: must be an integer of at least 1"),
        (["adapter.rank=range(3,1)"], "adapter.rank=range(3,1): has no values"),
        (
            ["adapter.rank=tag(big,choice(1,2))"],
            "adapter.rank=tag(big,choice(1,2)): must be written like choice(1,2,4), range(",
        ),
        (["finetune.learning_rate=interval(1,0.1)"], "must go from a number to a larger one"),
        (["finetune.learning_rate=tag(log,interval(0,1))"], "must go from a number to a larger one, above 0"),
        (["search.sampler=grid", OPEN[1]], "search.sampler=grid: needs a choice or a range for each key"),
        (["search.sampler=cmaes"], "search.sampler=cmaes: needs an interval or a range"),
        (
            ["search.sampler=cmaes", "adapter.rank=range(1,9)", "search.objectives=[forgetting,parameters]"],
            "search.sampler=cmaes: takes one of search.objectives",
        ),
        (["+hydra.sweeper.seed=1"], "+hydra.sweeper.seed=1: can't be chosen"),
        (["+hydra.sweeper.params.x=[{}]"], "must be values as on the command line"),
    ],
)
def test_what_cannot_be_searched_is_one_line_before_anything_runs(
    command: Any, lab: Place, arguments: list[str], says: str
) -> None:
    before = {path for path in lab.folder.rglob("*") if "runs" in path.parts}
    code, told = command(*SEARCH, *TASK, "adapter.rank=choice(1,2)", *arguments)
    assert code == 2 and says in told.splitlines()[-1] and told.splitlines()[-1].startswith("lora-exp: ")
    assert {path for path in lab.folder.rglob("*") if "runs" in path.parts} == before


def test_without_the_extra_there_is_one_line_that_says_how_to_get_it(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_exp.sweeps.search.PACKAGES", ("json", "no_such_package"))
    code, told = command(*SEARCH, *TASK, *SPACE)
    assert code == 2
    line = "hydra/sweeper=optuna: needs no_such_package; in the checkout of lora-exp: pip install -e '.[search]'"
    assert told == f"lora-exp: {line}"


@pytest.mark.parametrize("kind", ["search", "grid"])
def test_two_processes_do_not_work_on_one_sweep(command: Any, lab: Place, kind: str) -> None:
    place = f"runs/all/taken-{kind}"
    arguments = {
        "search": [*SEARCH, *TASK, *SPACE, f"hydra.sweep.dir={place}"],
        "grid": ["-m", *TASK, "adapter.rank=1,2", f"hydra.sweep.dir={place}"],
    }[kind]
    held = "from pathlib import Path; from lora_exp.storage.sweep_file import alone_in\n"
    held += f"with alone_in(Path('{place}')):\n print(1, flush=True)\n input()"
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=lab.folder
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        code, told = command(*arguments)
        other.communicate("\n")
    who = rf"process {other.pid} on \S+ works on this sweep; wait until it ends, or end it"
    assert code == 2 and re.fullmatch(rf"lora-exp: \S*{place}: {who}", told)


def test_a_plan_of_a_search_runs_nothing(command: Any, lab: Place) -> None:
    before = {path for path in lab.folder.rglob("*") if "runs" in path.parts}
    code, told = command(*SEARCH, "--plan", *TASK, *SPACE, "search.trials=20")
    assert code == 0
    assert told.splitlines()[0] == "a search of 20 trials by tpe, 4 at a time; the first batch:"
    assert told.splitlines()[1].startswith("4 jobs: ")
    assert {path for path in lab.folder.rglob("*") if "runs" in path.parts} == before


def test_hydra_s_syntax_is_read_as_it_is_meant() -> None:
    given = [
        "model=tiny",
        "adapter=lora,dora",
        "adapter.layers=choice([linear1],['*'])",
        "adapter.rank=tag(log,int(interval(1,64)))",
        "finetune.seed=range(0,3)",
        "finetune.replay=range(0,0.5,0.2)",
        "adapter.dropout=interval(0,0.5)",
    ]
    space = parse_space(OverridesParser.create().parse_overrides(given))
    assert space.fixed == ("model=tiny",)
    assert space.dimensions == (
        Choice("adapter", ("lora", "dora")),
        Choice("adapter.layers", ("[linear1]", "['*']")),
        Interval("adapter.rank", 1, 64, log=True),
        Range("finetune.seed", (0, 1, 2)),
        Range("finetune.replay", (0.0, 0.2, 0.4)),
        Interval("adapter.dropout", 0.0, 0.5),
    )
    for dimension in space.dimensions:
        tried = [dimension.at(unit / 200) for unit in range(201)]
        distribution = dimension.distribution()
        assert all(distribution._contains(distribution.to_internal_repr(value)) for value in tried)
        assert {dimension.text(value) for value in dimension.probes()} <= {dimension.text(value) for value in tried}
        assert all(dimension.at(dimension.unit(value)) == pytest.approx(value) for value in tried if value in ("", 1))
    with pytest.raises(LoraExpError):
        parse_space(OverridesParser.create().parse_overrides(["model=tiny"]))
