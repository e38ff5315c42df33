"""python -m pytest tests/test_notebook.py

The notebook in examples/ runs from top to bottom, in a kernel and an empty folder of its own, and shows what it says.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from forkserver import ROOT

NOTEBOOK = ROOT / "examples" / "lora_in_ten_minutes.ipynb"
# In a process of its own, since the libraries of Jupyter warn of themselves.
EXECUTE = """
import json, sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=".")
print(json.dumps(notebook))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Mapping[str, Any]]]:
    """What each cell of code shows: the data of its outputs by type, and printed text; by the cell's first line."""
    folder = tmp_path_factory.mktemp("notebook")
    places = {name: str(folder / name) for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")}
    environment = {**os.environ, **places, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in json.loads(done.stdout)["cells"] if cell["cell_type"] == "code"]
    return {
        "".join(cell["source"]).splitlines()[0]: [own.get("data") or {"text": own["text"]} for own in cell["outputs"]]
        for cell in cells
    }


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


def test_runs_and_sweeps_show_tables_and_figures_are_pictures(executed: dict[str, list[Mapping[str, Any]]]) -> None:
    for line in ("sweep", "best = sweep.best()", 'run.measures[["before", "after", "moved_threshold"]].round(3)'):
        assert "<table" in executed[line][-1]["text/html"]
    for line in (
        "run.plot_errors()",
        "run.plot_images()",
        "sweep.plot_heat_maps()",
        "import matplotlib.pyplot as plt",
    ):
        assert len(executed[line][-1]["image/png"]) > 5000


def test_what_the_text_says_of_the_numbers_is_so(executed: dict[str, list[Mapping[str, Any]]]) -> None:
    shown = {line: parts[-1].get("text/plain", "") for line, parts in executed.items() if parts}
    first, best = (
        shown['run = lora_exp.run(**small, adapter={"rank": 4}, finetune={"target": 3})'],
        shown["best = sweep.best()"],
    )
    assert "other classes" in first and "less forgetting" not in first
    assert "less forgetting than a moved threshold" in best
    answer = re.sub("<[^>]*>", "", executed["sweep"][-1]["text/html"])
    assert re.search("use rank [14], replay 0.8", answer), answer
    assert "the base as it is" not in answer


def test_nothing_warns(executed: dict[str, list[Mapping[str, Any]]]) -> None:
    texts = [part["text"] for parts in executed.values() for part in parts if "text" in part]
    assert texts and not [text for text in texts if "Warning" in text or "Traceback" in text]
