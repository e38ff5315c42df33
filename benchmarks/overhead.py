"""python benchmarks/overhead.py DIR [FEW MANY]

What a job of a sweep costs besides its training, and whether memory grows with the number of jobs: two sweeps of a
tiny model, FEW and MANY jobs (default 200 and 1000) of one step each. The difference of their times, divided by that
of their jobs, still holds a tiny job's step and its evaluation on 10,000 images, so it is an upper bound.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
few, many = (int(count) for count in (sys.argv[2:] or ("200", "1000")))


def sweep(jobs: int) -> tuple[float, float]:
    """Seconds, and peak memory in MiB."""
    shutil.rmtree(folder / "store" / "results", ignore_errors=True)
    command = [sys.executable, "-m", "lora_exp", "-m", "model=tiny", "data.limit=2000", "finetune.steps=1"]
    command += ["finetune.digit=range(0,10)", f"finetune.seed=range(0,{jobs // 10})", "store.folder=store"]
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            peak = max(peak, *(float(line.split()[1]) / 1024 for line in status.splitlines() if "VmRSS" in line))
        except (OSError, TypeError):
            pass
        time.sleep(0.2)
    assert child.returncode == 0
    return time.perf_counter() - started, peak


sweep(10)  # prepares data, base and database
small, large = sweep(few), sweep(many)
each = 1000 * (large[0] - small[0]) / (many - few)
print(f"{few} jobs {small[0]:.1f} s, {small[1]:.0f} MiB; {many} jobs {large[0]:.1f} s, {large[1]:.0f} MiB")
print(f"{each:.1f} ms a job, its training and evaluation included")
