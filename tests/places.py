"""A working folder in which tests run the application as its users do, and look at what it wrote."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
from forkserver import ROOT, Process, start

from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import DataSpec
from lora_exp.data.prepared import prepare
from lora_exp.storage.sweep_file import SWEEP
from lora_exp.storage.sweep_folder import read_sweep

JOBS = ("adapter.rank=1,2,3,4", "finetune.digit=range(0,10)")
QUICK = ("model=tiny", "data.limit=3000", "base.batch_size=50")
# Runs in every process of a sweep: it lists in the file COMPUTED what is put into the store, and makes jobs of rank 2
# fail in the way that FAULTS names for their digit, as in "3=raise 4=exit".
HOOK = """
import os, signal, sys

def install():
    from lora_exp.training import pack as pack_module
    from lora_exp.storage.store import Store

    tune, put = pack_module.fine_tune, Store.put
    faults = dict(part.split("=") for part in os.environ.get("FAULTS", "").split())

    def faulty(base, jobs, data, *more):
        for job in jobs:
            digits = set(data.labels[job.order.flatten()].tolist())
            fault = faults.get("".join(map(str, digits))) if job.plan.layers[0].rank == 2 else None
            if fault == "raise":
                raise RuntimeError("out of luck")
            if fault == "exit":
                sys.exit(3)
            if fault == "hard_exit":
                os._exit(7)
            if fault in ("SIGSEGV", "SIGKILL"):
                os.kill(os.getpid(), getattr(signal, fault))
        return tune(base, jobs, data, *more)

    def noted(self, kind, key, files, needs=()):
        put(self, kind, key, files, needs)
        with open(os.environ["COMPUTED"], "a") as file:
            file.write(f"{kind} {key}\\n")

    pack_module.fine_tune, Store.put = faulty, noted

# The processes that record runs compute nothing, and are to start as fast as without this.
if "COMPUTED" in os.environ and "lora_exp.sweeps.background" not in sys.orig_argv:
    install()
"""


def data_in(root: Path) -> Callable[[DataSpec], Path]:
    """Where the prepared files of data sets are that lie in `root`."""
    return lambda spec: prepare(spec, DataFolder(str(root), None, str(root)))


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def comparable(folder: Path) -> pd.DataFrame:
    """Return the summary without columns that may differ: times, folders and overrides."""
    table = read_sweep(folder).frame
    return table.drop(
        columns=["folder", "sweep", "overrides", *(name for name in table if name.startswith("seconds_"))]
    )


def same(one: Path, other: Path) -> None:
    """Assert that every number and every tensor of two sweeps are equal."""
    pd.testing.assert_frame_equal(comparable(one), comparable(other), check_exact=True)
    for job in range(len(read_sweep(one).frame)):
        for name in ("adapter.safetensors", "predictions.safetensors"):
            assert (one / str(job) / name).read_bytes() == (other / str(job) / name).read_bytes()


class Place:
    """A working folder: runs commands in it, and reads what they wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.computed = folder / "computed.txt"
        (folder / "sitecustomize.py").write_text(HOOK)

    def start(self, *arguments: str, new_session: bool = False, **environment: str) -> Process:
        paths = [str(self.folder), str(ROOT)]  # this checkout, even if another is installed
        given = {"PYTHONPATH": os.pathsep.join(paths), "COMPUTED": str(self.computed), **environment}
        return start(arguments, self.folder, os.environ | given, new_session=new_session)

    def run(self, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        process = self.start(*arguments, **environment)
        output = process.communicate(timeout=300)
        assert process.returncode == code, output
        return output

    def sweep(self) -> Path:
        [found] = self.folder.glob(f"runs/*/*/{SWEEP}")
        return found.parent

    def last_change(self) -> float:
        """Return when a sweep last wrote its sweep.json; 0 before there is one."""
        return max((path.stat().st_mtime for path in self.folder.glob(f"runs/*/*/{SWEEP}")), default=0.0)

    def statuses(self) -> Counter[str]:
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            return Counter(
                status for (status,) in database.execute("SELECT status FROM runs WHERE lifecycle_stage = 'active'")
            )

    def results_made(self) -> Counter[str]:
        """Count how often each result was put into the store."""
        lines = self.computed.read_text().splitlines() if self.computed.exists() else []
        return Counter(line for line in lines if line.startswith("results "))

    def made_once(self, kind: str = "results") -> int:
        """Assert that no entry was put into the store twice; return how many it holds.

        A process may be killed after it put one there and before it noted that.
        """
        lines = self.computed.read_text().splitlines()
        assert set(Counter(line for line in lines if line.startswith(f"{kind} ")).values()) == {1}, "computed twice"
        return len(list(self.folder.glob(f"cache/store/{kind}/*/*/entry.json")))

    def partial_files(self) -> list[Path]:
        return [*self.folder.glob("cache/store/partial/*"), *self.folder.glob("runs/**/*.tmp")]


def prepared(folder: Path, data_root: Path) -> Place:
    """Return a place in `folder` that shares the data of all tests."""
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    return Place(folder)


def busy(process: Process, name: str, seconds: float) -> psutil.Process:
    """Wait for a descendant of `process` with `name` in its command line that has used so many seconds of CPU time."""
    while True:
        assert process.poll() is None, process.communicate()
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if name in " ".join(child.cmdline()) and sum(child.cpu_times()[:2]) > seconds:
                    return child
            except psutil.Error:
                continue
        time.sleep(0.05)
