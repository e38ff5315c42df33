"""python benchmarks/scale.py DIR

Whether ten times the jobs take ten times as long: rank 1,2,4,8,16 x digits 0 to 9, one pass over the digit each, with
one seed (50 jobs) and with ten (500 jobs), base in the store. The small sweep is timed before and after the large one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

folder = Path(sys.argv[1])


def sweep(*overrides: str) -> float:
    """Seconds of a whole process; results of earlier sweeps are moved out of the store."""
    results = folder / "store" / "results"
    if results.exists():
        results.rename(folder / f"results-{uuid.uuid4().hex}")
    command = [sys.executable, "-m", "lora_exp", "-m", "adapter.rank=1,2,4,8,16", "finetune.digit=range(0,10)"]
    started = time.perf_counter()
    subprocess.run([*command, *overrides, "store.folder=store"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


sweep("finetune.steps=1")  # prepares data, base and database
small = [sweep("finetune.epochs=1")]
large = sweep("finetune.epochs=1", "finetune.seed=range(0,10)")
small.append(sweep("finetune.epochs=1"))
print(f"50 jobs {', '.join(f'{seconds:.1f}' for seconds in small)} s; 500 jobs {large:.1f} s")
print(f"ratio {large / statistics.mean(small):.2f}")
