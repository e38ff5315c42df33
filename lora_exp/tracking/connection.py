"""Open and check the tracking store that runs are recorded in: a sqlite file or an MLflow server."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import shutil
import sqlite3
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError, writable_folder
from lora_exp.tracking.migration import brought_up_to_date
from lora_exp.tracking.relocation import check_place, relocate

SQLITE = "sqlite:///"
SERVER_TIMEOUT = 3.0  # seconds
# By default MLflow retries for minutes, prints a line for every run, and logs tracebacks of errors that are handled
# here.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A request that is sent twice may be carried out twice. delivery.py retries without duplicates.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def load_library() -> Any:
    """Import MLflow, set up as this package needs it; return the class `mlflow.MlflowClient`."""
    os.environ |= ENVIRONMENT | dict(os.environ)  # what the user has set stays
    from mlflow import MlflowClient
    from mlflow.store.tracking import sqlalchemy_store

    del sqlalchemy_store  # takes 1 s to import, which the first client of a sqlite store would do later

    return MlflowClient


def connect(settings: TrackingSettings) -> tuple[TrackingSettings, Any, str]:
    """Open the store; create it and the experiment where they do not exist.

    Returns the settings with an absolute address, an `mlflow.MlflowClient`, and the id of the experiment. Raises
    LoraExpError when that is not possible, for a silent server after about 3 s.
    """
    client_class = load_library()
    ready: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if settings.kind == "server":
        _check_server(settings.uri)
    else:
        settings = _absolute(settings)
        ready = _prepared_database(settings)
    with translated_errors(settings.uri), ready:
        client = client_class(settings.uri)
        return settings, client, _experiment(client, settings)


def check(settings: TrackingSettings) -> None:
    """Check in some milliseconds, without MLflow, that runs can be recorded. Raises LoraExpError where they can't."""
    if settings.kind == "server":
        _check_server(settings.uri)
    elif settings.kind == "sqlite":
        settings = _absolute(settings)
        path = Path(settings.uri.removeprefix(SQLITE))
        with writable_folder("tracking.artifacts", Path(settings.artifacts)):
            pass
        with translated_errors(settings.uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > 0:
                _check_database(path)
                _check_experiment(path, settings)
            else:
                with tempfile.TemporaryFile(dir=path.parent):
                    pass


def existing_store(settings: TrackingSettings, wanted: str) -> TrackingSettings:
    """The settings of a store that exists, with an absolute address. Only a database of an older MLflow is changed.

    Raises LoraExpError when there is no store; the message says that `wanted` is not in it.
    """
    os.environ |= ENVIRONMENT | dict(os.environ)  # what the user has set stays
    if settings.kind == "server":
        _check_server(settings.uri)
        return settings
    settings = _absolute(settings)
    path = Path(settings.uri.removeprefix(SQLITE))
    if not path.is_file():
        raise LoraExpError(f"tracking.uri={settings.uri}: there is no such file, so {wanted} is not in it")
    with translated_errors(settings.uri):
        _check_database(path)
    check_place(path, settings.experiment, Path(settings.artifacts))
    brought_up_to_date(path)
    return settings


def settle(settings: TrackingSettings) -> None:
    """Write what sqlite keeps beside its database (`-wal`) into it, so that the file alone holds all runs.

    Where another process reads at the moment, or the file is gone, nothing happens.
    """
    if settings.kind == "sqlite":
        path = Path(_absolute(settings).uri.removeprefix(SQLITE))
        address = f"{path.as_uri()}?mode=rw"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(address, uri=True, timeout=1)) as connection,
        ):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def put_right(settings: TrackingSettings) -> int:
    """Put the places of artifacts right in the database of a folder that was moved; return how many there were.

    Raises LoraExpError when there is no database, or it can't be changed.
    """
    settings = _absolute(settings)
    path = Path(settings.uri.removeprefix(SQLITE))
    if not path.is_file():
        raise LoraExpError(f"tracking.uri={settings.uri}: there is no such file")
    with translated_errors(settings.uri):
        _check_database(path)
        return relocate(path, settings.experiment, Path(settings.artifacts))


def status_line(settings: TrackingSettings) -> str:
    """The status of the tracking store in one line. Nothing is created or changed.

    Raises LoraExpError when the store is damaged or does not answer.
    """
    if settings.kind == "off":
        return "tracking=off: runs are not recorded"
    if settings.kind == "server":
        _check_server(settings.uri)
        return f"{settings.uri} answers"
    path = Path(_absolute(settings).uri.removeprefix(SQLITE))
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return f"{path}: does not exist yet; the first run creates it"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=20)) as connection:
            [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
            [runs] = connection.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise LoraExpError(
            f"tracking.uri={settings.uri}: is damaged or not a database of MLflow ({found[:100]}); move it away: the "
            "next run creates a new one, and the folders of the runs keep all results"
        )
    _check_experiment(path, _absolute(settings))
    return f"{path}: intact, {runs} runs"


def _experiment(client: Any, settings: TrackingSettings) -> str:
    """The id of the experiment, which is created where it does not exist."""
    from mlflow.exceptions import MlflowException

    name, artifacts = settings.experiment, None if settings.kind == "server" else settings.artifacts
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another process may have been faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise _deleted(name)
    return str(found.experiment_id)


def _check_experiment(path: Path, settings: TrackingSettings) -> None:
    """Raise LoraExpError when the experiment is deleted in the database, or lies elsewhere than that says."""
    name = settings.experiment
    check_place(path, name, Path(settings.artifacts))
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        found = connection.execute("SELECT lifecycle_stage FROM experiments WHERE name = ?", [name]).fetchone()
        if found == ("deleted",):
            raise _deleted(name)


def _deleted(experiment: str) -> LoraExpError:
    return LoraExpError(f"tracking.experiment={experiment}: is deleted in MLflow; restore it there, or choose another")


def _check_server(uri: str) -> None:
    if "@" in uri.partition("://")[2].partition("/")[0]:
        raise LoraExpError(
            "tracking.uri: must not hold a user and a password, which every run would store; put them into the "
            "environment, as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if not uri.startswith(("http://", "https://")):
        raise LoraExpError(f"tracking.uri={uri}: must be http://HOST:PORT or https://HOST:PORT")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_TIMEOUT) as answer:  # noqa: S310
            reason = "" if answer.read(16) == b"OK" else "something else answers there"
    except urllib.error.HTTPError as error:
        # The client has the credentials that such a server asks for.
        reason = "" if error.code in (401, 403) else f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    if reason:
        raise LoraExpError(
            f"tracking.uri={uri}: no MLflow server answers there ({reason}); start one, or use tracking=sqlite"
        )


def _absolute(settings: TrackingSettings) -> TrackingSettings:
    """The settings of a sqlite store with absolute paths."""
    if settings.kind != "sqlite":
        raise LoraExpError(f"tracking.kind={settings.kind}: keeps no runs; use tracking=sqlite or tracking=server")
    file = settings.uri.removeprefix(SQLITE)
    path = Path(file).absolute()
    # MLflow and SQLAlchemy read `%` and `?` in an address differently.
    if file in (settings.uri, "", ":memory:") or {"%", "?"} & set(str(path)):
        raise LoraExpError(f"tracking.uri={settings.uri}: must be sqlite:///FILE, without % and ? in the path")
    return dataclasses.replace(settings, uri=f"{SQLITE}{path}", artifacts=str(Path(settings.artifacts).absolute()))


@contextlib.contextmanager
def _prepared_database(settings: TrackingSettings) -> Iterator[None]:
    """A block in which the database exists and is writable, and no other process opens it."""
    with writable_folder("tracking.artifacts", Path(settings.artifacts)):
        pass
    path = Path(settings.uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists() or path.stat().st_size == 0:
            _create_database(path, settings.artifacts)
        _check_database(path)
        check_place(path, settings.experiment, Path(settings.artifacts))
        brought_up_to_date(path)
        yield


def _check_database(path: Path) -> None:
    """Raise sqlite3.Error when the file is not a database that can be written to (MLflow would print a traceback)."""
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master")
        connection.rollback()


def _create_database(path: Path, artifacts: str) -> None:
    """Create the database in a folder of its own, then move it into place: creation takes 2 s and may be killed."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = path.with_name(f"{path.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    SqlAlchemyStore(f"{SQLITE}{folder / path.name}", artifacts).engine.dispose()
    # The file keeps this mode. A commit waits for the disk once instead of three times, and readers such as the UI
    # don't wait for writers. It is as safe when the process is killed, but needs a local disk.
    with contextlib.closing(sqlite3.connect(folder / path.name)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    (folder / path.name).replace(path)
    shutil.rmtree(folder)


@contextlib.contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """A block in which errors of MLflow, sqlite and the disk become a LoraExpError of one line."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, sqlite3.Error, *_errors_of_mlflow())):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LoraExpError(f"tracking.uri={uri}: {reason[:300]}") from error


def _errors_of_mlflow() -> tuple[type[Exception], ...]:
    """The errors that MLflow raises: none while it is not loaded."""
    if "mlflow" not in sys.modules:
        return ()
    from mlflow.exceptions import MlflowException

    return (MlflowException,)
