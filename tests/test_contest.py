"""python -m pytest tests/test_contest.py

A contest does what its protocol says, decides nothing on the bases by which it chose, and loses nothing when it is
killed. Real processes.
"""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from places import QUICK, Place, prepared, same
from scipy.stats import ttest_1samp

import lora_exp
from lora_exp.contest.comparison import BASE, THRESHOLD
from lora_exp.contest.protocol import CONTEST
from lora_exp.contest.verdict import Verdict, verdict_of
from lora_exp.model.data import ImageData
from lora_exp.storage.sweep_file import VERDICT, read_about
from lora_exp.storage.sweep_folder import read_sweep

TASK = (*QUICK, "finetune.digit=3,5", "finetune.steps=40", "finetune.replay=0.5")
SIZE = ("contest.selection=2", "contest.judging=3", "contest.widenings=1")
ARMS = "adapter=lora,dora,shift"
RATES, TARGETS = 5, 2


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Place:
    """One store for all tests that only look at what a contest found."""
    return prepared(tmp_path_factory.mktemp("lab"), data_root)


@pytest.fixture
def place(tmp_path: Path, data_root: Path, mnist: ImageData) -> Place:
    return prepared(tmp_path, data_root)


def run(place: Place, name: str, *arguments: str, code: int = 0, **environment: str) -> tuple[Path, str]:
    folder = f"hydra.sweep.dir=runs/all/{name}"
    out, err = place.run("contest", ARMS, *TASK, *SIZE, folder, *arguments, code=code, **environment)
    return place.folder / "runs/all" / name, out + err


@pytest.fixture(scope="module")
def whole(lab: Place) -> Path:
    return run(lab, "whole")[0]


@pytest.fixture(scope="module")
def found(whole: Path) -> Verdict:
    return verdict_of(read_sweep(whole))


def test_the_protocol_is_stated_before_anything_runs_and_its_hash_stands_in_the_verdict(
    whole: Path, found: Verdict
) -> None:
    first = min((whole / str(job) / "result.json").stat().st_mtime_ns for job in range(len(read_about(whole)["jobs"])))
    assert (whole / CONTEST).stat().st_mtime_ns < first
    stated = yaml.safe_load((whole / CONTEST).read_text())
    assert [arm["name"] for arm in stated["arms"]] == ["lora", "dora", "shift"]
    assert (stated["selection"], stated["judging"], stated["margin"]) == ([0, 1], [2, 3, 4], 0.3)
    assert read_about(whole)["contest"] == found.protocol.sha256
    assert found.protocol.sha256 in (whole / VERDICT).read_text()


def test_every_arm_gets_the_same_number_of_rates_steps_seeds_and_bases(whole: Path, found: Verdict) -> None:
    frame = read_sweep(whole).frame
    runs = frame.groupby("method")
    assert runs["learning_rate"].nunique().nunique() == 1
    assert runs.size().nunique() == runs["steps"].sum().nunique() == 1
    assert {len(own) for own in found.tried.values()} == {RATES + 2 * found.widened}
    for _, own in runs:
        assert Counter(own["base_seed"])[2] == Counter(own["base_seed"])[4] == TARGETS
    assert frame["seed"].equals(frame["base_seed"])


def outcomes(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The spec and the outcome of each job, as they are on disk."""
    jobs = range(len(read_about(folder)["jobs"]))
    values = [json.loads((folder / str(job) / "result.json").read_text()) for job in jobs]
    return [(one["spec"], one["outcome"]) for one in values]


def balanced(errors: dict[str, Any]) -> float:
    return 100 * float(np.mean(errors["error_rates"]))


def test_each_arm_is_judged_at_the_rate_with_the_least_error_on_the_validation_images_of_other_bases(
    whole: Path, found: Verdict
) -> None:
    for standing in found.standings:
        own = [(spec, out) for spec, out in outcomes(whole) if spec["adapter"]["method"] == standing.arm.method]
        means: dict[float, list[float]] = {}
        for spec, out in own:
            if spec["base"]["seed"] in (0, 1):
                means.setdefault(spec["finetune"]["learning_rate"], []).append(balanced(out["validation_after"]))
        assert set(map(len, means.values())) == {2 * TARGETS}
        best = min(means, key=lambda rate: np.mean(means[rate]))
        assert standing.best.rate == best
        assert {spec["finetune"]["learning_rate"] for spec, _ in own if spec["base"]["seed"] >= 2} == {best}
        ends = {min(means): "lowest", max(means): "highest"}
        assert standing.end == ends.get(best)


def test_differences_are_paired_over_the_judging_bases_and_on_test_images(whole: Path, found: Verdict) -> None:
    by_base: dict[str, dict[int, list[float]]] = {}
    for spec, out in outcomes(whole):
        if spec["base"]["seed"] >= 2:
            after, before = balanced(out["after"]), balanced(out["before"])
            shift = 100 * (1 - out["gains"]["shift"]["balanced_accuracy"])
            for name, value in {"": after, BASE: after - before, THRESHOLD: after - shift}.items():
                by_base.setdefault(f"{spec['adapter']['method']}{name}", {}).setdefault(spec["base"]["seed"], [])
                by_base[f"{spec['adapter']['method']}{name}"][spec["base"]["seed"]].append(value)
    means = {name: np.array([np.mean(own[base]) for base in (2, 3, 4)]) for name, own in by_base.items()}
    chances, mine = [], []
    for standing in found.standings:
        arm = standing.arm.name
        for one in standing.comparisons:
            expected = means[arm] - means["lora"] if one.opponent == "lora" else means[f"{arm}{one.opponent}"]
            np.testing.assert_allclose(one.differences, expected, atol=1e-9)
            assert one.bases == (2, 3, 4)
            chances.append(float(ttest_1samp(expected, 0).pvalue) if np.ptp(expected) > 1e-9 else 1.0)
            mine.append(one.chance)
    assert len(mine) == 8  # each of three with the base and a threshold, two with lora
    holm = np.minimum(np.maximum.accumulate(np.sort(chances) * np.arange(8, 0, -1)), 1)
    np.testing.assert_allclose(np.sort(mine), holm, atol=1e-9)


def test_a_killed_contest_goes_on_to_the_same_bits_and_the_same_verdict(place: Place, lab: Place, whole: Path) -> None:
    arguments = ("contest", ARMS, *TASK, *SIZE, "hydra.sweep.dir=runs/all/whole")
    process = place.start(*arguments)
    while not list(place.folder.glob("cache/store/results/*/*/entry.json")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not list(place.folder.glob("multirun_reports/*/*"))
    folder = place.folder / "runs/all/whole"
    place.run("resume", str(folder))
    same(whole, folder)
    assert (folder / VERDICT).read_bytes() == (whole / VERDICT).read_bytes()
    assert (folder / CONTEST).read_bytes() == (whole / CONTEST).read_bytes()
    place.made_once()


def test_another_executor_comes_to_the_same_bits(place: Place, whole: Path) -> None:
    folder, _ = run(place, "whole", "executor=processes", "executor.workers=2", "tracking=off")
    same(whole, folder)
    assert (folder / VERDICT).read_bytes() == (whole / VERDICT).read_bytes()


def test_a_judged_run_is_reproduced_from_its_folder_alone(lab: Place, whole: Path, found: Verdict) -> None:
    out, _ = lab.run("reproduce", str(whole / str(found.standings[1].job)))
    assert "reproduced: all" in out


def test_another_protocol_is_another_contest(lab: Place, whole: Path) -> None:
    _, text = run(lab, "whole", "contest.margin=0.5", code=2)
    assert "another protocol" in text and "choose another folder" in text


def test_a_protocol_that_was_changed_afterwards_gives_no_verdict(lab: Place, whole: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(whole, tmp_path / "changed")
    text = (changed / CONTEST).read_text()
    (changed / CONTEST).write_text(text.replace("margin: 0.3", "margin: 3.0"))
    _, err = lab.run("report", str(changed), code=2)
    assert "is not the protocol that this contest began with" in err


def test_halving_saves_work_in_selection_alone_and_drops_as_many_points_of_each_arm(lab: Place) -> None:
    folder, _ = run(lab, "halved", "contest.halving=true", "contest.selection=3", "tracking=off")
    frame = read_sweep(folder).frame
    chosen = frame[frame["base_seed"] < 3]
    assert set(chosen[chosen["base_seed"] < 2].groupby("method")["learning_rate"].nunique()) == {RATES + 2}
    last = chosen[chosen["base_seed"] == 2].groupby("method")["learning_rate"].nunique()
    assert set(last) == {3 + 2} and len(last) == 3  # the better half of five, and the widening
    assert verdict_of(read_sweep(folder)).widened == 1  # the second stage of halving is none
    assert frame[frame["base_seed"] >= 3].groupby("method").size().tolist() == [3 * TARGETS] * 3
    found = verdict_of(read_sweep(folder))
    for standing in found.standings:
        tried = {one.point: one for one in found.tried[standing.arm.name]}
        assert len(tried[standing.best].by_base) == 3 and {one.lost for one in tried.values()} == {0}


def test_the_base_of_the_verdict_is_the_same_whichever_runs_an_arm_has_lost(whole: Path, tmp_path: Path) -> None:
    before = verdict_of(read_sweep(whole))
    damaged = shutil.copytree(whole, tmp_path / "whole")
    result = damaged / str(before.standings[2].job) / "result.json"
    values = json.loads(result.read_text())
    values["outcome"] |= {"diverged_at": 3, "gains": None}
    result.write_text(json.dumps(values))
    after = verdict_of(read_sweep(damaged))
    assert after.base == before.base and [one.lost for one in after.standings] == [0, 0, 1]
    assert len(after.standings[2].comparisons[0].differences) == 2


def test_a_result_of_another_job_is_not_counted(whole: Path, tmp_path: Path, lab: Place) -> None:
    swapped = shutil.copytree(whole, tmp_path / "whole")
    (swapped / "0").rename(swapped / "x")
    (swapped / "7").rename(swapped / "0")
    (swapped / "x").rename(swapped / "7")
    _, err = lab.run("report", str(swapped), code=2)
    assert "holds the result of another job" in err


def test_nothing_is_decided_while_jobs_fail_and_resuming_tries_them_again(place: Place, whole: Path) -> None:
    arguments = ("contest", "adapter=lora,dora", "adapter.rank=2", *TASK, "finetune.replay=0", *SIZE)
    # Without replay, so that all images of a batch are of the digit that the fault names.
    out, err = place.run(*arguments, "hydra.sweep.dir=runs/all/faulty", code=1, FAULTS="3=raise")
    assert "nothing is decided without them" in err and "No verdict yet" in out
    folder = place.folder / "runs/all/faulty"
    assert len(read_about(folder)["jobs"]) == 2 * RATES * 2 * TARGETS
    place.run("resume", str(folder))
    assert verdict_of(read_sweep(folder)).standings
    place.made_once()


def test_a_contest_read_in_python_has_its_verdict_and_another_sweep_has_none(whole: Path) -> None:
    read = lora_exp.load_sweep(whole)
    assert read.verdict is not None and [one.arm.name for one in read.verdict.standings] == ["lora", "dora", "shift"]
    assert "compared with the base" in read._repr_html_() and "recommended" not in read._repr_html_()
    assert lora_exp.load_sweep(whole / "0").verdict is None


def test_mlflow_says_what_the_contest_found(lab: Place, whole: Path, found: Verdict) -> None:
    with sqlite3.connect(lab.folder / "mlflow.db") as database:
        rows = database.execute("SELECT value FROM tags WHERE key = 'mlflow.note.content'").fetchall()
        parameters = dict(database.execute("SELECT key, value FROM params WHERE key = 'contest'").fetchall())
    assert any("compared with the base" in text and found.protocol.sha256 in text for (text,) in rows)
    assert parameters == {"contest": found.protocol.sha256}


def test_a_plan_says_jobs_time_and_memory_and_writes_nothing(place: Place) -> None:
    out, _ = place.run("contest", "--plan", ARMS, *TASK, *SIZE)
    assert "60 jobs: 0 in the store already, 60 to run" in out and "18 jobs" in out
    assert "MiB at a time" in out and "expected time: about" in out and "at most 1 widening of 24 jobs" in out
    assert max(map(len, out.splitlines())) <= 80
    assert not (place.folder / "runs").exists() and not (place.folder / "mlflow.db").exists()


def test_arms_of_equal_size_get_the_ranks_that_are_nearest_to_the_reference(lab: Place) -> None:
    arguments = ("adapter.rank=8", "contest.equal=parameters", "tracking=off", "contest.widenings=0")
    folder, _ = run(lab, "sized", *arguments)
    arms = {arm["name"]: arm for arm in yaml.safe_load((folder / CONTEST).read_text())["arms"]}
    lora, dora = arms["lora"]["parameters"], arms["dora"]["parameters"]
    assert abs(dora / lora - 1) < 0.06 and arms["dora"]["overrides"][-1].startswith("adapter.rank=")
    assert "its size is its own" in arms["shift"]["note"]
    frame = read_sweep(folder).frame
    assert dict(frame.groupby("method")["parameters_adapter"].first()) == {
        name: arm["parameters"] for name, arm in arms.items()
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("adapter=lora,none",), "adapter=none: is the base"),
        (("adapter=lora,dora", "finetune.learning_rate=0.1"), "contest.rates"),
        (("adapter=lora,dora", "base.seed=1,2"), "contest.selection"),
        (("adapter=lora,dora", "finetune.steps=10,20"), "can't vary in a contest"),
        (("adapter=lora,dora", "data=mnist,fashion_mnist"), "run a contest for each value"),
        (("adapter.rank=1,4",), "contest.equal=none"),
        (("adapter=lora,dora", "contest.reference=loar"), "did you mean contest.reference=lora"),
        (("adapter=lora,dora", "contest.rates=[1e-3,1e-2]"), "at least 3 different rates"),
        (("adapter=lora,dora", "contest.judging=2"), "contest.judging=2"),
        (("adapter=lora,dora", "contest.measure=target_error"), "one of balanced_error, both_errors"),
        (("adapter=lora,dora", "contest.space={lora:{adapter.init_std:[0.5,1]}}"), "as many points"),
        (("adapter=lora,dora", "contest.space={pissa:{adapter.alpha:[1,2]}}"), "pissa is the method of no arm"),
        (("adapter=lora,dora", "base.epochs=0", "base.weights=x.safetensors"), "x.safetensors"),
        (("adapter=lora,dora", "data.validation=0"), "data.validation=0: a contest"),
        (("adapter=lora,dora", "halving.eta=2"), "contest.halving=true"),
        (("adapter=lora,dora", "adapter.method=pissa"), "would make all arms of adapter=lora,dora one method"),
        (
            ("adapter=lora,dora", "contest.space={lora:{adapter.rank:[1,4]},dora:{adapter.rank:[1,4]}}"),
            "can't be tuned",
        ),
        (("adapter=lora", "contest.space={lora:{adapter.dropout:[0,0.0]}}"), "only 5 of the 10 points of lora"),
        (("adapter=lora", "contest.space={lora:{adapter.layers:[[linear1],[linear2]]}}"), "contest.space"),
        (("adapter=lora,dora", "contest.reference=lora, rank 4"), "must be one value"),
        (("adapter=lora,dora", "contest.selection=99999999999"), "an integer from 2 to 1000"),
        (("adapter=lora,dora", "contest.widenings=99999"), "contest.widenings=99999"),
        (("adapter=lora,dora", "data.validation=5"), "a contest compares errors on validation images"),
        (("adapter=lora,dora", "finetune.digit=3", "finetune.target=3,5"), "two names of one key"),
    ],
)
def test_what_can_not_be_compared_fairly_is_one_line_and_writes_nothing(
    place: Place, arguments: tuple[str, ...], words: str
) -> None:
    out, err = place.run("contest", *arguments, code=2)
    [line] = err.splitlines()
    assert line.startswith("lora-exp: ") and words in line
    assert "Traceback" not in out and not (place.folder / "runs").exists()
