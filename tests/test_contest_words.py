"""python -m pytest tests/test_contest_words.py

What a contest prints: nothing wider than a terminal, every arm under its outcome, no loser among those not tuned.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import made_contest as made
import pytest

from lora_exp.contest.comparison import BASE, BETTER, LOST, NOT_TUNED, NOTHING, OPEN
from lora_exp.contest.stated import arms_table, how_it_decides, protocol_table, settings_table
from lora_exp.contest.tables import cost_table, limits_text, main_table, power_table, selection_table
from lora_exp.contest.verdict import Verdict
from lora_exp.contest.words import chance, sentences, spoken, terminal_text
from lora_exp.report.document import Grid

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
JUDGED = [name for name in made.CONTESTS if name != "unjudged"]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {name: make() for name, make in made.CONTESTS.items()}


def cell(grid: Grid, arm: str, column: str) -> str:
    """The cell of an arm in the column of that heading."""
    headings, rows = grid.table
    [row] = [row for row in rows if row[0] == arm]
    return row[headings.index(column)]


@pytest.mark.parametrize("name", made.CONTESTS)
def test_no_line_is_wider_than_a_terminal_and_colours_change_no_letter(verdicts: dict[str, Verdict], name: str) -> None:
    plain = terminal_text(verdicts[name], terminal=False)
    assert max(map(len, plain.splitlines())) <= 80
    coloured = terminal_text(verdicts[name], terminal=True)
    without = "\n".join(line.rstrip() for line in COLOURS.sub("", coloured).splitlines())
    assert without == plain.rstrip("\n")
    assert COLOURS.search(plain) is None
    assert plain.splitlines()[-1] == verdicts[name].protocol.sha256


def test_a_wider_terminal_is_used(verdicts: dict[str, Verdict]) -> None:
    narrow, wide = (terminal_text(verdicts["long names"], False, width).splitlines() for width in (80, 160))
    assert max(map(len, narrow)) <= 80 < max(map(len, wide)) <= 160
    assert len(wide) < len(narrow)


@pytest.mark.parametrize("name", JUDGED)
def test_the_terminal_has_a_row_an_arm_with_its_differences_and_outcomes(
    verdicts: dict[str, Verdict], name: str
) -> None:
    text = " ".join(terminal_text(verdicts[name], terminal=False).split())
    assert text.count("Below 0 the arm errs less") == 1
    for standing in verdicts[name].standings:
        for one in standing.comparisons:
            outcome = {OPEN: "not shown", NOTHING: "no runs"}.get(one.outcome, one.outcome)
            number = f"{one.interval.mean:+z.2f} " if one.differences else ""
            assert f"{number}{outcome}" in text


@pytest.mark.parametrize("name", made.CONTESTS)
def test_there_are_at_most_six_sentences(verdicts: dict[str, Verdict], name: str) -> None:
    assert 2 <= len(sentences(verdicts[name])) <= 6


def test_winners_are_named_under_their_opponent(verdicts: dict[str, Verdict]) -> None:
    assert sentences(verdicts["winner"]) == [
        "In balanced error over 10 bases, compared with the base, all 4 arms are better.",
        "Compared with a moved threshold, lora, dora and pissa are better; bitfit is worse, though by less than 0.3 "
        "points (TOST).",
        "Compared with lora, dora is better; bitfit is worse; pissa is worse, though by less than 0.3 points (TOST).",
    ]


def test_equal_arms_are_within_the_margin(verdicts: dict[str, Verdict]) -> None:
    assert sentences(verdicts["equal"])[2] == "Compared with lora, dora and rslora are within 0.3 points (TOST)."
    assert cell(main_table(verdicts["equal"]), "dora", "minus lora").endswith("within 0.3")
    assert "within 0.3" in cell(power_table(verdicts["equal"]), "dora", "against lora")


def test_no_difference_shown_comes_with_power_and_the_bases_to_add(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["open"]
    still = [one for own in verdict.standings for one in own.comparisons if one.outcome == OPEN]
    assert len(still) > 2
    low, high = (f"{100 * bound(one.power for one in still):.0f}" for bound in (min, max))
    fewest, most = (bound(one.further for one in still if one.further is not None) for bound in (min, max))
    [told] = [text for text in sentences(verdict) if text.startswith("Where no difference is shown")]
    assert told == (
        f"Where no difference is shown, a real one of 0.3 points would be shown with a chance of {low} to {high} %; "
        f"{fewest} to {most} more bases would raise it to 80 %."
    )
    for one in still:
        power = cell(power_table(verdict), one.arm, f"against {one.opponent}")
        assert power.endswith(f"power {100 * one.power:.0f} %, {one.further} more bases")


def test_power_that_no_number_of_bases_gives_is_said_so(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["open"]
    hopeless = tuple(
        dataclasses.replace(own, comparisons=tuple(dataclasses.replace(one, further=None) for one in own.comparisons))
        for own in verdict.standings
    )
    [told] = [
        text
        for text in sentences(dataclasses.replace(verdict, standings=hopeless))
        if "no difference is shown, a" in text
    ]
    assert told.endswith("more than 1,000 bases in all would raise it to 80 %.")


def test_where_tuning_was_luck_more_bases_of_selection_are_asked_for(verdicts: dict[str, Verdict]) -> None:
    told = sentences(verdicts["lucky"])[-1]
    assert told.endswith("; more bases of selection would raise it to 80 %.")
    assert cell(power_table(verdicts["lucky"]), "dora", "against lora").endswith(",\nluck 0.20")
    assert cell(power_table(verdicts["two"]), "dora", "against lora").endswith(",\nluck unknown")
    assert cell(main_table(verdicts["two"]), "lora", "minus the base") == "-1.44,\np = 1.000, no difference shown"


def test_an_arm_that_is_not_tuned_is_never_called_worse(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["not tuned"]
    full = next(one for one in verdict.standings if one.arm.name == "full")
    assert full.end and {one.outcome for one in full.comparisons} == {BETTER, NOT_TUNED}
    assert cell(main_table(verdict), "full", "best rate") == "0.01*"
    assert cell(main_table(verdict), "full", "minus lora").endswith("not tuned")
    assert not [
        text for text in sentences(verdict)[:3] for part in text.split(";") if "full" in part and "worse" in part
    ]
    assert sentences(verdict)[-1] == (
        "Not tuned: full, whose best rate 0.01 is the highest tried; head, whose best rate 0.0001 is the lowest tried. "
        "A better rate may lie beyond, so they are not called worse."
    )


def test_no_arm_is_called_better_than_a_reference_that_is_not_tuned(verdicts: dict[str, Verdict]) -> None:
    told = sentences(verdicts["reference not tuned"])
    assert told[-1].endswith("so it is not called worse, and no arm is called better than lora.")
    assert not any(text.startswith("Compared with lora") for text in told)


def test_an_arm_that_lost_runs_is_neither_better_nor_said_to_show_no_difference(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["lost"]
    dora = verdict.standings[1]
    assert {one.outcome for one in dora.comparisons} == {LOST}
    assert sentences(verdict)[-1] == (
        "Judging runs that did not end: 2 of 20 of dora. An arm that lost runs is not called better."
    )
    assert not any("dora" in text for text in sentences(verdict)[:-1])
    assert cell(main_table(verdict), "dora", "minus the base").endswith("runs lost, n = 8")


def test_where_no_moved_threshold_matches_there_is_nothing_to_compare(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["unmatched"]
    assert sentences(verdict)[1].endswith("lora is better; for dora there are no runs to compare.")
    assert cell(main_table(verdict), "dora", "minus a moved threshold") == NOTHING
    assert cell(power_table(verdict), "dora", "against a moved threshold") == "–"


def test_before_judging_the_reason_and_the_points_tried_are_told(verdicts: dict[str, Verdict]) -> None:
    assert sentences(verdicts["unjudged"]) == [
        "No verdict yet: 15 of the 30 jobs of selection have no result.",
        "Points tried so far: lora 5 and dora 0.",
    ]
    nothing = dataclasses.replace(verdicts["unjudged"], tried={"lora": (), "dora": ()})
    assert sentences(nothing)[1] == "Nothing has been tried yet."


def test_a_comma_in_a_name_parts_no_two_arms(verdicts: dict[str, Verdict]) -> None:
    assert spoken("lora, rank 4") == "lora (rank 4)"
    assert "lora, rank" not in " ".join(sentences(verdicts["twelve"]))


@pytest.mark.parametrize("name", JUDGED)
def test_tables_hold_the_numbers_of_the_verdict(verdicts: dict[str, Verdict], name: str) -> None:
    verdict = verdicts[name]
    found, costs = main_table(verdict), cost_table(verdict)
    assert [row[0] for row in found.table[1]] == [*(one.arm.name for one in verdict.standings), BASE]
    for standing in verdict.standings:
        arm = standing.arm.name
        assert cell(costs, arm, "job-steps") == f"{standing.steps:,}"
        for one in standing.comparisons:
            if not one.is_tested:
                continue
            mean, low, high = (f"{value:+z.2f}" for value in dataclasses.astuple(one.interval)[:3])
            start, end = cell(found, arm, f"minus {one.opponent}").split("\n")
            assert start == (f"{mean} ({low} to {high})," if math.isfinite(one.luck) else f"{mean},")
            assert end.startswith(f"{chance(one.chance)}, ")
    assert cell(found, verdict.protocol.reference, f"minus {verdict.protocol.reference}") == "–"


@pytest.mark.parametrize("name", JUDGED)
def test_the_selection_table_has_every_point_and_one_chosen_an_arm(verdicts: dict[str, Verdict], name: str) -> None:
    verdict = verdicts[name]
    rows = selection_table(verdict).table[1]
    assert [row[:2] for row in rows] == [[arm, one.point.label] for arm, own in verdict.tried.items() for one in own]
    assert {row[0]: row[1] for row in rows if row[2].startswith("chosen")} == {
        one.arm.name: one.best.label for one in verdict.standings
    }


OTHER: dict[str, Any] = {
    "reference": "dora",
    "targets": ("finetune.digit=7",),
    "fixed": ("model=tiny",),
    "equal": "parameters",
    "measure": "both_errors",
    "margin": 0.7,
    "widenings": 9,
    "selection": (7, 9),
    "judging": (50, 51, 52),
    "seeds": 4,
    "steps": None,
    "halving": True,
    "settings": {"device": "cuda"},
    "classes": ("coat", "shirt"),
    "data_sha256": "6" * 64,
}


def test_all_that_a_protocol_states_is_told(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["equal"]
    names = {field.name for field in dataclasses.fields(verdict.protocol)}
    assert names == {*OTHER, "arms"}
    told = [_told(verdict), *(_told(_with(verdict, **{name: value})) for name, value in OTHER.items())]
    told.append(_told(_with(verdict, arms=verdict.protocol.arms[:2])))
    assert len(set(told)) == len(names) + 1


def _with(verdict: Verdict, **other: Any) -> Verdict:
    return dataclasses.replace(verdict, protocol=dataclasses.replace(verdict.protocol, **other))


def _told(verdict: Verdict) -> str:
    """What is written of a protocol, without its hash."""
    grids = protocol_table(verdict), arms_table(verdict.protocol), settings_table(verdict.protocol)
    return repr([[row for row in grid.table[1] if row[0] != "contest.yaml, SHA-256"] for grid in grids]) + repr(
        how_it_decides(verdict)
    )


def test_how_it_decides_counts_the_tests(verdicts: dict[str, Verdict]) -> None:
    assert "all 8 tests of the contest" in " ".join(how_it_decides(verdicts["equal"]))
    assert "all 4 tests of the contest" in " ".join(how_it_decides(verdicts["unmatched"]))


@pytest.mark.parametrize(("bases", "shown"), [(1, False), (2, True), (3, True)])
def test_few_bases_of_selection_have_a_range_and_no_interval(bases: int, shown: bool) -> None:
    verdict = made.verdict({"lora": 0.0, "dora": 0.0}, selection=bases)
    for row, one in zip(
        selection_table(verdict).table[1], [*verdict.tried["lora"], *verdict.tried["dora"]], strict=True
    ):
        values = one.by_base.values()
        low, high = (min(values), max(values)) if bases < 3 else (one.interval.low, one.interval.high)
        assert row[3] == f"{one.interval.mean:.2f}" + (f" ({low:.2f} to {high:.2f})" if shown else "")
    assert (
        limits_text(verdict)
        == {1: "range over 1 base", 2: "range over 2 bases", 3: "95 % interval over 3 bases"}[bases]
    )
