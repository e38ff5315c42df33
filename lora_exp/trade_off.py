"""Which runs stand out of a sweep, judged by what they gained and by what that cost together."""

from __future__ import annotations

import pandas as pd


def sound(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that have errors to compare."""
    return frame[frame["status"] == "finished"]


def both_errors(runs: pd.DataFrame, when: str = "") -> pd.Series[float]:
    """Error on the target plus mean error on the others, `when` ("_before" or "" for after) fine-tuning."""
    return runs[f"target_error{when}"] + runs[f"other_error{when}"]


def representative(frame: pd.DataFrame) -> int | None:
    """The job to show in detail: the sound one with the lowest sum of both errors, the first of equals."""
    runs = sound(frame)
    return None if runs.empty else lowest(runs, both_errors(runs))


def lowest(runs: pd.DataFrame, values: pd.Series[float]) -> int:
    """The job of `runs` with the lowest of `values`, the first of equals."""
    return int(runs["job"].to_numpy()[int(values.to_numpy().argmin())])


def pareto_front(frame: pd.DataFrame) -> list[int]:
    """The sound jobs that no other beats: none has less error on the target and no more forgetting, or the reverse.

    In the order of their error on the target; of several with the same two numbers, all.
    """
    runs = sound(frame).sort_values(["target_error", "forgetting"], kind="stable")
    front: list[int] = []
    least, reached = float("inf"), float("nan")  # forgetting of the front's last, and its error on the target
    for job, error, forgetting in zip(runs["job"], runs["target_error"], runs["forgetting"], strict=True):
        if forgetting < least or (forgetting == least and error == reached):
            front.append(int(job))
            least, reached = forgetting, error
    return front
