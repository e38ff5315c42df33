"""python -m pytest tests/test_trade_off.py"""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_exp.storage.trade_off import both_errors, pareto_front, representative

RATES = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.3]), st.sampled_from([-0.1, 0.0, 0.1, 0.2])), max_size=30)


def table(rates: list[tuple[float, float]], status: str = "finished") -> pd.DataFrame:
    frame = pd.DataFrame(rates, columns=["target_error", "forgetting"], dtype=float)
    return frame.assign(job=range(len(rates)), other_error=frame["forgetting"] + 0.1, status=status)


@given(RATES)
def test_the_front_is_what_no_run_beats(rates: list[tuple[float, float]]) -> None:
    def beaten(run: tuple[float, float]) -> bool:
        return any(a <= run[0] and b <= run[1] and (a, b) != run for a, b in rates)

    front = pareto_front(table(rates))

    assert sorted(front) == [job for job, run in enumerate(rates) if not beaten(run)]
    assert [rates[job][0] for job in front] == sorted(rates[job][0] for job in front)


def test_a_run_without_errors_stands_out_nowhere() -> None:
    lost = table([(0.0, 0.0)], status="diverged")

    assert pareto_front(lost) == []
    assert representative(lost) is None


def test_the_run_to_show_has_the_lowest_sum_of_both_errors() -> None:
    frame = table([(0.3, 0.0), (0.1, 0.1), (0.0, 0.2)])

    assert representative(frame) == 1  # the first of equals
    assert both_errors(frame).tolist() == pytest.approx([0.4, 0.3, 0.3])
