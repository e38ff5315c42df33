"""The tracking store that runs are recorded in: a sqlite file or a server, opened, checked, served and read."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import socket
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError

SQLITE = "sqlite:///"
SERVER_PATIENCE = 3.0  # seconds
# Of addresses in MLflow's UI. The plain ones open its view for language models, which hides most of what matters here.
VIEW = "workflowType=machine_learning"
# A view that MLflow keeps with an experiment: the columns of the table of runs, which would show no number by itself.
COLUMNS_KEY = "lora_exp"
COLUMNS = [f"params.`{name}`" for name in ("digit", "rank", "alpha", "seed")]
COLUMNS += [f"metrics.`{name}`" for name in ("target_error", "other_error", "forgetting")]
# MLflow's own defaults retry for minutes, print a line for every run on stdout, and log with a traceback what
# is raised here as a LoraExpError.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A request that is sent twice may be carried out twice; delivery.py knows what arrived.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Connection:
    """A client (`mlflow.MlflowClient`) of a store, whose address is absolute, and the experiment that runs go to."""

    settings: TrackingSettings
    client: Any
    experiment_id: str


def connected(settings: TrackingSettings) -> Connection:
    """Connect to the store, making it and the experiment where there is none yet.

    Raises LoraExpError when that is not possible, for a silent server after about 3 s.
    """
    _set_environment()
    if settings.kind == "server":
        _check_server(settings.uri)
        return _connection(settings, None)
    settings = _absolute(settings)
    with one_line(settings.uri), _prepared_database(settings):
        return _connection(settings, settings.artifacts)


def _connection(settings: TrackingSettings, artifacts: str | None) -> Connection:
    with one_line(settings.uri):
        from mlflow import MlflowClient

        client = MlflowClient(settings.uri)
        return Connection(settings, client, _experiment(client, settings.experiment, artifacts))


def existing(settings: TrackingSettings, wanted: str) -> TrackingSettings:
    """The settings with an absolute address, of a store that is there; nothing in it is changed.

    `wanted` says, when there is none, what is therefore not in it.

    Raises LoraExpError when there is none.
    """
    _set_environment()
    if settings.kind == "server":
        _check_server(settings.uri)
        return settings
    settings = _absolute(settings)
    path = Path(settings.uri.removeprefix(SQLITE))
    if not path.is_file():
        raise LoraExpError(f"tracking.uri={settings.uri}: there is no such file, so {wanted} is not in it")
    with one_line(settings.uri):
        _check_database(path)
    return settings


def state(settings: TrackingSettings) -> str:
    """How the tracking store is, in words; nothing is made or changed.

    Raises LoraExpError when it is damaged or does not answer.
    """
    if settings.kind == "off":
        return "tracking=off: runs are not recorded"
    if settings.kind == "server":
        _check_server(settings.uri)
        return f"{settings.uri} answers"
    path = Path(_absolute(settings).uri.removeprefix(SQLITE))
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return f"{path}: none yet; the first run makes it"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=20)) as connection:
            [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
            [runs] = connection.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise LoraExpError(
            f"tracking.uri={settings.uri}: is damaged or no database of MLflow's ({found[:100]}); move it away "
            "and the next run makes a new one, the folders of the runs have all results"
        )
    return f"{path}: whole, {runs} runs"


def ui_command(settings: TrackingSettings, port: int) -> list[str]:
    """The command that serves MLflow's UI on a sqlite store, to this machine only."""
    store = ["--backend-store-uri", _absolute(settings).uri]
    return [sys.executable, "-m", "mlflow", "ui", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def serve_ui(settings: TrackingSettings, port: int) -> int:
    """Print where the UI of the store is; for a sqlite store, become the process that serves it.

    Raises LoraExpError when the store can't be opened or the port is taken.
    """
    address = settings.uri.rstrip("/") if settings.kind == "server" else f"http://127.0.0.1:{port}"
    place = connected(settings)
    with one_line(settings.uri):
        columns = json.dumps({"selectedColumns": COLUMNS})
        place.client.set_experiment_tag(place.experiment_id, f"mlflow.sharedViewState.{COLUMNS_KEY}", columns)
    page = f"{address}/#/experiments/{place.experiment_id}/runs?{VIEW}&viewStateShareKey={COLUMNS_KEY}"
    if settings.kind == "server":
        print(f"the tracking server has its own UI: {page}")
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise LoraExpError(f"--port {port}: can't be used ({error}); choose another") from error
    print(f"open {page} in some seconds; Ctrl-C ends", flush=True)
    command = ui_command(settings, port)
    os.execv(command[0], command)  # noqa: S606  # so that whoever ends this process ends the server


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    """The id of the experiment of that name, made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # perhaps another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise LoraExpError(f"tracking.experiment={name}: is deleted in MLflow; restore it there or choose another")
    return str(found.experiment_id)


def _check_server(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        raise LoraExpError(f"tracking.uri={uri}: must be http://HOST:PORT or https://HOST:PORT")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_PATIENCE) as answer:  # noqa: S310
            reason = "" if answer.read(16) == b"OK" else "something else answers there"
    except urllib.error.HTTPError as error:
        # A server that asks for credentials gets them from the client, which knows MLflow's ways to set them.
        reason = "" if error.code in (401, 403) else f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    if reason:
        raise LoraExpError(
            f"tracking.uri={uri}: no MLflow server answers there ({reason}); start one, or use tracking=sqlite"
        )


def _absolute(settings: TrackingSettings) -> TrackingSettings:
    """Settings of a sqlite store that mean the same from any working directory."""
    if settings.kind != "sqlite":
        raise LoraExpError(f"tracking.kind={settings.kind}: keeps no runs on this machine; use tracking=sqlite")
    file = settings.uri.removeprefix(SQLITE)
    path = Path(file).absolute()
    # MLflow and SQLAlchemy, through which the address passes, disagree on how to read `%` and `?`.
    if file in (settings.uri, "", ":memory:") or {"%", "?"} & set(str(path)):
        raise LoraExpError(f"tracking.uri={settings.uri}: must be sqlite:///FILE, without % and ? in the path")
    return dataclasses.replace(settings, uri=f"{SQLITE}{path}", artifacts=str(Path(settings.artifacts).absolute()))


@contextlib.contextmanager
def _prepared_database(settings: TrackingSettings) -> Iterator[None]:
    """A block in which this process alone opens the database, which exists and can be written to."""
    try:
        Path(settings.artifacts).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoraExpError(
            f"tracking.artifacts={settings.artifacts}: must be a folder that can be written to ({error.strerror})"
        ) from error
    path = Path(settings.uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists() or path.stat().st_size == 0:
            _create_database(path, settings.artifacts)
        _check_database(path)
        yield


def _check_database(path: Path) -> None:
    """A file that isn't a database would come out of MLflow as a traceback of SQLAlchemy's."""
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master")
        connection.rollback()


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _create_database(path: Path, artifacts: str) -> None:
    """Made aside and moved into place, so that a killed process leaves no half of one (it takes 2 s)."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = path.with_name(f"{path.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    SqlAlchemyStore(f"{SQLITE}{folder / path.name}", artifacts).engine.dispose()
    # The file stays in this mode: a commit waits for the disk once instead of three times, and readers such as
    # the UI don't wait for writers. It is as safe when killed, but wants a local disk.
    with contextlib.closing(sqlite3.connect(folder / path.name)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    (folder / path.name).replace(path)
    shutil.rmtree(folder)


@contextlib.contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Turns what MLflow and the disk raise into a LoraExpError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, sqlite3.Error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LoraExpError(f"tracking.uri={uri}: {reason[:300]}") from error
