"""python -m pytest tests/test_migration.py: databases that an older MLflow made."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest

from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError
from lora_exp.tracking.migration import brought_up_to_date
from lora_exp.tracking.recorder import Recorder, Ticket


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


# Of MLflow 1.0 and 2.x, both of which lack tables of today's.
@pytest.mark.parametrize("version", ["bd07f7e963c5", pytest.param("cc1f77228345", marks=pytest.mark.long)])
@pytest.mark.filterwarnings("ignore")  # of alembic and SQLAlchemy
def test_an_older_database_is_copied_before_it_is_brought_up_to_date_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    older_database(tmp_path / "mlflow.db", version)
    copy = tmp_path / f"mlflow.db.{version}"
    settings = TrackingSettings("sqlite", f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/mlartifacts")
    recorder = Recorder.open(settings)
    says = f"{tmp_path}/mlflow.db was made by an older MLflow and is brought up to this one; {copy} is as it was"
    assert [record.getMessage() for record in caplog.records if "older MLflow" in record.getMessage()] == [says]
    assert rows(copy) == (version, ["older"])
    recorder.start_sweep("newer", "command", {}, Ticket.new())
    now, names = rows(tmp_path / "mlflow.db")
    assert now != version and names == ["older", "newer"]
    caplog.clear()
    Recorder.open(settings)
    assert not caplog.records


def test_a_database_that_mlflow_can_not_bring_up_to_date_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('bd07f7e963c5')")
        connection.execute("CREATE TABLE runs (name TEXT, start_time INT)")
        connection.execute("INSERT INTO runs VALUES ('mine', 0)")
    with pytest.raises(LoraExpError, match="which this one can't bring up to date") as caught:
        brought_up_to_date(path)
    assert "\n" not in str(caught.value)
    assert rows(path) == ("bd07f7e963c5", ["mine"])
