"""python -m pytest tests/test_cli.py

The application as its users run it: real processes, real training, real records. The first command is started by an
interpreter of its own, the others by `forkserver.py`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import forkserver
import pytest
from safetensors.numpy import load_file

from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, read
from lora_exp.storage.sweep_folder import read_sweep

QUICK = ("model=tiny", "data.limit=3000", "finetune.steps=20")


def lora_exp(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = forkserver.run(arguments, folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def interpreter(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does: with an interpreter of its own."""
    command = [sys.executable, "-m", "lora_exp", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Path:
    """A working folder with spaces in its name, where the data is prepared already."""
    folder = tmp_path_factory.mktemp("a folder")
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    return folder


def newest(folder: Path, name: str) -> Path:
    return max(folder.glob(f"runs/*/*/{name}"), key=lambda path: path.stat().st_mtime).parent


@pytest.fixture(scope="module")
def run(lab: Path) -> Path:
    done = interpreter(lab, *QUICK, "adapter.rank=3", "finetune.digit=9")
    assert done.returncode == 0, done.stderr
    return newest(lab, RESULT)


@pytest.fixture(scope="module")
def sweep(lab: Path) -> tuple[Path, str]:
    done = lora_exp(lab, "-m", *QUICK, "adapter.rank=1,2", "finetune.digit=3,7", "adapter.alpha=rank")
    return newest(lab, "sweep.json"), done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["adapter.rank=0"]])
def test_help_and_config_and_refusals_answer_at_once(lab: Path, arguments: list[str]) -> None:
    code = 2 if "adapter.rank=0" in arguments else 0
    for _ in range(3):  # the machine may be busy
        started = time.perf_counter()
        assert interpreter(lab, *arguments).returncode == code
        if (took := time.perf_counter() - started) < 8:
            break
    # No speed test: ten times what it takes, so that an import of torch for nothing is noticed.
    assert took < 8


def test_a_run_leaves_its_result_adapter_predictions_figures_and_config(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {RESULT, ADAPTER, PREDICTIONS, ".hydra/config.yaml", ".hydra/overrides.yaml"} <= names
    assert len([name for name in names if name.startswith("figures/") and name.endswith(".png")]) == 3


def test_a_result_tells_where_it_comes_from(run: Path) -> None:
    result = read(run)
    facts = result.provenance
    assert facts["overrides"][-2:] == ["adapter.rank=3", "finetune.digit=9"]
    assert {"torch", "mlflow", "python"} <= set(facts["versions"])
    assert facts["promise"].startswith("same bits") and facts["threads"] >= 1 and "rank: 3" in facts["config"]
    out = result.outcome
    assert out.base_unchanged and out.adapter_off_equals_base
    assert out.base_sha256_before == out.base_sha256_after
    assert sum(out.before.counts) == sum(out.after.counts) == 10_000
    assert out.target_error < out.target_error_before
    assert out.forgetting == out.other_error - out.other_error_before
    assert len(out.loss_curve) == out.steps == 20


def test_two_runs_of_one_config_give_the_same_bits(run: Path, lab: Path) -> None:
    again = lab.parent / "elsewhere"
    again.mkdir(exist_ok=True)
    (again / "cache").mkdir()
    (again / "cache" / "data").symlink_to((lab / "cache" / "data").resolve())
    lora_exp(again, *QUICK, "adapter.rank=3", "finetune.digit=9", "tracking=off", "device.threads=1")
    other = newest(again, RESULT)
    assert read(other).outcome == read(run).outcome
    assert (other / ADAPTER).read_bytes() == (run / ADAPTER).read_bytes()
    assert (other / PREDICTIONS).read_bytes() == (run / PREDICTIONS).read_bytes()


def test_the_same_run_again_is_taken_from_the_store(run: Path, lab: Path) -> None:
    done = lora_exp(lab, *QUICK, "adapter.rank=3", "finetune.digit=9", "tracking=off")
    assert "training base" not in done.stdout + done.stderr
    folder = newest(lab, RESULT)
    assert read(folder).outcome == read(run).outcome
    told = done.stdout.splitlines()
    assert re.search(r"class 9 lora rank 3: balanced accuracy [\d.]+ % -> [\d.]+ %, target error ", told[-3])
    place = folder.relative_to(lab)
    assert told[-2:] == [f"run      {place}", f"next     lora-exp reproduce {place}"]


def test_a_sweep_prints_its_table_and_where_everything_is(sweep: tuple[Path, str], lab: Path) -> None:
    folder, printed = sweep
    assert "multirun_reports" in printed and "lora-exp ui" in printed and "rank" in printed
    [report] = (lab / "multirun_reports").iterdir()
    pages = {"report.md", "report.html", "figures"}
    assert {path.name for path in report.iterdir()} == {"summary.csv", "summary.parquet", *pages}
    assert len(json.loads((folder / "sweep.json").read_text())["jobs"]) == 4


def test_a_sweep_reads_with_a_row_for_every_job_and_its_overrides(sweep: tuple[Path, str]) -> None:
    frame = read_sweep(sweep[0]).frame
    assert list(frame["rank"]) == [1, 1, 2, 2]
    assert list(frame["target"]) == ["3", "7", "3", "7"]
    assert set(frame["status"]) == {"finished"}
    assert (frame["scaling"] == 1).all()
    assert "adapter.rank=2" in frame["overrides"].iloc[3]


def test_the_basic_launcher_gives_the_same_bits_as_packs(sweep: tuple[Path, str], lab: Path) -> None:
    arguments = [*QUICK, "adapter.rank=1,2", "finetune.digit=3,7", "adapter.alpha=rank", "tracking=off"]
    lora_exp(lab, "-m", *arguments, "hydra/launcher=basic", "store.folder=cache/other store")
    basic = newest(lab, "sweep.json")
    for job in range(4):
        assert read(basic / str(job)).outcome == read(sweep[0] / str(job)).outcome
        assert load_file(basic / str(job) / ADAPTER).keys() == load_file(sweep[0] / str(job) / ADAPTER).keys()
        assert (basic / str(job) / ADAPTER).read_bytes() == (sweep[0] / str(job) / ADAPTER).read_bytes()


def test_a_plan_says_what_would_run_and_runs_nothing(sweep: tuple[Path, str], lab: Path) -> None:
    before = set(lab.rglob("runs/**/*")) | set(lab.rglob("results/**/*"))
    done = lora_exp(lab, "-m", "--plan", *QUICK, "adapter.rank=1,64", "finetune.digit=3,4", "adapter.alpha=rank")
    lines = done.stdout.splitlines()
    assert "rank" in lines[0] and "above the smaller side of linear2 (10)" in lines[0]
    assert lines[1] == "4 jobs: 1 in the store already, 3 to run"
    assert lines[2] == "base 784-64-10 on mnist, seed 0: in the store already"
    assert lines[3].startswith("  packs of up to 25 jobs") and "3 jobs, lora, rank 1 to 64, steps 20" in lines[4]
    assert "expected time: about" in lines[-1]
    assert set(lab.rglob("runs/**/*")) | set(lab.rglob("results/**/*")) == before


def test_a_sweep_with_one_bad_job_is_refused_before_anything_runs(lab: Path) -> None:
    before = {path for path in lab.rglob("*") if "runs" in path.parts}
    done = lora_exp(lab, "-m", *QUICK, "finetune.digit=1,12", code=2)
    assert done.stderr.strip().splitlines()[-1].startswith("lora-exp: finetune.digit=12: must be a digit")
    assert {path for path in lab.rglob("*") if "runs" in path.parts} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["adapter.rnk=4"], "adapter.rnk: no such key"),
        (["finetune.digit=12"], "finetune.digit=12: must be a digit"),
        (["finetune.replay=1.5"], "finetune.replay=1.5: must be a share"),
        (["adapter.layers=[conv]"], "adapter.layers=conv: matches no layer; the layers are linear1, linear2"),
        (["device=cuda"], "device=cuda: this machine has none"),
        (["store.folder=/dev/null/store"], "store.folder=/dev/null/store: must be a folder"),
        (["data.root=/dev/null/data"], "data.root=/dev/null/data: must be a folder"),
        (["hydra.run.dir=/dev/null/run"], "/dev/null/run"),
        (["tracking=server", "tracking.uri=http://127.0.0.1:9"], "tracking.uri=http://127.0.0.1:9"),
        (["data=kmnist", "data.root=cache/empty"], "data=kmnist: not in "),
        (["adapter=1"], "Config group override must be"),
        (["hydra.mode=MULTIRUN", "hydra.sweep.dir=."], "hydra.sweep.dir=.: must be a folder of its own"),
        (["finetune.learning_rate=1e-320"], "finetune.learning_rate=1e-320: must be a number above 0"),
        (["adapter.alpha=1e308"], "adapter.alpha=1e+308: must be a number above 0"),
        (["adapter.layers=linear*"], "written as 'adapter.layers=[linear1]'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(lab: Path, arguments: list[str], says: str) -> None:
    if arguments == ["device=cuda"]:
        import torch

        if torch.cuda.is_available():
            arguments, says = ["device=mps"], "device=mps: this machine has none"
    results = len(list(lab.glob("cache/store/results/*/*")))
    done = lora_exp(lab, *QUICK, *arguments, code=2)
    assert "Traceback" not in done.stderr + done.stdout
    [line] = [line for line in done.stderr.splitlines() if line.startswith("lora-exp: ")]
    assert says in line
    assert len(list(lab.glob("cache/store/results/*/*"))) == results


def test_a_diverging_run_is_reported_with_its_step_and_exit_code_1(lab: Path) -> None:
    done = lora_exp(lab, "-m", *QUICK, "finetune.learning_rate=1e-3,1e30", code=1)
    assert "1 of 2 jobs failed" in done.stderr and "step" in done.stderr and "Traceback" not in done.stderr
    frame = read_sweep(newest(lab, "sweep.json")).frame
    assert list(frame["status"]) == ["finished", "diverged"]
    assert frame["target_error"].isna().tolist() == [False, True]
