"""python -m pytest tests/test_executors_cluster.py

A sweep on a Ray cluster of several nodes on this machine, one of which is killed during the sweep.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import JOBS, QUICK, prepared, same

from lora_exp.model.data import ImageData

SWEEP = ("-m", *QUICK, "finetune.steps=1000", *JOBS)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head node, which trains nothing, and two nodes with room for one pack each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def trains(node: Any) -> bool:
    """Whether a pack trains on the node."""
    import psutil

    raylet = node.all_processes["raylet"][0].process
    return any("ray::trained_apart" in " ".join(child.cmdline()) for child in psutil.Process(raylet.pid).children())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # warnings of Ray
def test_a_sweep_survives_a_node_and_has_the_bits_of_a_local_one(
    tmp_path: Path, data_root: Path, mnist: ImageData, cluster: Any
) -> None:
    for name in ("local", "ray"):
        (tmp_path / name).mkdir()
    local, place = (prepared(tmp_path / name, data_root) for name in ("local", "ray"))
    process = place.start(*SWEEP, "executor=ray", f"executor.address={cluster.address}")
    [node, _] = cluster.worker_nodes
    while not trains(node):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "retried in smaller packs" in out + err
    assert place.made_once() == 40
    assert place.statuses() == {"FINISHED": 41}
    local.run(*SWEEP, "tracking=off")
    same(place.sweep(), local.sweep())
