"""python -m pytest tests/test_reproduce.py

Runs of packed sweeps, drawn at random, made again alone in fresh processes; and whatever differs is named.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import forkserver
import pytest
from hydra.core.singleton import Singleton

from lora_exp.commands.differences import differing_bits
from lora_exp.commands.reproduce import reproduce
from lora_exp.config.methods import METHODS
from lora_exp.errors import LoraExpError
from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, read
from lora_exp.storage.sweep_folder import read_sweep

LITTLE = ("data.limit=2000", "finetune.steps=12", "data.root=data")
METHODS_SWEEP = (
    *("model=tiny", "data.validation=100", "base.batch_size=20", "base.seed=0,3", "tracking=off"),
    *("adapter=" + ",".join(METHODS), "adapter.rank=5", "finetune.digit=4,[1,7]", "finetune.replay=0,0.3"),
)
# A preset that is a sweep itself, two of whose runs diverge; and everywhere else where things go, and how.
PRESET_SWEEP = (
    *("experiment=rank_by_digit", "model=cnn_small", "adapter=lora,dora", "adapter.rank=1,9", "adapter.dropout=0,0.2"),
    *("finetune.digit=9", "adapter.alpha=rank", "finetune.learning_rate=1e-3,1e30", "base.digits=[0,1,4,9]"),
    *("store.folder=another store", "report.name=by_digit", "report.folder=other reports", "device.threads=1"),
    *("tracking.uri=sqlite:///runs.db", "tracking.artifacts=artifacts"),
)
TRACKING = ("tracking.uri=sqlite:///runs.db",)

Reproduced = Callable[[Path | str], tuple[int, str]]


class Lab(NamedTuple):
    folder: Path
    methods: Path
    preset: Path


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forkserver.run(arguments, folder)


def content(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Lab:
    """A folder with two packed sweeps."""
    folder = tmp_path_factory.mktemp("a lab")
    (folder / "data").symlink_to(data_root)
    sweeps = {"methods": METHODS_SWEEP, "preset": PRESET_SWEEP}
    with ThreadPoolExecutor(2) as two:
        done = list(
            two.map(lambda name: start(folder, "-m", *LITTLE, *sweeps[name], f"hydra.sweep.dir={name}"), sweeps)
        )
    assert [each.returncode for each in done] == [0, 1], [each.stderr for each in done]
    return Lab(folder, folder / "methods", folder / "preset")


@pytest.fixture
def reproduced(lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Reproduced]:
    """run -> exit code and what is printed when it is reproduced in this process."""
    import torch

    before, threads = copy.deepcopy(Singleton.get_state()), torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(lab.folder)

    def again(run: Path | str) -> tuple[int, str]:
        code = reproduce([str(run)], [])
        return code, capsys.readouterr().out

    yield again
    torch.set_num_threads(threads)
    Singleton.set_state(before)


@pytest.fixture
def run(lab: Lab, tmp_path: Path) -> Path:
    """A copy of a sound run, to be changed."""
    return Path(shutil.copytree(lab.methods / "0", tmp_path / "run"))


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    result = json.loads((run / RESULT).read_text())
    edit(result)
    (run / RESULT).write_text(json.dumps(result))


@pytest.mark.parametrize("drawn", [(3, 2), pytest.param((22, 8), marks=pytest.mark.long)], ids=["five", "thirty"])
def test_runs_drawn_at_random_are_the_same_bits_alone_in_fresh_processes(lab: Lab, drawn: tuple[int, int]) -> None:
    draw = random.Random(0)
    frames = {name: read_sweep(lab.folder / name).frame for name in ("methods", "preset")}
    counts = zip(frames, drawn, strict=True)
    runs = [f"{name}/{job}" for name, many in counts for job in draw.sample(list(frames[name]["job"]), many)]
    assert len(frames["methods"]) == 80 and len(frames["preset"]) == 16
    if len(runs) == 30:
        specs = [read(lab.folder / run).spec for run in runs]
        assert {spec.adapter.method for spec in specs} == set(METHODS)
        assert {spec.base.seed for spec in specs} == {0, 3} and {spec.finetune.replay for spec in specs} == {0, 0.3}
        assert {read(lab.folder / run).diverged for run in runs} == {True, False}

    draw.shuffle(runs)
    before = content(lab.folder)
    with ThreadPoolExecutor(2) as two:
        done = list(two.map(lambda at: start(lab.folder, "reproduce", *runs[at : at + 5]), range(0, len(runs), 5)))
    for each in done:
        assert each.returncode == 0, each.stdout + each.stderr
        assert each.stdout.count("\nreproduced: all ") == each.stdout.count("\nthe environment is the same") == 5
        assert each.stdout.endswith("5 of 5 runs reproduced\n")
    assert content(lab.folder) == before


def test_the_command_is_the_one_that_makes_the_run(lab: Lab, reproduced: Reproduced) -> None:
    _, printed = reproduced(lab.preset / str(read_sweep(lab.preset).frame.query("rank == 9")["job"].iloc[0]))
    [command] = [line for line in printed.splitlines() if line.startswith("lora-exp ")]
    assert "adapter.rank=9" in command and command.endswith("hydra.mode=RUN") and "report." not in command


def test_a_row_of_a_summary_is_enough(lab: Lab, reproduced: Reproduced) -> None:
    summary = lab.folder / "other reports" / "by_digit" / "summary.csv"
    jobs = read_sweep(lab.preset).frame.groupby("status")["job"].last()
    sound, diverged = jobs["finished"], jobs["diverged"]
    for run in (f"{summary}:{sound}", f"{summary.parent}:{diverged}"):
        code, printed = reproduced(run)
        assert code == 0 and "reproduced: all " in printed and "no environment is stored" in printed
    assert reproduced(f"preset:{sound}")[0] == 0
    lines = summary.read_text().splitlines()
    column = lines[0].split(",").index("errors_9")
    cells = lines[1 + sound].split(",")
    assert read_sweep(lab.preset).frame["errors_9"].iloc[sound] == int(cells[column])
    cells[column] = "1234"
    (changed := lab.folder / "changed.csv").write_text("\n".join([*lines[: 1 + sound], ",".join(cells)]))
    code, printed = reproduced(f"{changed}:{sound}")
    assert code == 1 and "not reproduced: 1 of" in printed and "errors_9" in printed and "1234.0" in printed


def test_a_run_in_mlflow_is_found_by_its_id_and_no_run_is_added(lab: Lab) -> None:
    def recorded() -> list[str]:
        with sqlite3.connect(lab.folder / "runs.db") as store:
            query = "select run_uuid from tags where key = 'kind' and value = 'run' order by run_uuid"
            return [name for (name,) in store.execute(query)]

    before = recorded()
    assert len(before) == 16
    done = start(lab.folder, "reproduce", before[0], *TRACKING)
    assert done.returncode == 0 and "Downloading" not in done.stderr, done.stderr
    assert done.stdout.startswith(f"{before[0]}\nlora-exp ") and "reproduced: all " in done.stdout
    assert recorded() == before
    assert not (lab.folder / "mlflow.db").exists()


def test_a_changed_number_is_named(run: Path, reproduced: Reproduced) -> None:
    was = read(run).outcome

    def edit(result: dict[str, Any]) -> None:
        result["outcome"]["target_error"] = 0.125
        result["outcome"]["loss_curve"][7] += 1e-16 + was.loss_curve[7] * 2**-52
        result["outcome"]["after"]["confusion"][3][8] += 1

    change(run, edit)
    code, printed = reproduced(run)
    assert code == 1 and "not reproduced: 3 of" in printed
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    assert rows["target_error"][1:] == ["0.125", str(was.target_error)]
    assert rows["loss_curve[7]"][-1] == str(was.loss_curve[7]) and "first of 1 in 12" in printed
    assert rows["after.confusion[3,"][-2:] == [str(was.after.confusion[3][8] + 1), str(was.after.confusion[3][8])]


@pytest.mark.parametrize("file", [ADAPTER, PREDICTIONS])
def test_one_changed_bit_of_a_tensor_is_named(run: Path, reproduced: Reproduced, file: str) -> None:
    damaged = bytearray((run / file).read_bytes())
    damaged[-1] ^= 1
    (run / file).write_bytes(damaged)
    code, printed = reproduced(run)
    assert code == 1 and "not reproduced: 1 of" in printed
    [row] = [line for line in printed.splitlines() if line.startswith(file)]
    assert "first of 1 in" in row


def test_a_changed_config_is_named_with_the_files_that_say_so(run: Path, reproduced: Reproduced) -> None:
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 12", "steps: 13").replace("threads: null", "threads: 2"))
    code, printed = reproduced(run)
    assert code == 1 and "reproduced by another config" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["finetune.steps", "(.hydra/config.yaml)", "13", "12"] in rows
    assert ["device.threads", "2", "null"] in rows
    change(run, lambda result: result["provenance"]["overrides"].append("finetune.seed=8"))
    code, printed = reproduced(run)
    assert code == 1 and "not reproduced" in printed
    assert "finetune.seed (result.json, config in result.json, .hydra/config.yaml)" in printed


def test_another_environment_is_printed_and_is_no_failure(run: Path, reproduced: Reproduced) -> None:
    def edit(result: dict[str, Any]) -> None:
        result["provenance"]["versions"]["torch"] = "1.0"
        result["provenance"] |= {"mkl_cbwr": "SSE4_2", "threads": 77, "commit": "abc"}

    change(run, edit)
    code, printed = reproduced(run)
    assert code == 0 and "reproduced: all " in printed and "environment and settings differ:" in printed
    rows = {line.split()[0]: line.split()[1] for line in printed.splitlines() if " " in line}
    assert rows["versions.torch"] == "1.0" and rows["mkl_cbwr"] == "SSE4_2"
    assert rows["threads"] == "77" and rows["commit"] == "abc"


def test_a_run_from_elsewhere_finds_its_data_where_it_was_started(
    run: Path, reproduced: Reproduced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reproduced("run")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def remove(run: Path, *names: str) -> None:
    for name in names:
        (run / name).unlink()


def cut(run: Path, name: str) -> None:
    (run / name).write_bytes((run / name).read_bytes()[:300])


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda run: remove(run, RESULT), "has no result.json, so it is not a finished run"),
        (lambda run: remove(run, PREDICTIONS), "has no predictions.safetensors"),
        (lambda run: cut(run, RESULT), "result.json can't be read"),
        (lambda run: cut(run, ADAPTER), "adapter.safetensors or predictions.safetensors can't be read"),
        (lambda run: (run / ".hydra" / "config.yaml").write_text("a: [1"), ".hydra/config.yaml can't be read"),
        (lambda run: (run / ".hydra" / "config.yaml").write_text("a: 1"), ".hydra/config.yaml can't be read"),
        (lambda run: change(run, lambda result: result.pop("outcome")), "result.json can't be read"),
        (lambda run: change(run, lambda result: result["provenance"].pop("overrides")), "result.json can't be read"),
        (
            lambda run: change(run, lambda result: result["provenance"].update(overrides=["adapter=gone"])),
            "its config can't be composed any more: adapter=gone: no such option",
        ),
        (
            lambda run: change(run, lambda result: result["provenance"].update(imported_from="there")),
            "its adapter was imported",
        ),
        (
            lambda run: (remove(run, RESULT), (run / "failure.json").write_text("{}")),
            "failed, so there are no numbers to reproduce",
        ),
    ],
)
def test_what_can_not_be_reproduced_is_one_line(
    run: Path, reproduced: Reproduced, edit: Callable[[Path], object], says: str
) -> None:
    edit(run)
    with pytest.raises(LoraExpError) as refused:
        reproduced(run)
    assert str(refused.value).startswith(f"{run}: ") and says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "nowhere: must be the folder of a run, an MLflow run id, SWEEP:JOB or summary.csv:JOB"),
        ("methods:99", "methods:99: must be the folder of a run"),
        ("methods", "methods: is a sweep; name one of its runs, such as methods/0"),
        ("other reports/by_digit:99", "the summary has no job 99"),
    ],
)
def test_what_is_no_run_is_one_line(reproduced: Reproduced, name: str, says: str) -> None:
    with pytest.raises(LoraExpError, match=f"^.*{says}"):
        reproduced(name)


@pytest.mark.parametrize("tracking", ["tracking.uri=sqlite:///nowhere.db", *TRACKING])
def test_an_unknown_run_id_is_exit_code_2_before_anything_runs(lab: Lab, tracking: str) -> None:
    done = start(lab.folder, "reproduce", "methods/0", "0" * 32, tracking)
    assert done.returncode == 2 and not done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("lora-exp: tracking.uri=sqlite:///") and "0" * 32 in line
    assert not (lab.folder / "nowhere.db").exists()


@pytest.mark.parametrize(
    ("stored", "now", "same"),
    [
        ([1.0, float("nan")], [1.0, float("nan")], True),
        ([float("nan"), 1.0], [1.0, float("nan")], False),
        (0.0, -0.0, False),
        (1, 1.0, False),
        (0.1 + 0.2, 0.3, False),
        (None, None, True),
        (None, 3, False),
        ([[1, 2], [3]], [[1, 2], [3, 4]], False),
        ("abc", "abd", False),
        (True, True, True),
    ],
)
def test_numbers_are_the_same_when_their_bits_are(stored: object, now: object, same: bool) -> None:
    assert (differing_bits({"it": stored}, {"it": now}) == []) is same
    assert differing_bits({"it": stored}, {"it": stored}) == []


def test_what_is_absent_on_one_side_differs() -> None:
    assert differing_bits({"a": 1}, {"b": [1.5, 2]}) == [("a", "1", "absent"), ("b", "absent", "float64 [2]")]
