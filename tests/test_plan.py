"""python -m pytest tests/test_plan.py: what a sweep would run, and how long that would take."""

from __future__ import annotations

from pathlib import Path

import forkserver
import pytest
from conftest import CPU
from places import data_in

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.local import LocalExecutor
from lora_exp.model.data import ImageData
from lora_exp.storage.store import Store
from lora_exp.sweeps import plan
from lora_exp.training.laboratory import Laboratory
from lora_exp.training.pack import plan_jobs

DATA = DataSpec("mnist", limit=1000)
SPECS = [
    RunSpec(ModelSpec((16,)), DATA, BaseSpec(epochs=3), AdapterSpec(rank=rank), FinetuneSpec((3,))) for rank in (1, 64)
]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_expected_time_is_that_of_bases_and_packs_on_all_workers_without_duplicates_and_stored_results(
    workers: int, tmp_path: Path, data_root: Path, mnist: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.prepare()
    laboratory = Laboratory(store, data_in(data_root), CPU, 1, LocalExecutor(workers, 2**30))
    cost = sum(job.size.cost for job in plan_jobs(SPECS, laboratory.data(DATA)).values())
    monkeypatch.setattr(plan, "_product_rate", lambda _: cost / 80)  # all jobs take 80 s on one thread
    monkeypatch.setattr(plan, "_base_seconds", lambda *_: 5.0)  # an epoch
    first, base, *_, last = plan.plan_text(laboratory, [*SPECS, SPECS[0]]).splitlines()
    assert first == "3 jobs: 0 in the store already, 2 to run, 1 duplicates"
    assert base == "base 784-16-10 on mnist, seed 0: to be trained, about 15 s"
    assert last == f"expected time: about {15 + 80 // workers} s, with {workers} packs at a time"
    store.put("results", laboratory.result_key(SPECS[0]), {"any.txt": b"1"})
    store.put("bases", laboratory.base_key(SPECS[0]), {"any.txt": b"1"})
    first, base, kept, pack, _ = plan.plan_text(laboratory, [*SPECS, SPECS[0]]).splitlines()
    assert kept.startswith("  packs of up to 25 jobs (10 rows a job and product); kept of the frozen part: linear1, ")
    assert first == "3 jobs: 1 in the store already, 1 to run, 1 duplicates"
    assert base.endswith("in the store already") and pack.startswith("  pack 1: 1 jobs, lora, rank 64, steps 100, ")


def test_a_preset_that_is_a_sweep_is_no_job_of_another(tmp_path: Path) -> None:
    given = ["-m", "--plan", "model=tiny", "data.limit=1000", "experiment=digit_9,rank_by_digit"]
    done = forkserver.run(given, tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "lora-exp: experiment=rank_by_digit: is a sweep of its own (adapter.rank=1,2,4,8 finetune.digit=range(0,10)), "
        "so it can't be a job of another; run it alone (job 1 of the sweep)\n"
    )


@pytest.mark.parametrize("jobs", ["adapter.alpha=range(0,1000000000)", "finetune.seed=range(0,1e9)"])
def test_more_jobs_than_a_sweep_can_have_are_refused_before_they_are_listed(tmp_path: Path, jobs: str) -> None:
    done = forkserver.run(["-m", "--plan", "model=tiny", "adapter.rank=1,2", jobs], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"lora-exp: {jobs}: gives 2,000,000,000") and "can have 100,000" in done.stderr
