"""Sweeps at the ends of what a page must show: made-up but valid results, for pictures and for tests in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_results as made
import numpy as np

COUNT = 2000
PICTURES, LABELS = (own[:COUNT] for own in made.pictures_and_labels())
METHODS = ("lora", "dora", "rslora", "pissa", "lora_plus", "full", "bitfit", "head", "shift", "none")


def methods() -> list[Any]:
    """Twenty settings: ten methods, each with two numbers of steps."""
    settings = [(name, steps) for name in METHODS for steps in (50, 100)]
    return [
        made.made_run(LABELS, (3,), method=name, steps=steps, seed=seed) for name, steps in settings for seed in (0, 1)
    ]


def hundred_classes() -> list[Any]:
    """A hundred target classes."""
    names = tuple(f"species {number}" for number in range(100))
    labels = (np.arange(COUNT) % 100).astype(np.uint8)
    return [made.made_run(labels, (target,), 4, classes=names) for target in range(100)]


def long_names() -> list[Any]:
    """Classes whose names have 300 letters, some without a space, and one that looks like markup."""
    names = tuple((f"{number} " + ("a long name " if number % 2 else "unbroken")) * 40 for number in range(10))
    names = ("<b>bold</b> & <script>alert(1)</script>", "x" * 300, *(name[:300].strip() for name in names[2:]))
    return [made.made_run(LABELS, (target,), rank, classes=names) for target in (0, 1, 3) for rank in (1, 4)]


def thousand() -> list[Any]:
    """A thousand runs: five ranks and four methods by ten classes over five bases."""
    return [
        made.made_run(LABELS, (target,), rank, seed=seed, base_seed=seed, method=method)
        for target in range(10)
        for rank in (1, 2, 4, 8, 16)
        for method in METHODS[:4]
        for seed in range(5)
    ]


SWEEPS: dict[str, Callable[[], list[Any]]] = {
    "methods": methods,
    "classes": hundred_classes,
    "names": long_names,
    "none": lambda: ["out of memory", None, made.made_run(LABELS, diverged_at=3)],
    "one": lambda: [made.made_run(LABELS, (9,))],
    "thousand": thousand,
}


def written(name: str, folder: Path) -> Path:
    """The report of one of SWEEPS, in `folder`."""
    from lora_exp.report.write import write_report
    from lora_exp.storage.sweep_folder import read_sweep

    sweep = read_sweep(made.write_sweep(folder / name, SWEEPS[name]()))
    labels = (np.arange(COUNT) % 100).astype(np.uint8) if name == "classes" else LABELS
    return write_report(sweep, folder / f"{name} report", PICTURES, labels)
