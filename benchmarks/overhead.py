"""python benchmarks/overhead.py DIR [FEW MANY]

What a job of a sweep costs besides its training, and whether memory grows with the number of jobs: sweeps of a tiny
model, of FEW and of MANY jobs (default 200 and 1000) of one step each. First every job trains, then the same sweeps
find every result in the store. The difference of two sweeps, divided by that of their jobs, is what a job costs:

- seconds on the clock: with training, these hold a tiny job's step and its evaluation on 10,000 images
- the CPU seconds of the launching process alone, user and system, all of its threads: a job's checks, its folder, its
  result, handing it to the processes that record it. Those processes and the forks that train are not in it. Start and
  end are the same in both sweeps, so they cancel out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

folder = Path(sys.argv[1])
few, many = (int(count) for count in (sys.argv[2:] or ("200", "1000")))


@dataclass(frozen=True)
class Cost:
    """Of one sweep: seconds on the clock, CPU seconds and peak memory (MiB) of its launching process."""

    clock: float
    cpu: float
    peak: float


def sweep(jobs: int, stored: bool) -> Cost:
    """Run a sweep whose results are in the store, or none of them."""
    if not stored:
        shutil.rmtree(folder / "store" / "results", ignore_errors=True)
    command = [sys.executable, "-m", "lora_exp", "-m", "model=tiny", "data.limit=2000", "finetune.steps=1"]
    command += ["finetune.digit=range(0,10)", f"finetune.seed=range(0,{jobs // 10})", "store.folder=store"]
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    # The ended process stays until `wait`, so that its own CPU time can be read: without that of its children.
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        status = Path(f"/proc/{child.pid}/status").read_text()
        peak = max(peak, *(float(line.split()[1]) / 1024 for line in status.splitlines() if "VmRSS" in line), 0.0)
        time.sleep(0.2)
    clock = time.perf_counter() - started
    user, system = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    assert child.wait() == 0
    return Cost(clock, (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"), peak)


folder.mkdir(parents=True, exist_ok=True)
sweep(10, stored=False)  # prepares data, base and database
for name, stored in (("trained", False), ("stored", True)):
    small = sweep(few, stored)
    large = sweep(many, stored)
    clock, cpu = (1000 * each / (many - few) for each in (large.clock - small.clock, large.cpu - small.cpu))
    print(
        f"{name}: {few} jobs {small.clock:.1f} s, {small.peak:.0f} MiB; {many} jobs {large.clock:.1f} s, "
        f"{large.peak:.0f} MiB; a job {clock:.1f} ms on the clock, {cpu:.1f} ms of the launching process's CPU"
    )
