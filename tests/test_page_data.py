"""python -m pytest tests/test_page_data.py"""

from __future__ import annotations

import pytest
from statsmodels.stats.proportion import proportion_confint

from lora_exp.report.page_data import wilson
from lora_exp.storage.result import ClassErrors

FEW = [(0, 10), (1, 10), (5, 10), (10, 10)]
MANY = [(3, 980), (0, 1135), (1009, 1010), (500, 1009)]


def class_errors(pairs: list[tuple[int, int]]) -> ClassErrors:
    """Errors and counts of each class; all other numbers are arbitrary."""
    errors, counts = ([pair[at] for pair in pairs] for at in (0, 1))
    return ClassErrors(accuracy=0.5, loss=1.0, counts=counts, errors=errors, error_rates=[], confusion=[])


@pytest.mark.parametrize("pairs", [FEW, MANY], ids=["few images", "many images"])
def test_intervals_are_those_of_statsmodels(pairs: list[tuple[int, int]]) -> None:
    found = wilson([class_errors(pairs)])
    for wrong, count in pairs:
        expected = proportion_confint(wrong, count, alpha=0.05, method="wilson")
        assert found[f"{wrong}/{count}"] == pytest.approx(expected, abs=1e-12)


def test_a_class_without_images_has_no_interval() -> None:
    assert wilson([class_errors([(0, 0)])]) == {}
