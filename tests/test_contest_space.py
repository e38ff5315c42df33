"""python -m pytest tests/test_contest_space.py

What arms try and how the range of rates is widened; the file `contest.yaml` and its hash.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_exp.config.contest import RATE, RATES
from lora_exp.contest.protocol import CONTEST, JUDGING, SELECTION, Arm, Protocol, read_protocol, state
from lora_exp.contest.rounds import best_point, cells, rounds
from lora_exp.contest.scores import Entry, Score
from lora_exp.contest.space import FURTHER, HIGHEST, LOWEST, Point, end_of, first_points, further_points
from lora_exp.errors import LoraExpError

RATIO = "adapter.learning_rate_ratio"
LORA = Arm("lora", "lora", ("adapter=lora",), 3640, ((RATE, RATES),))
PLUS = Arm("lora+", "lora_plus", ("adapter=lora_plus",), 3640, ((RATE, (1e-4, 1e-3, 1e-2)), (RATIO, (4, 16))), "note")
PROTOCOL = Protocol(
    arms=(LORA, PLUS),
    reference="lora",
    targets=("finetune.digit=3", "finetune.digit=8"),
    fixed=("model=tiny", "data=mnist"),
    equal="rank",
    measure="balanced_error",
    margin=0.3,
    widenings=3,
    selection=(100, 101, 102),
    judging=(0, 1, 2, 3),
    seeds=2,
    steps=300,
    halving=False,
    settings={"base": {"epochs": 2}, "data": {"name": "mnist", "folder": "größer", "validation": None}},
    classes=("three", "eight"),
    data_sha256="ab12",
)
OTHER: dict[str, Any] = {
    "arms": (LORA,),
    "reference": "lora+",
    "targets": ("finetune.digit=3",),
    "fixed": ("model=tiny",),
    "equal": "parameters",
    "measure": "both_errors",
    "margin": 0.30001,
    "widenings": 2,
    "selection": (100, 101),
    "judging": (0, 1, 2),
    "seeds": 1,
    "steps": None,
    "halving": True,
    "settings": {"base": {"epochs": 3}},
    "classes": (),
    "data_sha256": "ab13",
}
OTHER_ARM: dict[str, Any] = {
    "name": "LoRA",
    "method": "dora",
    "overrides": (),
    "parameters": 3641,
    "space": ((RATE, RATES[:-1]),),
    "note": "x",
}


def points(*rates: float) -> list[Point]:
    return [Point(rate) for rate in rates]


def rates_tried(best: Point, tried: list[Point]) -> list[float]:
    return [point.rate for point in further_points(best, tried)]


def contested(protocol: Protocol, measure: Callable[[str, Point], float | None]) -> list[list[Entry]]:
    """The rounds of a contest in which an arm has this measure at a point; None for a run that diverges."""
    scores: dict[Entry, Score] = {}
    batches = []
    for batch in rounds(protocol, scores):
        batches.append(batch)
        for entry in batch:
            found = measure(entry.arm, entry.point)
            if found is not None:
                scores[entry] = Score(found, found, 0.1, None, 0.0, 0.9, 1, 1, 1.0)
    return batches


def curve(**optima: float) -> Callable[[str, Point], float]:
    """A parabola in the logarithm of the rate for each arm, with its least at that rate."""
    best = {"lora": optima["lora"], "lora+": optima["plus"]}
    return lambda arm, point: 0.01 * math.log10(point.rate / best[arm]) ** 2 + 0.001 * dict(point.more).get(RATIO, 0)


def test_an_arm_tries_first_every_combination_of_its_values() -> None:
    assert first_points(LORA) == points(*RATES)
    found = first_points(PLUS)
    assert [(point.rate, dict(point.more)[RATIO]) for point in found] == [
        (rate, ratio) for rate in (1e-4, 1e-3, 1e-2) for ratio in (4, 16)
    ]
    assert (points(1e-3)[0].label, found[1].label) == ("0.001", "0.0001, learning rate ratio 16")
    assert found[1].overrides == [f"{RATE}=0.0001", f"{RATIO}=16"]
    assert tuple(dict(PLUS.space)[RATE]) == (1e-4, 1e-3, 1e-2)


def test_a_best_rate_is_at_an_end_or_between_others_whatever_other_keys_are() -> None:
    tried = first_points(PLUS)
    assert [end_of(best, tried) for best in tried] == [LOWEST, LOWEST, None, None, HIGHEST, HIGHEST]


def test_beyond_an_end_rates_go_on_by_the_factor_of_the_last_two() -> None:
    tried = points(1e-3, 1e-4, 1e-2)
    assert rates_tried(tried[2], tried) == [0.1, 1.0]
    assert rates_tried(tried[1], tried) == [1e-5, 1e-6]
    tried = points(1e-4, 2e-4, 1e-3, 4e-3)
    assert rates_tried(tried[3], tried) == [0.016, 0.064]
    assert rates_tried(tried[0], tried) == [5e-5, 2.5e-5]


def test_between_others_rates_are_the_geometric_means_with_both_neighbours() -> None:
    tried = points(1e-4, 4e-4, 1e-2)
    assert rates_tried(tried[1], tried) == [2e-4, 2e-3]


def test_further_points_keep_the_other_values_of_the_best() -> None:
    tried = first_points(PLUS)
    assert {point.more for point in further_points(tried[3], tried)} == {((RATIO, 16),)}


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.floats(1e-6, 1e-3), st.lists(st.floats(1.05, 30), min_size=2, max_size=5), st.floats(-8, 2), st.integers(1, 8)
)
def test_however_often_it_is_widened_every_point_is_new_and_in_a_geometric_place(
    least: float, factors: list[float], optimum: float, widenings: int
) -> None:
    tried = points(*itertools.accumulate(factors, operator.mul, initial=least))
    for _ in range(widenings):
        best = min(tried, key=lambda point: (abs(math.log10(point.rate) - optimum), point.rate))
        known = sorted(point.rate for point in tried)
        at, end = known.index(best.rate), end_of(best, tried)
        new = rates_tried(best, tried)
        assert len(new) == len({*new} - {*known}) == FURTHER
        if end == HIGHEST:
            expected = [best.rate * (known[-1] / known[-2]) ** step for step in (1, 2)]
        elif end == LOWEST:
            expected = [best.rate * (known[0] / known[1]) ** step for step in (1, 2)]
        else:
            expected = [math.sqrt(best.rate * known[at - 1]), math.sqrt(best.rate * known[at + 1])]
        assert new == pytest.approx(expected, rel=0.05)  # rounded to two digits at least
        tried += points(*new)


@pytest.mark.parametrize(("lora", "plus"), [(1e-3, 1e-3), (1e-3, 3e-6), (1.0, 1e-5), (3e-5, 1e-3), (1e-12, 1e-3)])
def test_every_arm_gets_as_many_points_in_each_widening_and_as_many_judging_runs(lora: float, plus: float) -> None:
    batches = contested(PROTOCOL, curve(lora=lora, plus=plus))
    for at, batch in enumerate(batches):
        runs = Counter(entry.arm for entry in batch)
        tried = {arm: {entry.point for entry in batch if entry.arm == arm} for arm in runs}
        assert {entry.phase for entry in batch} == {JUDGING if batch is batches[-1] else SELECTION}
        if at == 0:
            assert runs == {"lora": 5 * 3 * 2 * 2, "lora+": 6 * 3 * 2 * 2}  # points, bases, orders, targets
        elif batch is batches[-1]:
            assert runs == dict.fromkeys(tried, 4 * 2 * 2) and all(len(own) == 1 for own in tried.values())
        else:
            assert runs == dict.fromkeys(tried, FURTHER * 3 * 2 * 2)
            assert all(len(own) == FURTHER for own in tried.values())
        assert set(runs) == {"lora", "lora+"} and len(set(batch)) == len(batch)
    selected = [entry for batch in batches[:-1] for entry in batch]
    assert len(set(selected)) == len(selected)


def test_a_contest_is_widened_until_no_arm_is_at_an_end_or_as_often_as_stated() -> None:
    assert len(contested(PROTOCOL, curve(lora=1e-3, plus=1e-3))) == 2
    assert len(contested(PROTOCOL, curve(lora=1e-3, plus=3e-5))) == 3
    assert len(contested(PROTOCOL, curve(lora=1e-3, plus=3e-6))) == 4
    assert len(contested(PROTOCOL, curve(lora=1e-30, plus=1e-3))) == 2 + PROTOCOL.widenings
    assert len(contested(dataclasses.replace(PROTOCOL, widenings=0), curve(lora=1e-30, plus=1e-3))) == 2


def test_the_best_point_has_most_runs_that_ended_then_the_least_error_then_the_lowest_rate() -> None:
    def judged(measure: Callable[[str, Point], float | None]) -> dict[str, Point]:
        return {entry.arm: entry.point for entry in contested(PROTOCOL, measure)[-1]}

    assert judged(curve(lora=1e-3, plus=1e-3)) == {"lora": Point(1e-3), "lora+": Point(1e-3, ((RATIO, 4),))}
    # Of arms that are not at an end no point is added, so what diverges above 2e-3 leaves the best below it.
    assert judged(lambda arm, point: 1 / point.rate if point.rate < 2e-3 else None)["lora"] == Point(1e-3)
    assert judged(lambda arm, point: None if point.rate < 2e-3 else 0.5)["lora"] == Point(3e-3)
    assert judged(lambda arm, point: 0.5)["lora"].rate < 1e-4


def test_a_point_that_lost_a_run_is_behind_those_that_lost_none_however_little_its_error() -> None:
    tried = first_points(LORA)
    runs = {point: cells(PROTOCOL, SELECTION, LORA.name, point, PROTOCOL.selection) for point in tried}
    scores = {
        entry: Score(0.01 if point == tried[3] else 0.5 + point.rate, 0.1, 0.1, None, 0.0, 0.9, 1, 1, 1.0)
        for point, own in runs.items()
        for entry in own
    }
    assert best_point(PROTOCOL, LORA.name, tried, scores) == tried[3]
    del scores[runs[tried[3]][-1]]
    assert best_point(PROTOCOL, LORA.name, tried, scores) == tried[0]


def test_no_two_bases_share_an_order_of_images_and_no_base_judges_that_selected() -> None:
    batches = contested(PROTOCOL, curve(lora=1e-3, plus=1e-3))
    entries = [entry for batch in batches for entry in batch]
    bases: dict[int, set[int]] = {}
    for entry in entries:
        bases.setdefault(entry.order, set()).add(entry.base)
    assert len(bases) == 7 * 2 and all(len(own) == 1 for own in bases.values())
    by_phase = {phase: {entry.base for entry in entries if entry.phase == phase} for phase in (SELECTION, JUDGING)}
    assert by_phase == {SELECTION: {100, 101, 102}, JUDGING: {0, 1, 2, 3}}


def test_a_stated_protocol_is_read_back_the_same(tmp_path: Path) -> None:
    state(PROTOCOL, tmp_path)
    found = read_protocol(tmp_path)
    assert found == PROTOCOL
    assert (found.text, found.sha256) == (PROTOCOL.text, PROTOCOL.sha256)
    assert found.arm("lora+") == PLUS
    state(PROTOCOL, tmp_path)  # again is no change


def test_the_file_is_plain_yaml_of_every_field(tmp_path: Path) -> None:
    state(PROTOCOL, tmp_path)
    values = yaml.safe_load((tmp_path / CONTEST).read_text(encoding="utf-8"))
    assert list(values) == ["version", *(field.name for field in dataclasses.fields(Protocol))]
    assert values["arms"][1]["space"] == {RATE: [1e-4, 1e-3, 1e-2], RATIO: [4, 16]}
    assert values["settings"]["data"]["folder"] == "größer"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Protocol)])
def test_the_hash_changes_with_any_field(name: str, tmp_path: Path) -> None:
    other = dataclasses.replace(PROTOCOL, **{name: OTHER[name]})
    assert other.sha256 != PROTOCOL.sha256
    state(PROTOCOL, tmp_path)
    with pytest.raises(LoraExpError, match=r"states another protocol than this command.*choose another folder"):
        state(other, tmp_path)
    assert read_protocol(tmp_path) == PROTOCOL


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Arm)])
def test_the_hash_changes_with_any_field_of_an_arm(name: str) -> None:
    other = dataclasses.replace(PROTOCOL, arms=(dataclasses.replace(LORA, **{name: OTHER_ARM[name]}), PLUS))
    assert other.sha256 != PROTOCOL.sha256


@pytest.mark.parametrize(("old", "new"), [("margin: 0.3\n", "margin: 0.2\n"), ("- 102\n", "")])
def test_a_file_that_states_another_protocol_has_another_hash_and_is_refused(
    old: str, new: str, tmp_path: Path
) -> None:
    change(tmp_path, old, new)
    assert read_protocol(tmp_path).sha256 != PROTOCOL.sha256
    with pytest.raises(LoraExpError, match="states another protocol"):
        state(PROTOCOL, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: 1\n", "version: 2\n"),
        ("# What", "# Why"),
        ("margin: 0.3\n", "margin: 0.30\n"),
        ("\nmargin", "\n\nmargin"),
    ],
)
def test_a_file_that_no_contest_writes_is_refused(old: str, new: str, tmp_path: Path) -> None:
    change(tmp_path, old, new)
    with pytest.raises(LoraExpError, match="was changed after it was written"):
        read_protocol(tmp_path)


def change(folder: Path, old: str, new: str) -> None:
    """State the protocol, then change one place of the file."""
    state(PROTOCOL, folder)
    text = (folder / CONTEST).read_text(encoding="utf-8")
    assert old in text
    (folder / CONTEST).write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    "text", [None, "", "- 1\n", "margin: [\n", "version: 1\nmargin: 0.3\n", "version: 1\narms: 3\n"]
)
def test_a_file_that_is_no_protocol_is_refused_in_one_line(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / CONTEST).write_text(text, encoding="utf-8")
    with pytest.raises(LoraExpError, match="is not the protocol of a contest") as refused:
        read_protocol(tmp_path)
    assert "\n" not in str(refused.value)
