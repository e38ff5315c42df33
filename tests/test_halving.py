"""python -m pytest tests/test_halving.py

Successive halving: jobs stop because of their validation errors alone, and the bits of the others don't change.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import SMALL, MakeJob, in_trainer_order
from places import QUICK, Place, comparable, data_in, prepared

from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.settings import HalvingSettings
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.local import LocalExecutor
from lora_exp.executors.worker import trained_into_store
from lora_exp.measures.class_errors import error_of
from lora_exp.model.base import BaseModel
from lora_exp.model.data import ImageData
from lora_exp.storage.result import read
from lora_exp.storage.store import ENTRY, Store
from lora_exp.storage.sweep_file import Stopped
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.training.base import TrainedBase
from lora_exp.training.checkpoint import Checkpoint
from lora_exp.training.evaluation import class_errors, predict_base
from lora_exp.training.executor import Ended, Pack, Work, rung_key
from lora_exp.training.halving import CHECKPOINT, RUNG, HalvingTrainer, keep_rung, rung_files, rungs, select, survivors
from lora_exp.training.laboratory import Laboratory, ResultWork
from lora_exp.training.loop import Progress, TrainingImages, fine_tune
from lora_exp.training.pack import PackTrainer, frozen_cut, plan_jobs

GRID = ("adapter.rank=1,2,4", "finetune.learning_rate=0.0003,0.001,0.003", "finetune.digit=3,4")
HALVED = (*QUICK, "data.validation=500", "halving.eta=3", "hydra.sweep.dir=halved")


def spec(rank: int, digit: int = 3, seed: int = 0) -> RunSpec:
    finetune = FinetuneSpec(target=(digit,), seed=seed)
    return RunSpec(ModelSpec((64,)), DataSpec("mnist"), BaseSpec(), AdapterSpec("lora", rank), finetune)


def test_rungs_grow_by_eta_and_end_before_the_job_does() -> None:
    assert rungs(10, 3, 100) == [10, 30, 90]
    assert rungs(25, 2, 100) == [25, 50]
    assert rungs(10, 1.5, 30) == [10, 15, 22]
    assert rungs(100, 3, 100) == []


def test_those_with_the_lowest_errors_go_on_and_a_diverged_job_only_where_all_did() -> None:
    errors = {spec(1): 0.3, spec(2): math.nan, spec(3): 0.1, spec(4): 0.1, spec(5): 0.2, spec(6): 0.4}
    assert survivors(errors, 3) == [spec(3), spec(4)]
    assert survivors(errors, 6) == [spec(3)]  # the first of equals
    assert survivors(errors, 100) == [spec(3)]
    assert survivors({spec(1): math.nan, spec(2): math.nan}, 2) == [spec(1)]


def test_jobs_compete_with_those_of_their_own_digit_and_seed_only() -> None:
    errors = {spec(r, digit, seed): 0.1 * r + digit for r in (1, 2) for digit in (3, 4) for seed in (0, 1)}
    continuing, stopped = select(errors, 2, "target_error", 10, dict.fromkeys(errors, 100))
    assert set(continuing) == {spec(1, digit, seed) for digit in (3, 4) for seed in (0, 1)}
    assert stopped[spec(2, 4, 1)] == Stopped(10, 100, "target_error", 4.2, 4.1, 2)


def test_of_each_group_the_whole_number_nearest_to_one_in_eta_goes_on_and_at_least_one() -> None:
    counts = [len(survivors({spec(rank): 0.1 for rank in range(1, count + 1)}, 3)) for count in (1, 2, 4, 5, 7, 8)]
    assert counts == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("other", [{"steps": 50}, {"epochs": 1.0}, {"replay": 0.2}], ids=str)
def test_jobs_that_are_trained_on_other_images_or_longer_do_not_compete(other: dict[str, float]) -> None:
    one, two = spec(1), spec(2)
    errors = {one: 0.1, two: 0.2, replace(one, finetune=replace(one.finetune, **other)): 0.3}
    continuing, stopped = select(errors, 3, "target_error", 10, dict.fromkeys(errors, 100))
    assert set(continuing) == set(errors) - {two} and set(stopped) == {two}


def test_a_stopped_job_is_told_the_highest_error_of_those_that_went_on() -> None:
    errors = {spec(rank): 0.1 * rank for rank in (1, 2, 3, 4)}
    _, stopped = select(errors, 2, "target_error", 10, dict.fromkeys(errors, 100))
    assert {job.adapter.rank: why.limit for job, why in stopped.items()} == {3: errors[spec(2)], 4: errors[spec(2)]}


def test_a_job_whose_last_step_diverged_has_no_errors_at_a_rung(small_base: BaseModel, mnist: ImageData) -> None:
    """All its losses are finite: none of them follows the step that broke it."""
    wild, sound = (replace(spec(1), model=SMALL, finetune=FinetuneSpec((3,), learning_rate=r)) for r in (1e38, 1e-3))
    base = TrainedBase(small_base, predict_base(small_base, mnist.test), None, 1)
    jobs = plan_jobs([wild, sound], mnist)
    trainer = PackTrainer(base, mnist, jobs, frozen_cut(base.model, mnist, jobs, None))
    made = [files for _, files in rung_files(trainer, [wild, sound], ["a", "b"], 1, (), None)]
    assert all(bool(Checkpoint.decode(files[CHECKPOINT]).losses.isfinite().all()) for files in made)
    assert [json.loads(files[RUNG])["error_rates"] is None for files in made] == [True, False]


def test_a_rung_is_done_only_when_its_checkpoint_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rung's entry says that a job got there, so a sweep that is killed before it trains to the rung again."""
    store, key, put = Store(tmp_path), "ab" * 32, Store.put
    store.prepare()

    def put_one(self: Store, kind: str, *entry: Any) -> None:
        if list(tmp_path.glob(f"*/*/*/{ENTRY}")):
            raise OSError("the disk is full")
        put(self, kind, *entry)

    monkeypatch.setattr(Store, "put", put_one)
    with pytest.raises(OSError, match="the disk is full"):
        keep_rung(store, key, {CHECKPOINT: b"weights", RUNG: b"errors"})
    assert store.get("checkpoints", key) == {CHECKPOINT: b"weights"} and store.get("rungs", key) is None


def test_rungs_are_compared_with_the_base_on_validation_images_and_jobs_that_end_before_one_go_on(
    small_base: BaseModel, mnist: ImageData, tmp_path: Path
) -> None:
    """All errors are in the store already, so nothing is trained."""
    store = Store(tmp_path)
    store.prepare()
    longer = [replace(spec(rank), model=SMALL) for rank in (1, 2, 3)]
    shorter = [replace(own, finetune=replace(own.finetune, steps=10)) for own in longer]
    for job in longer:
        rates = [0.1 * job.adapter.rank] * 10
        store.put("rungs", rung_key(job.key, 10), {RUNG: json.dumps({"step": 10, "error_rates": rates}).encode()})
    assert mnist.validation is not None
    before = predict_base(small_base, mnist.validation)
    trainer = HalvingTrainer(
        *(
            HalvingSettings(3, 10, "forgetting"),
            TrainedBase(small_base, predict_base(small_base, mnist.test), before, 1),
        ),
        *(mnist, plan_jobs([*longer, *shorter], mnist), lambda: pytest.fail("trains"), lambda _: pytest.fail("trains")),
        *(store, lambda job: job.key, lambda _: [], lambda *_: iter(())),
    )
    short_first = trainer._errors_at(10, dict.fromkeys(longer, 0))
    rest = class_errors(before, mnist.validation.labels).error_of(MNIST.others((3,)))
    assert list(short_first.values()) == pytest.approx([0.1 - rest, 0.2 - rest, 0.3 - rest])
    for job in longer[:1]:
        store.put("rungs", rung_key(job.key, 30), {RUNG: b'{"step": 30, "error_rates": null}'})
        store.put("rungs", rung_key(job.key, 90), {RUNG: b'{"step": 90, "error_rates": null}'})
    reached, stopped = trainer.train([*longer, *shorter])
    assert reached == {longer[0]: 90, **dict.fromkeys(shorter, 0)}
    assert {job: why.step for job, why in stopped.items()} == {longer[1]: 10, longer[2]: 10}


@dataclass
class Here:
    """An executor that trains one pack after another in this process, and counts the steps of their jobs."""

    steps: int = 0
    shares_memory, workers, memory = True, 1, 2**30

    def check(self) -> None:
        """Need nothing."""

    def train(self, packs: deque[Pack], work: Work, progress: Progress) -> Ended:
        while packs:
            pack = packs.popleft()
            work.run(pack, self.count)
            yield pack, None

    def count(self, steps: int) -> None:
        self.steps += steps


def test_no_step_of_a_job_is_trained_twice(tmp_path: Path, data_root: Path, mnist: ImageData, one_thread: None) -> None:
    store, here = Store(tmp_path), Here()
    store.prepare()
    data = DataSpec("mnist", validation=500, limit=1000)
    specs = [replace(spec(rank), data=data, finetune=FinetuneSpec((3,), steps=20)) for rank in (1, 2)]
    laboratory = Laboratory(
        store, data_in(data_root), torch.device("cpu"), 1, here, HalvingSettings(2, 5, "both_errors")
    )
    found = dict(laboratory.run(specs))
    assert sorted(type(files).__name__ for files in found.values()) == ["Stopped", "dict"]
    assert here.steps == 2 * 5 + 15  # both to the first rung, and one from there to its end


ADAPTERS = [
    AdapterSpec("lora", 4),
    AdapterSpec("lora", 4, dropout=0.3),
    AdapterSpec("dora", 2),
    AdapterSpec("pissa", 3),
    AdapterSpec("lora_plus", 2, learning_rate_ratio=8.0),
    AdapterSpec("full"),
    AdapterSpec("bitfit"),
]


@pytest.mark.parametrize("pause", [1, 17])
def test_training_that_paused_has_the_same_bits_as_training_that_did_not(
    small_base: BaseModel, images: TrainingImages, make_job: MakeJob, one_thread: None, pause: int
) -> None:
    # `full` trains all weights: such jobs have packs of their own.
    for adapters in (ADAPTERS[:5], ADAPTERS[5:6], ADAPTERS[6:]):
        finetunes = [FinetuneSpec(target=(at,), seed=at, steps=40 - 5 * at, replay=0.2 * (at % 2)) for at in range(5)]
        jobs = in_trainer_order([make_job(a.used(), f) for a, f in zip(adapters, finetunes, strict=False)])
        whole = fine_tune(small_base, jobs, images)
        short = fine_tune(small_base, [replace(job, order=job.order[:pause]) for job in jobs], images)
        checkpoints = [Checkpoint.decode(checkpoint.encode()) for checkpoint in short.checkpoints()]
        # They go on in packs of their own choice.
        for part in (slice(0, 1), slice(1, None)):
            if jobs[part]:
                resumed = fine_tune(small_base, jobs[part], images, checkpoints=checkpoints[part])
                assert all(map(torch.equal, resumed.losses, whole.losses[part]))
                layers = [layer.shape for layer in small_base.layers]
                ours, theirs = resumed.pack.factors(layers), whole.pack.factors(layers)[part]
                for own, other in zip(ours, theirs, strict=True):
                    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A sweep with halving and the same grid whole, with a store of its own so that nothing is shared."""
    place = Place(tmp_path_factory.mktemp("halving"))
    place.run("-m", *HALVED, *GRID)
    place.run("-m", *QUICK, "data.validation=500", *GRID, "hydra.sweep.dir=whole", "store.folder=other", "tracking=off")
    return place


def test_jobs_that_went_on_have_the_bits_of_the_whole_grid(place: Place) -> None:
    halved, whole = read_sweep(place.folder / "halved").frame, read_sweep(place.folder / "whole").frame
    assert sorted(halved["status"]) == ["finished"] * 2 + ["stopped"] * 16
    for job in halved["job"][halved["status"] == "finished"]:
        assert read(place.folder / "halved" / str(job)).outcome == read(place.folder / "whole" / str(job)).outcome
        ours, theirs = (place.folder / sweep / str(job) / "adapter.safetensors" for sweep in ("halved", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    kept = halved[halved["status"] == "finished"]
    assert sorted(kept["target"]) == ["3", "4"]
    assert whole["status"].eq("finished").all()


@pytest.mark.parametrize(
    "executor",
    [
        ["executor=processes", "executor.workers=2"],
        pytest.param(["executor=ray"], marks=pytest.mark.long),
        pytest.param(["executor=slurm", "executor.cluster=local"], marks=pytest.mark.long),
    ],
    ids=lambda executor: executor[0],
)
def test_every_executor_stops_the_same_jobs_and_makes_the_same_bits(
    place: Place, tmp_path: Path, data_root: Path, executor: list[str]
) -> None:
    elsewhere = prepared(tmp_path, data_root)
    elsewhere.run("-m", *HALVED, *GRID, *executor, "tracking=off")
    ours, theirs = (comparable(own.folder / "halved") for own in (place, elsewhere))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for job in ours["job"][ours["status"] == "finished"]:
        one, other = (own.folder / "halved" / str(job) / "adapter.safetensors" for own in (place, elsewhere))
        assert one.read_bytes() == other.read_bytes()


def test_a_worker_resumes_jobs_from_their_checkpoints(place: Place, tmp_path: Path, data_root: Path) -> None:
    store = Store(Path(shutil.copytree(place.folder / "cache" / "store", tmp_path / "store")))
    device = torch.device("cpu")
    laboratory = Laboratory(store, data_in(place.folder / "cache" / "data"), device, 1, LocalExecutor(1, 0))
    specs = [result.spec for result in read_sweep(place.folder / "halved").results.values()]
    work = ResultWork(laboratory, specs, laboratory.base(specs[0]))
    for begin, stop, steps in ((0, 10, 10), (10, 30, 20), (90, None, 10)):
        made: list[int] = []
        assert trained_into_store(replace(work.task(specs), begin=begin, stop=stop), made.append) is None
        assert sum(made) == steps * len(specs)


def test_losers_are_those_that_shorter_runs_say_on_validation_images(place: Place) -> None:
    """A run of 10 steps is evaluated on validation images too: at the first rung the same error, bit for bit."""
    place.run(
        *("-m", *QUICK, "data.validation=500", *GRID, "finetune.steps=10"),
        *("hydra.sweep.dir=short", "store.folder=other", "tracking=off"),
    )
    errors: dict[str, dict[int, float]] = {}
    for job in range(18):
        result = read(place.folder / "short" / str(job))
        before, after = result.outcome.validation_before, result.outcome.validation_after
        assert before is not None and after is not None
        digit = result.spec.finetune.target
        value = error_of("both_errors", digit, before.error_rates, after.error_rates)
        errors.setdefault(str(digit), {})[job] = value
    stopped = {job: why for job, why in read_sweep(place.folder / "halved").stopped.items() if why.step == 10}
    expected = set()
    for group in errors.values():
        expected |= set(sorted(group, key=lambda job: (group[job], job))[3:])
    assert set(stopped) == expected
    every = {job: error for group in errors.values() for job, error in group.items()}
    assert {job: why.error for job, why in stopped.items()} == {job: every[job] for job in stopped}


def test_the_report_says_what_was_stopped_when_why_and_what_that_saved(place: Place) -> None:
    [page] = place.folder.glob("multirun_reports/halved/report.md")
    text = page.read_text()
    # 18 jobs to step 10, 6 to step 30, 2 to step 90 and on to 100.
    made, whole = 12 * 10 + 4 * 30 + 2 * 100, 18 * 100
    assert f"{made} of {whole:,} job-steps were run, which saved {100 * (1 - made / whole):.1f} %" in text
    rows = re.findall(r"^\| +(\d+) \| +(\d+) \| +(\d+) \| +(\d+) \|$", text, re.MULTILINE)
    assert rows == [("10", "18", "12", "6"), ("30", "6", "4", "2")]
    assert text.count("stopped after 10 of 100 steps: its validation both errors") == 12
    assert "stopped after 10 of 100 steps" in page.with_name("report.html").read_text()


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_a_stopped_job_is_no_failure_and_no_result_in_the_tracker(place: Place) -> None:
    from mlflow import MlflowClient

    assert place.statuses() == {"FINISHED": 3, "KILLED": 16}
    client = MlflowClient(f"sqlite:///{place.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("lora_exp").experiment_id
    runs = client.search_runs([experiment], "tags.status = 'stopped'")
    assert len(runs) == 16
    assert all(run.data.tags["error"].startswith("stopped after") and not run.data.metrics for run in runs)


def test_a_sweep_that_was_killed_goes_on_to_the_same_decisions(place: Place, tmp_path: Path) -> None:
    killed = Place(tmp_path)
    process = killed.start("-m", *HALVED, *GRID)
    while not list(tmp_path.glob("cache/store/rungs/*/*/entry.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    killed.run("resume", "halved")
    ours, theirs = read_sweep(tmp_path / "halved").frame, read_sweep(place.folder / "halved").frame
    same = [name for name in ours if name not in ("folder", "sweep") and not str(name).startswith("seconds_")]
    pd.testing.assert_frame_equal(ours[same], theirs[same])
    assert killed.made_once("rungs") == 18 + 6 + 2
    assert killed.statuses() == {"FINISHED": 3, "KILLED": 16}
    # Once more, with one job lost: it is made again from the rungs, and the others still compete.
    job = int(ours["job"][ours["status"] == "finished"].iloc[0])
    for name in ("result.json", "adapter.safetensors", "predictions.safetensors"):
        (tmp_path / "halved" / str(job) / name).unlink()
    killed.run("resume", "halved")
    pd.testing.assert_frame_equal(read_sweep(tmp_path / "halved").frame[same], theirs[same])


def test_a_diverging_job_is_stopped_and_its_rivals_go_on(place: Place) -> None:
    rates = "finetune.learning_rate=0.001,0.0005,1e30"
    place.run("-m", *HALVED[:-1], rates, "finetune.digit=3", "hydra.sweep.dir=diverging", "tracking=off")
    frame = read_sweep(place.folder / "diverging").frame
    assert frame["status"][2] == "stopped" and "(diverged)" in frame["error"][2]
    assert list(frame["status"]).count("finished") == 1


def test_what_halving_needs_is_said_in_one_line(place: Place) -> None:
    for given, reason in (
        ("halving.eta=3", "halving.eta=3: jobs are judged on validation images, so it needs data.validation above 0"),
        ("halving.eta=1", "halving.eta=1.0: must be null or a number above 1"),
        ("halving.objective=loss", "halving.objective=loss: must be one of target_error, forgetting, both_errors"),
        ("halving.first=0", "halving.first=0: must be an integer of at least 1"),
    ):
        _, err = place.run("-m", *QUICK, given, "finetune.digit=3,4", code=2)
        assert reason in err and len(err.strip().splitlines()) == 1
