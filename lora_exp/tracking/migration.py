"""A database that an older MLflow made: it is copied beside itself before this one's MLflow changes its tables.

MLflow changes some older databases in place when it opens them, and refuses others.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from lora_exp.errors import LoraExpError

log = logging.getLogger(__name__)

REVISION = re.compile(r"^(revision|down_revision)\b[^=\n]*=(.*)$", re.MULTILINE)


def brought_up_to_date(database: Path) -> None:
    """Bring a database of an older MLflow up to the installed one, after a copy of it was put beside it.

    A line says so. Nothing happens to any other file. Raises LoraExpError where MLflow can't do that; the database is
    then as it was.
    """
    if (version := _older_version(database)) is None:
        return
    with FileLock(f"{database}.migration.lock"):
        if _older_version(database) != version:  # another process was faster
            return
        copy = database.with_name(f"{database.name}.{version}")
        _copy(database, copy)
        log.warning("%s was made by an older MLflow and is brought up to this one; %s is as it was", database, copy)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 or _older_version(database) is not None:
            _copy(copy, database)
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise LoraExpError(
                f"tracking.uri=sqlite:///{database}: was made by an older MLflow, which this one can't bring up to "
                f"date ({why}); it is as it was; name another file, and the next run makes it"
            )


def _copy(source: Path, to: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source, timeout=20)) as old,
        contextlib.closing(sqlite3.connect(to, timeout=20)) as new,
    ):
        old.backup(new)


def _older_version(database: Path) -> str | None:
    """The version of the tables when an older MLflow made them; None for all else, such as no database at all."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=20)) as connection:
        versions = {str(version) for (version,) in connection.execute("SELECT version_num FROM alembic_version")}
        # What the installed MLflow does not know was made by a newer one, about which MLflow has an error of its own.
        if len(versions) == 1 and not versions & _heads() and versions <= _revisions().keys():
            return versions.pop()
    return None


def _heads() -> set[str]:
    revisions = _revisions()
    return revisions.keys() - {earlier for own in revisions.values() for earlier in own}


def _revisions() -> Mapping[str, list[str]]:
    """The versions of tables that the installed MLflow knows, with those that each follows; without importing it."""
    found = importlib.util.find_spec("mlflow")
    places = [] if found is None else found.submodule_search_locations or []
    known: dict[str, list[str]] = {}
    for file in (one for place in places for one in Path(place, "store/db_migrations/versions").glob("*.py")):
        lines = dict(REVISION.findall(file.read_text(encoding="utf-8")))
        if "revision" in lines:
            names = {name: re.findall(r"[\"'](\w+)[\"']", line) for name, line in lines.items()}
            known |= {own: names.get("down_revision", []) for own in names["revision"]}
    return known
