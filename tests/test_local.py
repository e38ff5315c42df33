"""python -m pytest tests/test_local.py: packs on this machine, in forked processes or in threads."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.local import LocalExecutor
from lora_exp.training.executor import Files, Pack, PackTask, Progress

SPECS = [
    RunSpec(ModelSpec((8,)), DataSpec("mnist"), BaseSpec(), AdapterSpec(), FinetuneSpec((digit,))) for digit in range(5)
]


@dataclass
class Noted:
    """Work that notes when each pack began and ended, reports its step, and fails for digit 3."""

    folder: Path

    def run(self, pack: Pack, progress: Progress) -> None:
        [spec] = pack
        began = time.monotonic()
        time.sleep(0.1)
        progress(1)
        (self.folder / str(spec.finetune.target[0])).write_text(f"{began} {time.monotonic()}")
        if spec.finetune.target == (3,):
            raise RuntimeError("out of luck")

    def task(self, pack: Pack) -> PackTask:
        raise AssertionError("a local executor runs packs itself")

    def keep(self, key: str, files: Files) -> None:
        raise AssertionError("packs store their results themselves")


@pytest.mark.parametrize("device", ["cpu", "cuda"], ids=["forks", "threads"])
def test_no_more_packs_train_at_a_time_than_there_are_workers_and_each_is_told_once(
    tmp_path: Path, device: str
) -> None:
    steps: list[int] = []
    packs = deque([spec] for spec in SPECS)
    ended = list(LocalExecutor(2, 2**30, device).train(packs, Noted(tmp_path), steps.append))
    assert sorted((pack[0].finetune.target[0], why) for pack, why in ended) == [
        (digit, "RuntimeError: out of luck" if digit == 3 else None) for digit in range(5)
    ]
    assert steps == [1] * 5
    times = [tuple(map(float, path.read_text().split())) for path in tmp_path.iterdir()]
    at_once = [sum(began <= moment < end for began, end in times) for moment, _ in times]
    assert len(times) == 5 and max(at_once) <= 2


def test_no_interruption_is_lost_at_a_fork(tmp_path: Path) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    os.register_at_fork(after_in_parent=lambda: interrupt() if armed else None)
    armed = [True]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in this process may have set another
    try:
        with pytest.raises(KeyboardInterrupt):
            list(LocalExecutor(1, 2**30).train(deque([[SPECS[0]]]), Noted(tmp_path), lambda steps: None))
    finally:
        armed.clear()
        signal.signal(signal.SIGINT, before)
