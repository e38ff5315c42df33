"""python tests/lower_bounds.py: the oldest version of each library that pyproject.toml allows, as pip takes it.

torch and torchvision are left out: `make minimum` takes them as installed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

AS_INSTALLED = ("torch", "torchvision")


def lower_bounds() -> list[str]:
    """`name==version`, for every dependency of the package."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    pins = []
    for needed in map(Requirement, project["dependencies"]):
        [least] = [one.version for one in needed.specifier if one.operator == ">="]
        pins.append(f"{needed.name}=={least}")
    return [pin for pin in pins if pin.split("==")[0] not in AS_INSTALLED]


if __name__ == "__main__":
    print("\n".join(lower_bounds()))
