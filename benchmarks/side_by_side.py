"""python benchmarks/side_by_side.py [--folder DIR] [--ranks 1 2 4 8 16] [--demo-runs 3] [--repeats 1]

The same jobs three ways, in turn, each in processes of its own: rank 1,2,4,8,16 x digits 0 to 9 on the reference
model, batch 10, one pass over the digit, base included. (demo) one process a configuration with its own base,
parametrized layers and DataLoaders, measured on a few configurations and multiplied; (peft) one base, then one PEFT
adapter after another, tensors in memory, with PyTorch's default Adam and once more with fused Adam; (ours) the
command line, with an empty store and once more with the base in the store.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lora_exp

HERE = Path(__file__).parent
DIGITS = tuple(range(10))
DEMO = ((1, 2), (4, 7), (16, 9))  # (rank, digit)


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    # The others run as their users run them: without the arithmetic that this package asks of MKL.
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    return seconds, done.stdout


def demo(folder: Path, ranks: list[int], runs: int) -> tuple[float, dict[tuple[int, int], float]]:
    """Median seconds of a configuration times the number of jobs, and the target errors."""
    seconds, errors = [], {}
    for rank, digit in DEMO[:runs]:
        took, printed = timed([sys.executable, str(HERE / "demo_way.py"), str(folder), str(rank), str(digit)], folder)
        seconds.append(took)
        errors[rank, digit] = json.loads(printed.splitlines()[-1])["target_error"]
        print(f"  demo rank {rank} digit {digit}: {took:.1f} s  {printed.splitlines()[-1]}", flush=True)
    return statistics.median(seconds) * len(ranks) * len(DIGITS), errors


def peft(folder: Path, ranks: list[int], fused: bool) -> tuple[float, float, dict[tuple[int, int], float]]:
    """Seconds with the base, without it, and the target errors."""
    command = [
        sys.executable,
        str(HERE / "peft_way.py"),
        str(folder),
        ",".join(map(str, ranks)),
        *(["--fused"] * fused),
    ]
    took, printed = timed(command, folder)
    found = json.loads(printed.splitlines()[-1])
    return took, took - found["base_seconds"], {(r, d): e for r, d, e in found["errors"]}


def ours(folder: Path, ranks: list[int]) -> tuple[float, float, dict[tuple[int, int], float]]:
    """Seconds with an empty store, with the base in it, and the target errors."""
    seconds = []
    command = [sys.executable, "-m", "lora_exp", "-m", f"adapter.rank={','.join(map(str, ranks))}"]
    command += ["finetune.digit=range(0,10)", "finetune.epochs=1", f"store.folder={folder / 'store'}"]
    for _ in range(2):
        seconds.append(timed(command, folder)[0])
        (folder / "store" / "results").rename(folder / f"results-{time.time_ns()}")
    newest = max(folder.glob("runs/*/*/sweep.json"), key=lambda path: path.stat().st_mtime).parent
    table = lora_exp.load_sweep(newest).frame
    errors = {(int(row["rank"]), int(row["target"])): float(row["target_error"]) for row in table.to_dict("records")}
    return seconds[0], seconds[1], errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="a working folder, kept (default: a temporary one)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--demo-runs", type=int, default=3, choices=(0, 1, 2, 3), help="0 leaves this way out")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    root = (options.folder or Path(tempfile.mkdtemp())).absolute()
    rows: dict[str, list[float]] = {}
    errors = {}
    for repeat in range(options.repeats):
        folder = root / str(repeat)
        folder.mkdir(parents=True)
        # The data are prepared before anything is timed.
        subprocess.run([sys.executable, str(HERE / "prepare.py"), str(folder)], check=True)
        with_base, warm, errors["ours"] = ours(folder, options.ranks)
        rows.setdefault("ours", []).append(with_base)
        rows.setdefault("ours, base in store", []).append(warm)
        print(f"  ours {with_base:.1f} s, with the base in the store {warm:.1f} s", flush=True)
        for name, fused in (("peft", False), ("peft, fused Adam", True)):
            took, alone, errors[name] = peft(folder, options.ranks, fused)
            rows.setdefault(name, []).append(took)
            rows.setdefault(f"{name}, base not counted", []).append(alone)
            print(f"  {name} {took:.1f} s, base not counted {alone:.1f} s", flush=True)
        if options.demo_runs:
            total, errors["demo"] = demo(folder, options.ranks, options.demo_runs)
            rows.setdefault("demo (multiplied)", []).append(total)
    medians = {name: statistics.median(values) for name, values in rows.items()}
    jobs = len(options.ranks) * len(DIGITS)
    print(f"\n{jobs} jobs, seconds, median of n={options.repeats} (demo: median of {options.demo_runs} jobs x {jobs})")
    for name, value in medians.items():
        base = medians["ours, base in store" if "not counted" in name else "ours"]
        print(f"{name:32s} {value:9.1f}   {value / base:6.2f} times ours")
    for name, found in errors.items():
        shared = sorted(set(found) & set(errors["ours"]))
        mean = statistics.mean(found[key] for key in shared)
        own = statistics.mean(errors["ours"][key] for key in shared)
        print(f"target error, mean of the same {len(shared)} jobs: {name} {100 * mean:.2f} %, ours {100 * own:.2f} %")
        if abs(mean - own) > 0.01:
            raise SystemExit(f"{name}: the target errors differ by more than a percentage point")


if __name__ == "__main__":
    main()
