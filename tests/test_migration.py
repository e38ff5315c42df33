"""python -m pytest tests/test_migration.py: databases that an older MLflow made."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest
from places import QUICK, prepared

from lora_exp.model.data import ImageData

RUN = (*QUICK, "finetune.steps=2")


def older_database(path: Path, version: str) -> None:
    """A database as the MLflow of that version of the tables made it, with a run in it; by MLflow's own migrations."""
    import alembic.command
    import sqlalchemy
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()
    alembic.command.upgrade(_get_alembic_config(f"sqlite:///{path}"), version)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO experiments (name, artifact_location, lifecycle_stage) VALUES ('old', 'x', 'active')"
        )
        connection.execute(
            "INSERT INTO runs (run_uuid, name, experiment_id, lifecycle_stage, artifact_uri, status, start_time) "
            f"VALUES ('{'a' * 32}', 'older', 1, 'active', 'x/a', 'FINISHED', {time.time_ns() // 10**6})"
        )


def rows(path: Path) -> tuple[str, list[str]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [version] = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return version, [name for (name,) in connection.execute("SELECT name FROM runs ORDER BY start_time")]


# Of MLflow 1.0 to 3.0, all of which lack tables of today's.
@pytest.mark.parametrize("version", ["bd07f7e963c5", "cc1f77228345"])
@pytest.mark.filterwarnings("ignore")  # of alembic and SQLAlchemy
def test_an_older_database_is_copied_before_it_is_brought_up_to_date_and_a_line_says_so(
    tmp_path: Path, data_root: Path, mnist: ImageData, version: str
) -> None:
    place = prepared(tmp_path, data_root)
    older_database(tmp_path / "mlflow.db", version)
    out = "".join(place.run(*RUN))
    copy = tmp_path / f"mlflow.db.{version}"
    says = f"{tmp_path}/mlflow.db was made by an older MLflow and is brought up to this one; {copy} is as it was"
    assert out.count(says) == 1
    assert rows(copy) == (version, ["older"])
    now, names = rows(tmp_path / "mlflow.db")
    assert now != version and len(names) == 2 and "older" in names
    assert "older MLflow" not in "".join(place.run(*RUN))


def test_a_database_that_mlflow_can_not_bring_up_to_date_is_left_as_it_was(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    place = prepared(tmp_path, data_root)
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('bd07f7e963c5')")
        connection.execute("CREATE TABLE runs (name TEXT, start_time INT)")
        connection.execute("INSERT INTO runs VALUES ('mine', 0)")
    out = "".join(place.run(*RUN))
    assert "which this one can't bring up to date" in out and "Traceback" not in out
    assert rows(path) == ("bd07f7e963c5", ["mine"])
