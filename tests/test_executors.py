"""python -m pytest tests/test_executors.py

On every executor results are the same bits, and failures, kills and Ctrl-C are handled as on one machine. With real
processes, a real Ray on this machine, and submitit's local executor.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from places import QUICK, Place, busy, free_port, prepared, same

from lora_exp.config.settings import ExecutorSettings
from lora_exp.errors import LoraExpError
from lora_exp.executors.ray import RayPool
from lora_exp.executors.slurm import SlurmPool
from lora_exp.model.data import ImageData
from lora_exp.storage.result import RESULT
from lora_exp.storage.sweep_folder import read_sweep

PROCESSES, RAY = ("executor=processes",), ("executor=ray",)
SLURM = ("executor=slurm", "executor.cluster=local")
LONG = pytest.mark.long
SWEEP = ("-m", *QUICK, "finetune.steps=3000", "adapter.rank=1,2,3,4", "finetune.digit=range(0,4)")


@pytest.fixture
def place(tmp_path: Path, data_root: Path, mnist: ImageData) -> Place:
    return prepared(tmp_path, data_root)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Path:
    """The folder of the same sweep with the local executor."""
    place = prepared(tmp_path_factory.mktemp("local"), data_root)
    place.run(*SWEEP, "tracking=off")
    return place.sweep()


@pytest.mark.parametrize(
    ("executor", "worker", "seconds"),  # of the worker's CPU time, until it has a pack
    [(PROCESSES, "lora_exp.executors.worker", 1.0), pytest.param(SLURM, "submitit.core._submit", 4.0, marks=LONG)],
    ids=["own", "slurm"],
)
def test_a_sweep_whose_worker_is_killed_has_the_bits_of_a_local_one(
    place: Place, local: Path, executor: tuple[str, ...], worker: str, seconds: float
) -> None:
    process = place.start(*SWEEP, *executor)
    busy(process, worker, seconds).kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "retried in smaller packs" in out + err
    same(place.sweep(), local)
    assert place.made_once() == 16
    assert place.statuses() == {"FINISHED": 17}


@LONG
def test_a_sweep_on_ray_has_the_bits_of_a_local_one_and_listens_on_this_machine_only(place: Place, local: Path) -> None:
    # Nothing listens there: a sweep that joined the cluster that its surroundings name would fail.
    process = place.start(*SWEEP, *RAY, RAY_ADDRESS="127.0.0.1:1")
    assert process.poll() is None
    busy(process, "ray::", 1.0)
    heard = {
        port.laddr.ip
        for child in psutil.Process(process.pid).children(recursive=True)
        for port in child.net_connections(kind="inet")
        if port.status == psutil.CONN_LISTEN
    }
    assert heard and heard <= {"127.0.0.1", "::ffff:127.0.0.1"}
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    same(place.sweep(), local)
    assert place.made_once() == 16
    assert place.statuses() == {"FINISHED": 17}


@LONG
def test_nothing_of_ray_outlives_a_killed_sweep(place: Place) -> None:
    process = place.start(*SWEEP, *RAY)
    busy(process, "ray::", 1.0)
    started = psutil.Process(process.pid).children(recursive=True)
    [session] = {
        part.partition("=")[2]
        for child in started
        for part in child.cmdline()
        if part.startswith(("--session-dir=", "--session_dir="))
    }
    assert Path(session).is_dir()
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert started and not alive
    while Path(session).exists():  # what clears it away ends after the last of Ray's processes
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("executor", "fault", "cause"),
    [
        (PROCESSES, "hard_exit", "exit code 7"),
        pytest.param(RAY, "SIGKILL", "its worker was lost (WorkerCrashedError", marks=LONG),
        pytest.param(SLURM, "raise", "RuntimeError: out of luck", marks=LONG),
    ],
    ids=["own", "ray", "slurm"],
)
def test_a_job_that_fails_takes_no_other_with_it(
    place: Place, executor: tuple[str, ...], fault: str, cause: str
) -> None:
    jobs = ("finetune.steps=5", "adapter.rank=1,2", "finetune.digit=3,4")
    err = place.run("-m", *QUICK, *jobs, *executor, code=1, FAULTS=f"3={fault}")[1]
    table = read_sweep(place.sweep()).frame
    [failed] = table[table["status"] == "failed"].to_dict("records")
    assert cause in failed["error"] and "adapter.rank=2 finetune.digit=3" in failed["overrides"]
    assert "1 of 4 jobs failed" in err.splitlines()[-1]
    assert place.statuses() == {"FINISHED": 4, "FAILED": 1}
    assert set(place.results_made().values()) == {1}


@pytest.mark.parametrize(
    "executor", [PROCESSES, pytest.param(RAY, marks=LONG), pytest.param(SLURM, marks=LONG)], ids=["own", "ray", "slurm"]
)
def test_ctrl_c_ends_all_workers_within_five_seconds_and_keeps_what_was_finished(
    place: Place, executor: tuple[str, ...]
) -> None:
    # Two batch sizes, hence packs that wait while others train.
    jobs = ("finetune.steps=2000", "adapter.rank=1,2", "finetune.digit=1,2,3", "finetune.batch_size=10,20,30")
    process = place.start("-m", *QUICK, *jobs, *executor)
    while not list(place.folder.glob(f"runs/*/*/*/{RESULT}")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[1]
    # Five seconds of an idle machine.
    assert time.monotonic() - started < 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert process.returncode == 130, output
    assert f"lora-exp resume {place.sweep()}" in output and "Traceback" not in output
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert workers and not alive
    statuses = place.statuses()
    assert "RUNNING" not in statuses and statuses["FINISHED"] >= len(list(place.sweep().glob(f"*/{RESULT}"))) - 1
    assert len(place.results_made()) < 18, "it was finished before it was interrupted"
    assert place.partial_files() == []


def test_an_extra_that_is_not_installed_is_one_line_with_the_command_that_installs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "ray.py").write_text("raise ImportError('not here')\n")
    err = place.run("-m", *QUICK, "adapter.rank=1,2", "executor=ray", code=2)[1]
    install = "in the checkout of lora-exp: pip install -e '.[ray]'"
    assert err == f"lora-exp: executor=ray: ray can't be loaded (not here); {install}\n"
    assert not (place.folder / "runs").exists()
    ray = RayPool(ExecutorSettings("ray"), "cpu")
    for extra, library, pool in (("ray", "ray", ray), ("slurm", "submitit", slurm())):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(LoraExpError, match=rf"{library} is not installed; .* -e '\.\[{extra}\]'"):
            pool.check()


def test_a_cluster_that_is_not_there_is_one_line_and_nothing_is_computed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    err = place.run("-m", *QUICK, "adapter.rank=1,2", "executor=ray", f"executor.address={address}", code=2)[1]
    assert err.startswith(f"lora-exp: executor.address={address}: no Ray cluster answers") and err.count("\n") == 1
    assert not place.computed.exists() and not (place.folder / "runs").exists()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LoraExpError, match="this machine has no sbatch; start it on a login node"):
        slurm().check()


def slurm() -> SlurmPool:
    return SlurmPool(ExecutorSettings("slurm"), "cpu", 1, Path("jobs"))
