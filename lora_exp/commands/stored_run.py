"""Read what is stored of a run: in its folder, in MLflow, or in a row of a summary."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lora_exp.commands.differences import measures
from lora_exp.config.compose import compose_settings, saved_values, start_folder
from lora_exp.config.spec import RunSpec, spec_from
from lora_exp.errors import LoraExpError, in_words
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, RunResult, from_json
from lora_exp.storage.sweep_file import FAILURE, SWEEP
from lora_exp.tracking.reader import fetch_run

SUMMARY = "summary.csv"
# A job's config and Hydra's own config, as Hydra saves them in the job's folder, and the config as MLflow has it.
SAVED_CONFIG, SAVED_HYDRA, RECORDED_CONFIG = ".hydra/config.yaml", ".hydra/hydra.yaml", "config.yaml"
# Columns of a summary that identify the run. The name and the key also depend on the code.
IDENTIFYING = ("job", "sweep", "name", "error", "folder", "overrides", "spec_key")

Measure = Callable[[RunResult, Mapping[str, bytes]], dict[str, Any]]


@dataclass(frozen=True)
class StoredRun:
    """What is stored of a run; `measure` takes the measurements that `measured` holds of another result and its files.

    `specs` and `configs` (plain values) hold what was run, by the file that says so. `facts` is the provenance.
    Relative paths in the config start at `folder`.
    """

    name: str
    overrides: list[str]
    measured: dict[str, Any]
    measure: Measure
    specs: dict[str, RunSpec]
    configs: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    folder: Path


def find(run: str, overrides: Sequence[str]) -> StoredRun:
    """Find a run by its folder, its MLflow run id, `SWEEP:JOB` or `SUMMARY:JOB`.

    `overrides` of tracking name the store that MLflow runs are in. Raises LoraExpError when there is no such run, or
    when nothing of it can be compared.
    """
    folder, (place, _, job) = Path(run), run.rpartition(":")
    if not folder.exists() and re.fullmatch("[0-9a-f]{32}", run):
        settings = compose_settings(overrides).tracking
        return _read(run, fetch_run(settings, run, [RESULT, ADAPTER, RECORDED_CONFIG]), [RESULT, ADAPTER])
    if not folder.exists() and place and job.isdecimal():
        summary = Path(place) if place.endswith(".csv") else Path(place) / SUMMARY
        if summary.is_file():
            return _row(run, summary, job)
        folder = Path(place) / job
    if not folder.is_dir():
        raise LoraExpError(f"{run}: must be the folder of a run, an MLflow run id, SWEEP:JOB or {SUMMARY}:JOB")
    if (folder / SWEEP).is_file():
        raise LoraExpError(f"{run}: is a sweep; name one of its runs, such as {folder / '0'}")
    if (folder / FAILURE).is_file() and not (folder / RESULT).is_file():
        raise LoraExpError(f"{run}: failed, so there are no numbers to reproduce; see its {FAILURE}")
    needed = [RESULT, ADAPTER, PREDICTIONS]
    content = {name: folder / name for name in [*needed, SAVED_CONFIG, SAVED_HYDRA]}
    return _read(run, {name: path.read_bytes() for name, path in content.items() if path.is_file()}, needed)


def _read(run: str, content: Mapping[str, bytes], needed: Sequence[str]) -> StoredRun:
    """A run from the content of its files, by name."""
    if absent := [name for name in needed if name not in content]:
        raise LoraExpError(f"{run}: has no {absent[0]}, so it is not a finished run")
    with _reading(run, RESULT):
        result = from_json(content[RESULT].decode())
        overrides = [str(override) for override in result.provenance["overrides"]]
        texts = {f"config in {RESULT}": str(result.provenance["config"])}
    _refuse_imported(run, result.imported)
    files = {name: content[name] for name in (ADAPTER, PREDICTIONS) if name in content}
    with _reading(run, " or ".join(files)):
        measured = measures(result, files)
    specs, configs = {RESULT: result.spec}, {}
    found = [name for name in (SAVED_CONFIG, RECORDED_CONFIG) if name in content]
    texts |= {name: content[name].decode(errors="replace") for name in found}
    for name, text in texts.items():
        with _reading(run, name):
            configs[name] = saved_values(text)
            specs[name] = spec_from(configs[name])
    with _reading(run, SAVED_HYDRA):
        started = start_folder(content.get(SAVED_HYDRA, b"{}").decode())
    return StoredRun(
        run,
        overrides,
        measured,
        lambda result, now: measures(result, {name: now[name] for name in files}),
        specs,
        configs,
        {name: value for name, value in result.provenance.items() if name not in ("overrides", "config")},
        started if started is not None and started.is_dir() else Path.cwd(),
    )


def _row(run: str, summary: Path, job: str) -> StoredRun:
    """A run from a row of a summary. The files of the run may be elsewhere, or gone."""
    with _reading(run, summary.name):
        rows = {row["job"]: row for row in csv.DictReader(io.StringIO(summary.read_text(encoding="utf-8")))}
        if job not in rows:
            raise LoraExpError(f"{run}: the summary has no job {job}")
        row = rows[job]
        if row["status"] not in ("finished", "diverged"):
            raise LoraExpError(f"{run}: is {row['status']}, so there are no numbers to reproduce")
        _refuse_imported(run, row.get("origin") == "imported")
        overrides, measured = shlex.split(row["overrides"]), _cells(row)

    def measure(result: RunResult, _: Mapping[str, bytes]) -> dict[str, Any]:
        from lora_exp.storage.table import frame_of, row_of

        [now] = csv.DictReader(io.StringIO(frame_of([{"job": 0, **row_of(result)}], {}).to_csv(index=False)))
        return {name: value for name, value in _cells(now).items() if name in measured}

    return StoredRun(run, overrides, measured, measure, {}, {}, {}, Path.cwd())


def _cells(row: Mapping[str, str]) -> dict[str, Any]:
    """The settings and measurements in a summary's row, numbers as floats."""
    from lora_exp.storage.table import CLASS_ERRORS, COLUMNS

    known = [name for name in row if name in COLUMNS or name.startswith(CLASS_ERRORS)]
    return {name: _cell(row[name]) for name in known if name not in IDENTIFYING}


def _cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _refuse_imported(run: str, imported: bool) -> None:
    if imported:
        raise LoraExpError(f"{run}: its adapter was imported, so lora-exp can't train it again")


@contextlib.contextmanager
def _reading(run: str, what: str) -> Iterator[None]:
    """A block in which damaged content becomes a LoraExpError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, LoraExpError) and str(error).startswith(f"{run}: "):
            raise
        raise LoraExpError(f"{run}: {what} can't be read ({in_words(error)})") from error
