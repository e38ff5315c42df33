"""python -m pytest tests/test_relocation.py: a working folder that was moved or copied after a sweep."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from places import QUICK, Place, prepared

from lora_exp.model.data import ImageData

JOBS = ("-m", *QUICK, "finetune.steps=2", "adapter.rank=1,2")


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_every_command_says_that_a_folder_was_moved_and_after_relocate_all_of_them_work(
    tmp_path: Path, data_root: Path, mnist: ImageData, way: str
) -> None:
    (tmp_path / "one").mkdir()
    one = prepared(tmp_path / "one", data_root)
    one.run(*JOBS)
    old = one.sweep()
    before = sorted((tmp_path / "one").rglob("*"))
    if way == "moved":
        (tmp_path / "one").rename(tmp_path / "two")
    else:
        shutil.copytree(tmp_path / "one", tmp_path / "two", symlinks=True)
    two = Place(tmp_path / "two")
    sweep = str(tmp_path / "two" / old.relative_to(tmp_path / "one"))
    says = (
        f"tracking.artifacts={tmp_path}/two/mlartifacts: was moved or copied from {tmp_path}/one/mlartifacts, where "
        f"{tmp_path}/two/mlflow.db still has it; mend that with: lora-exp relocate"
    )
    for command in (["sync", sweep], ["resume", sweep], ["report", "--experiment", "lora_exp"], [*JOBS]):
        assert two.run(*command, code=2)[1] == f"lora-exp: {says}\n", command
    assert f"WRONG tracking   {says}" in two.run("doctor", code=1)[0]
    assert two.run("relocate")[0] == "5 records name mlartifacts now\n"
    assert two.run("relocate")[0] == "all records are right already\n"
    assert two.run("sync", sweep)[0] == "all of it is in MLflow\n"
    assert "Mean of 2 finished runs" in two.run("resume", sweep)[0]
    two.run("report", "--experiment", "lora_exp", "--out", "both")
    assert len((two.folder / "both" / "summary.csv").read_text().splitlines()) == 3
    two.run(*JOBS, "finetune.digit=5")
    with sqlite3.connect(tmp_path / "two" / "mlflow.db") as database:
        places = {place for (place,) in database.execute("SELECT artifact_uri FROM runs")}
    assert len(places) == 6 and all(place.startswith(f"{tmp_path}/two/mlartifacts/") for place in places)
    if way == "moved":
        assert not (tmp_path / "one").exists()
    else:
        assert sorted((tmp_path / "one").rglob("*")) == before
