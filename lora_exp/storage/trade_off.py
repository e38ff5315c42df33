"""Which runs stand out of a sweep, judged by what they gained and by what that cost together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    runs = sound(frame)
    pairs = zip(runs["target_error"], runs["forgetting"], strict=True)
    return unbeaten(dict(zip(map(int, runs["job"]), pairs, strict=True)))


def unbeaten(values: Mapping[int, Sequence[float]]) -> list[int]:
    """The jobs that no other beats: none has less of one value and no more of any. In the order of their values."""
    front: list[int] = []
    # What beats a job comes before it in this order, and is in the front itself or beaten by one that is.
    for job, own in sorted(values.items(), key=lambda item: tuple(item[1])):
        others = [values[other] for other in front]
        if not any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in others):
            front.append(job)
    return front
