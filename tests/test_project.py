"""python -m pytest tests/test_project.py

What the project says of itself in several places is the same everywhere: licence, version, how to install it.
"""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import lora_exp

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_licence_is_the_one_that_the_package_states() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == CITATION["license"] == "MIT" and text.startswith("MIT License\n")
    assert f"Copyright (c) 2026 {PROJECT['authors'][0]['name']}" in text and PROJECT["license-files"] == ["LICENSE"]


def test_the_citation_is_that_of_the_package() -> None:
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)  # what the format requires
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert (CITATION["title"], CITATION["version"]) == (PROJECT["name"], PROJECT["version"])
    assert lora_exp.__version__ == PROJECT["version"]
    assert CITATION["abstract"] == PROJECT["description"]
    assert CITATION["authors"] == PROJECT["authors"]


def test_no_file_installs_the_package_by_name_since_no_index_has_it() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name.endswith((".py", ".md", ".yaml", ".toml", ".yml"))]
    assert len(files) > 200
    wrong = ("lora-exp" + "[", "pip install " + "lora")
    for path in filter(Path.is_file, files):
        text = path.read_text(encoding="utf-8")
        assert not any(words in text for words in wrong), path


@pytest.mark.parametrize("extra", ["peft", "search", "ray", "slurm", "timm", "docs"])
def test_what_an_extra_installs_the_tests_have(extra: str) -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras[extra]) <= set(extras["dev"])
