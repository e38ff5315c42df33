"""python benchmarks/attack.py DIR [KILLS]: try to break what is stored, and print what was tried and what held.

Kills: a sweep with long packs runs KILLS times (default 30). Each time one process of its family, chosen at random
(seed 0), is killed at a random moment. Held means: when the launching process is dead, so are all others within
10 s; `resume` ends well; all numbers and tensors have the bits of an undisturbed sweep; MLflow has each job once;
`doctor` finds nothing wrong.
Folders: every command that reads a sweep runs on one that was moved or copied, is read-only or a symbolic link, lost
half of its files, or came from somebody else. Held means: the command ends well, or with one line and exit code 1 or
2; no traceback; nothing appears at the old place; what is somebody else's is not run.
DIR is made; nothing outside of it is written to.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil

import lora_exp

TINY = ["model=tiny", "data.limit=3000", "base.batch_size=50"]
SWEEP = ["-m", *TINY, "adapter.rank=1,4", "finetune.digit=0,1", "finetune.steps=4000", "hydra.sweep.dir=runs/day/time"]
RUNS = Path("runs/day/time")
APP = [sys.executable, "-m", "lora_exp"]


def lora(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*APP, *arguments], cwd=folder, env=environment(folder), capture_output=True, text=True)


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"XDG_STATE_HOME": str(folder.parent / "state")}


def place(root: Path, name: str) -> Path:
    """An empty working folder that shares the prepared data."""
    folder = root / name
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "data").symlink_to(root / "data")
    return folder


def bits(folder: Path) -> tuple[pd.DataFrame, list[bytes]]:
    """The numbers and the tensors of a sweep, without times and places."""
    table = lora_exp.load_sweep(folder / RUNS).frame
    away = [name for name in table if name.startswith("seconds_") or name in ("folder", "sweep", "overrides")]
    names = ("adapter.safetensors", "predictions.safetensors")
    return table.drop(columns=away), [(folder / RUNS / str(job) / n).read_bytes() for job in range(4) for n in names]


def family(process: psutil.Process) -> dict[str, list[psutil.Process]]:
    """The launching process and what it has started, by what they do."""
    found: dict[str, list[psutil.Process]] = {"launching process": [process]}
    for child in process.children(recursive=True):
        is_recorder = any("background" in part for part in child.cmdline())
        found.setdefault("recorder or reporter" if is_recorder else "pack or other fork", []).append(child)
    return found


def killed(folder: Path, moment: float, chance: random.Random) -> tuple[str, list[str]]:
    """Run the sweep, kill one of its processes after `moment` seconds; who it was, and what did not hold."""
    process = psutil.Popen(
        [*APP, *SWEEP], cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(moment)
    if process.poll() is not None:
        return "nobody (it had ended)", []
    members = family(process)
    who = chance.choice(sorted(members))
    everybody = [one for group in members.values() for one in group]
    chance.choice(members[who]).send_signal(signal.SIGKILL)
    wrong = []
    if who == "launching process":
        process.wait()
        _, alive = psutil.wait_procs(everybody, timeout=10)
        wrong += [f"{len(alive)} processes outlived it"] if alive else []
    elif process.wait() not in (0, 1):
        wrong.append(f"exit code {process.returncode}")
    return who, wrong


def after(folder: Path, wanted: tuple[pd.DataFrame, list[bytes]]) -> Iterator[str]:
    """Go on with a sweep; what does not hold then."""
    began = (folder / RUNS / "sweep.json").exists()
    done = lora(folder, "resume", str(RUNS)) if began else lora(folder, *SWEEP)
    if done.returncode != 0:
        yield f"it can't go on: {done.stderr.strip()[-200:]}"
        return
    table, tensors = bits(folder)
    if not table.equals(wanted[0]) or tensors != wanted[1]:
        yield "other bits"
    with sqlite3.connect(folder / "mlflow.db") as database:
        query = "SELECT name, status FROM runs WHERE lifecycle_stage = 'active'"
        runs = Counter(database.execute(query).fetchall())
    if len(runs) != 5 or set(runs.values()) != {1} or {status for _, status in runs} != {"FINISHED"}:
        yield f"runs in MLflow: {sorted(runs.items())}"
    doctor = lora(folder, "doctor", "--full")
    yield from [line for line in doctor.stdout.splitlines() if line.startswith("WRONG")]


def kills(root: Path, count: int) -> list[tuple[str, str, str]]:
    chance, whole = random.Random(0), place(root, "whole")
    lora(whole, *SWEEP)
    shutil.rmtree(whole)
    whole = place(root, "whole")
    started = time.monotonic()
    assert lora(whole, *SWEEP).returncode == 0
    seconds, wanted = time.monotonic() - started, bits(whole)
    tried: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    for number in range(count):
        folder = place(root, f"kill-{number}")
        who, found = killed(folder, chance.uniform(0, seconds), chance)
        tried[who] += 1
        found += after(folder, wanted)
        wrong.setdefault(who, []).extend(f"kill {number}: {line}" for line in found)
        print(f"kill {number}: {who}: {found or 'held'}", file=sys.stderr, flush=True)
        if not found:
            shutil.rmtree(folder)
    return [(f"SIGKILL of the {who}", str(tried[who]), "; ".join(wrong[who]) or "held") for who in sorted(tried)]


def read_only(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command while `folder` can't be written to; to root, only a file system can deny that."""
    quoted = " ".join(f"'{one}'" for one in [*APP, *arguments])
    script = f"mount --bind . . && mount -o remount,bind,ro . . && cd {folder} && exec {quoted}"
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)


def commands(runs: Path) -> list[list[str]]:
    run = str(runs / "1")
    of_run = [["export", run, "--format", "peft", "--out", "out/peft"], ["merge", run, "--out", "out/merged"]]
    of_run += [["register", run, "--name", "digits"], ["reproduce", run], ["sync", run]]
    of_sweep = [["resume", str(runs)], ["sync", str(runs)], ["report", str(runs), "--out", "again"]]
    others = [["report", "--experiment", "lora_exp", "--out", "all"], ["doctor", "--full"], ["relocate"]]
    others += [["store", "list"], ["store", "verify"], ["store", "prune", "--to-size", "5"], [*TINY, "adapter.rank=2"]]
    return [*of_run, *of_sweep, *others]


def folders(root: Path) -> Iterator[tuple[str, str, str]]:
    """Each state of a folder with every command, each on a copy of its own."""
    whole, chance = root / "whole", random.Random(0)
    for state in ("moved", "copied", "read-only", "symbolic link", "half deleted", "somebody else's"):
        wrong, tried = [], commands(RUNS)
        for arguments in tried:
            folder, asked = root / "folder" / "moved", lora
            shutil.rmtree(folder.parent, ignore_errors=True)
            shutil.copytree(whole, folder, symlinks=True)
            if state == "moved":
                whole.rename(root / "away")
            elif state == "read-only":
                asked = read_only
            elif state == "symbolic link":
                folder.rename(folder.parent / "real")
                folder.symlink_to("real")
            elif state == "half deleted":
                files = sorted(path for path in folder.rglob("*") if path.is_file() and "cache/data" not in str(path))
                for path in chance.sample(files, len(files) // 2):
                    path.unlink()
            elif state == "somebody else's":  # whose key is another
                shutil.rmtree(root / "folder" / "state", ignore_errors=True)
                (root / "folder" / "state" / "lora-exp").mkdir(parents=True)
                (root / "folder" / "state" / "lora-exp" / "key").write_bytes(b"x" * 32)
            if state != "somebody else's":
                shutil.copytree(root / "state", root / "folder" / "state")
            done = asked(folder, *arguments)
            name, lines = " ".join(arguments[:2]), done.stderr.strip().splitlines()
            if done.returncode not in (0, 1, 2) or "Traceback" in done.stdout + done.stderr:
                wrong.append(f"{name}: exit code {done.returncode}: {lines[-1:]}")
            if state == "moved":
                wrong += [f"{name}: wrote to the old place"] if whole.exists() else []
                shutil.rmtree(whole, ignore_errors=True)
                (root / "away").rename(whole)
            if state == "somebody else's" and arguments in (["resume", str(RUNS)], ["sync", str(RUNS)]):
                wrong += [] if done.returncode == 2 and "--trust" in done.stderr else [f"{name}: was not refused"]
            print(f"{state}: {name}: {done.returncode} {' '.join(lines[-1:])[:150]}", file=sys.stderr, flush=True)
        yield f"every command on a folder: {state}", str(len(tried)), "; ".join(wrong) or "held"


def main() -> None:
    root, count = Path(sys.argv[1]).absolute(), int((sys.argv[2:] or ["30"])[0])
    (root / "data").mkdir(parents=True)
    rows = [*kills(root, count), *folders(root)]
    print("| tried | times | outcome |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
