"""A working folder that was moved or copied, whose database names the artifacts where they were before.

MLflow keeps absolute paths. Without a word it would go on writing to the old place, or make that anew.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from lora_exp.errors import LoraExpError

# The columns of MLflow's database that hold a place of artifacts.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def old_place(database: Path, experiment: str, artifacts: Path) -> str | None:
    """Where the database has the artifacts of an experiment, if its runs lie in `artifacts` instead; else None."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=20)) as connection:
        query = "SELECT experiment_id, artifact_location FROM experiments WHERE name = ?"
        for number, recorded in connection.execute(query, [experiment]).fetchall():
            if recorded == str(artifacts):
                return None
            runs = connection.execute("SELECT run_uuid FROM runs WHERE experiment_id = ? LIMIT 100", [number])
            if any((artifacts / run).is_dir() for (run,) in runs):
                return str(recorded)
    return None


def check_place(database: Path, experiment: str, artifacts: Path) -> None:
    """Raise LoraExpError when the artifacts of an experiment were moved, or copied, with their database."""
    if (old := old_place(database, experiment, artifacts)) is not None:
        raise LoraExpError(
            f"tracking.artifacts={artifacts}: was moved or copied from {old}, where {database} still has it; "
            "mend that with: lora-exp relocate"
        )


def relocate(database: Path, experiment: str, artifacts: Path) -> int:
    """Put the place of the artifacts right, all or nothing; return how many records were changed.

    Raises sqlite3.Error when the database can't be changed.
    """
    old, changed = old_place(database, experiment, artifacts), 0
    if old is None:
        return 0
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in COLUMNS:
            if table in tables:  # older versions of MLflow lack some
                changed += connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names of COLUMNS
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    [str(artifacts), len(old) + 1, old, len(old) + 1, f"{old}/"],
                ).rowcount
    return changed
