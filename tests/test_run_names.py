"""python -m pytest tests/test_run_names.py

What runs of a sweep are called in MLflow: by what varies, and no two different jobs alike.
"""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import pytest
from places import QUICK, Place

from lora_exp.model.data import ImageData
from lora_exp.storage.sweep_file import read_about
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.storage.varied import label, varied
from lora_exp.tracking.run_names import LIMIT, run_name, varied_keys, varied_words


def names(*jobs: str) -> list[str | None]:
    """The names of jobs, each given by its overrides."""
    overrides = [job.split() for job in jobs]
    keys = varied_keys({"jobs": overrides})
    return [run_name(keys, own, Path(str(number))) for number, own in enumerate(overrides)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("finetune.digit=3", "finetune.digit=[3,4]", ["class 3", "classes 3 and 4"]),
        ("finetune.target=shirt", "finetune.target='[shirt,coat]'", ["shirt", "shirt and coat"]),
        ("adapter=lora", "adapter=dora", ["lora", "dora"]),
        ("finetune.learning_rate=1e-3", "finetune.learning_rate=0.01", ["learning rate 0.001", "learning rate 0.01"]),
        ("base.seed=0", "base.seed=1", ["base seed 0", "base seed 1"]),
        ("adapter.layers=[linear1]", "adapter.layers=[a,b]", ["layers linear1", "layers a,b"]),
        ("model=tiny data=mnist", "model=small data=kmnist", ["model tiny, mnist", "model small, kmnist"]),
        ("adapter.rank=4 finetune.seed=0", "adapter.rank=4 finetune.seed=1", ["seed 0", "seed 1"]),
        ("+adapter.alpha=rank", "+adapter.alpha=2", ["alpha rank", "alpha 2"]),
        ("experiment=a", "experiment=b", ["experiment a", "experiment b"]),
        (
            "model=tiny model.hidden=[8]",
            "model=small model.hidden=[9]",
            ["model tiny, model.hidden 8", "model small, model.hidden 9"],
        ),
        ("adapter.rank=4", "adapter.rank=4", [None, None]),
    ],
)
def test_a_run_is_called_by_the_settings_in_which_the_jobs_differ(one: str, other: str, expected: list[str]) -> None:
    assert names(one, other) == expected


def test_the_order_is_that_of_tables_whatever_was_typed_first() -> None:
    one = "base.seed=0 finetune.learning_rate=0.1 adapter.rank=1 adapter=lora finetune.digit=3"
    other = "base.seed=1 finetune.learning_rate=0.2 adapter.rank=2 adapter=dora finetune.digit=4"
    assert names(one, other)[1] == "class 4, dora, rank 2, learning rate 0.2, base seed 1"
    assert varied_words(varied_keys({"jobs": [one.split(), other.split()]})) == (
        "class, method, rank, learning rate, base seed"
    )


def test_what_a_name_can_not_tell_the_number_of_the_job_does() -> None:
    close = names("finetune.learning_rate=0.12345678", "finetune.learning_rate=0.12345679")
    assert close == ["learning rate 0.123457, job 0", "learning rate 0.123457, job 1"]
    long = names(*(f"adapter.layers=[{'a' * 300}{end}]" for end in "bc"))
    assert [len(name or "") for name in long] == [LIMIT + len("…, job 0")] * 2
    assert len(set(long)) == 2


def test_any_grid_has_as_many_names_as_jobs() -> None:
    given = {
        "adapter": ("lora", "dora", "full"),
        "finetune.digit": ("3", "[3,4]", "5"),
        "finetune.learning_rate": ("1e-3", "0.0010000001", "1"),
        "adapter.layers": ("*", "[linear1]", "[linear1, linear2]"),
        "finetune.seed": ("0", "1"),
    }
    jobs = [
        [f"{key}={value}" for key, value in zip(given, values, strict=True)]
        for values in itertools.product(*given.values())
    ]
    keys = varied_keys({"jobs": jobs})
    assert len({run_name(keys, own, Path(str(number))) for number, own in enumerate(jobs)}) == len(jobs) == 162


def test_the_runs_of_a_search_are_called_by_its_space_before_its_jobs_are_known() -> None:
    about = {
        "jobs": [],
        "search": {"space": {"finetune.learning_rate": "interval(0.1,0.2)", "adapter.rank": "choice(1,2)"}},
    }
    keys = varied_keys(about)
    overrides = ["finetune.learning_rate=0.1234567890123", "adapter.rank=2", "model=tiny"]
    assert run_name(keys, overrides, Path("12")) == "rank 2, learning rate 0.123457, job 12"


def test_a_class_is_called_by_its_name_where_that_is_known() -> None:
    assert run_name(["finetune.target"], ["finetune.target=6"], Path("0"), "shirt") == "shirt"


def test_a_real_sweep_of_methods_rates_seeds_and_layers_has_a_name_of_its_own_for_each_run(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    place = Place(tmp_path)
    grid = (
        "adapter=lora,dora",
        "finetune.learning_rate=1e-3,1e-2",
        "finetune.seed=0,1",
        "adapter.layers=[linear1],[linear2]",
    )
    place.run("-m", *QUICK, *grid)
    frame = read_sweep(place.sweep()).frame
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        runs = {name for (name,) in database.execute("SELECT name FROM runs")}
        parameters = dict(
            database.execute("SELECT key, value FROM params JOIN runs USING (run_uuid) WHERE name LIKE '20%'")
        )
    columns = varied(frame)
    assert columns == ["method", "learning_rate", "layers", "seed"]
    assert runs == {label(row, columns) for row in frame.to_dict("records")} | {read_about(place.sweep())["name"]}
    assert len(runs) == 17
    assert parameters == {"jobs": "16", "varied": "method, learning rate, layers, seed"}
