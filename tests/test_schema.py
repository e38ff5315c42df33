"""python -m pytest tests/test_schema.py

What is read from a run's folder is checked: a damaged or foreign file is a failed job with its reason, and no other job
of the report is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import made_run, pictures_and_labels, write_sweep

from lora_exp.config.compose import saved_values
from lora_exp.errors import LoraExpError
from lora_exp.report.terminal import sweep_text
from lora_exp.report.write import write_report
from lora_exp.storage.result import RESULT
from lora_exp.storage.sweep_file import FAILURE, SWEEP
from lora_exp.storage.sweep_folder import read_sweep

DEEP = "[" * 200_000 + "]" * 200_000


def setting(*path: str | int, value: Any) -> Callable[[str], str]:
    def change(text: str) -> str:
        values = place = json.loads(text)
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        return json.dumps(values)

    return change


DAMAGES: dict[str, Callable[[str], str]] = {
    "nested too deeply": lambda _: DEEP,
    "parameters_adapter must be int": setting("outcome", "parameters_adapter", value=10**400),
    "errors must be 10 numbers": setting("outcome", "after", "errors", value=[1, 2, 3]),
    "errors must be 10 numbers of images": setting("outcome", "after", "errors", value=[-1] * 10),
    "times must be": setting("times", value=[1.0]),
    "diverged_at must be": setting("outcome", "diverged_at", value="x"),
    "target_error must be float": setting("outcome", "target_error", value={"a": 1}),
    "base_unchanged must be bool": setting("outcome", "base_unchanged", value=3),
    "layers must be": setting("outcome", "layers", value="x"),
}


@pytest.mark.parametrize("says", DAMAGES)
def test_a_file_with_other_values_is_a_failed_job_with_its_reason_and_the_report_has_the_others(
    tmp_path: Path, says: str
) -> None:
    pictures, labels = pictures_and_labels()
    sweep = write_sweep(tmp_path / "sweep", [made_run(labels, (9,), rank) for rank in (1, 2, 4)])
    file = sweep / "1" / RESULT
    file.write_text(DAMAGES[says](file.read_text()))
    table = read_sweep(sweep).frame
    assert list(table["status"]) == ["finished", "failed", "finished"]
    assert says in table["error"].iloc[1] and len(table["error"].iloc[1]) < 500
    write_report(read_sweep(sweep), tmp_path / "report", pictures, labels)
    sweep_text(table, terminal=False)
    assert "2 finished" in (tmp_path / "report" / "report.md").read_text()


def test_failures_and_records_that_are_nested_too_deeply_are_told_so(tmp_path: Path) -> None:
    _, labels = pictures_and_labels()
    sweep = write_sweep(tmp_path / "sweep", ["no luck", made_run(labels, (9,), 1)])
    (sweep / "0" / FAILURE).write_text(DEEP)
    table = read_sweep(sweep).frame
    assert list(table["status"]) == ["failed", "finished"] and "nested too deeply" in table["error"].iloc[0]
    (sweep / SWEEP).write_text(DEEP)
    with pytest.raises(LoraExpError, match="is not the record of a sweep"):
        read_sweep(sweep)


def test_a_saved_config_is_neither_deep_nor_full_of_aliases() -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{at}: &a{at} [{','.join([f'*a{at - 1}'] * 9)}]" for at in range(1, 12)]
    for text in (DEEP, "a: " + "{a: " * 5000 + "1" + "}" * 5000, "\n".join(lines)):
        with pytest.raises(LoraExpError, match="is not a saved config"):
            saved_values(text)
