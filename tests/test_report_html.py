"""python -m pytest tests/test_report_html.py

The page of a report in real Chromium: what is drawn, what can be done there, and that it asks nothing of a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_results as made
import pytest
from playwright.sync_api import Browser, Page, expect

from lora_exp.measures.logits import probabilities
from lora_exp.report.gained import mcnemar_cells, run_cells, said_of, shift_cells
from lora_exp.report.tables import points
from lora_exp.report.write import write_report
from lora_exp.storage.sweep_file import run_command
from lora_exp.storage.sweep_folder import read_sweep

PICTURES, LABELS = made.pictures_and_labels()
COUNT = 2000
MARKED = "out of <b>memory</b> </script><script>document.title='run'</script> {{ 7 * 7 }}"
INSIDE = re.compile("data:|blob:")
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks 1, 2 and 10 by digits 2 and 9 with two seeds each; one job diverged, one failed."""
    folder = tmp_path_factory.mktemp("page")
    runs: list[Any] = [
        made.made_run(LABELS[:COUNT], (digit,), rank, seed=seed)
        for rank in (1, 2, 10)
        for digit in (2, 9)
        for seed in (0, 1)
    ]
    runs += [made.made_run(LABELS[:COUNT], rank=3, diverged_at=4), MARKED]
    sweep = read_sweep(made.write_sweep(folder / "sweep", runs))
    return write_report(sweep, folder / "report", PICTURES[:COUNT], LABELS[:COUNT])


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a report's page, waits until all is drawn, and in the end has seen no error and no request elsewhere."""
    troubles: list[str] = []
    contexts = []

    def open_page(folder: Path, **context: Any) -> Page:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        own = (folder / "report.html").as_uri()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda asked: None if INSIDE.match(asked.url) else troubles.append(asked.url))
        page.goto(own)
        page.locator("body[data-drawn=true]").wait_for(state="attached")
        troubles.remove(own)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def table_column(page: Page, column: int) -> list[str]:
    return page.locator(f"#runs-table tbody tr:not([hidden]) td:nth-child({column})").all_text_contents()


def choose(page: Page, setting: str, value: str) -> None:
    page.locator(f"select[data-setting={setting}]").select_option(value)
    page.locator("body[data-drawn=true]").wait_for(state="attached")


def test_every_chart_is_drawn_with_the_means_of_its_runs(report: Path, opened: Open) -> None:
    page = opened(report)
    frame = read_sweep(report.parent / "sweep").frame
    for name in ("target_error", "forgetting", "balanced_accuracy_gained"):
        means = frame[frame["status"] == "finished"].groupby(["target", "rank"])[name].mean()
        texts = page.locator(f"#heat-{name} .heatmap-label").all_text_contents()
        sign = "" if name == "target_error" else "+"
        assert sorted(texts) == sorted(f"{100 * mean:{sign}.2f}" for mean in means)
    assert page.locator("#trade-off .scatterlayer path.point").count() == 12
    assert page.locator("#losses .scatterlayer path.js-line").count() == 12  # a path a run
    assert page.locator("#classes .bars path").count() >= 20
    assert page.locator("#confusion .heatmap-label").count() > 10


def test_a_filter_changes_charts_table_and_chooser_together(report: Path, opened: Open) -> None:
    page = opened(report)
    choose(page, "rank", "10")
    expect(page.locator("#shown")).to_have_text("4 of 12 finished runs shown.")
    assert table_column(page, 1) == ["8", "9", "10", "11"]
    assert page.locator("#chooser option").count() == 4
    assert page.locator("#trade-off .scatterlayer path.point").count() == 4
    choose(page, "target", "9")
    assert table_column(page, 1) == ["10", "11"]
    choose(page, "rank", "")
    page.get_by_label("Find").fill("finetune.seed=1")  # is in the command
    assert table_column(page, 1) == ["3", "7", "11"]


def test_the_table_sorts_by_number_and_back(report: Path, opened: Open) -> None:
    page = opened(report)
    header = page.get_by_role("button", name="rank", exact=True)
    header.click()
    assert table_column(page, 3) == ["1"] * 4 + ["2"] * 4 + ["10"] * 4
    header.click()
    assert table_column(page, 3) == ["10"] * 4 + ["2"] * 4 + ["1"] * 4
    assert page.locator("#runs-table th").nth(2).get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="target error after (%)").click()
    errors = [float(text) for text in table_column(page, 7)]
    assert errors == sorted(errors)


def test_a_row_gives_the_command_that_reproduces_it(report: Path, opened: Open) -> None:
    page = opened(report, permissions=["clipboard-read", "clipboard-write"])
    button = page.get_by_label("Copy the command that reproduces job 7")
    button.click()
    expect(button).to_have_text("copied")
    frame = read_sweep(report.parent / "sweep").frame
    assert page.evaluate("navigator.clipboard.readText()") == run_command(frame["overrides"][7])


def test_a_chosen_run_shows_its_errors_and_its_images(report: Path, opened: Open) -> None:
    page = opened(report)
    page.locator("#chooser").select_option("5")
    sweep = read_sweep(report.parent / "sweep")
    out, logits = sweep.results[5].outcome, sweep.logits(5)
    told = page.locator("#run-summary")
    expect(told).to_contain_text(f"{100 * out.target_error_before:.2f} % → {100 * out.target_error:.2f} %")
    expect(told).to_contain_text(f"{100 * out.other_error_before:.2f} % → {100 * out.other_error:.2f} %")
    before, after, labels = logits.before.argmax(axis=1), logits.after.argmax(axis=1), LABELS[:COUNT]
    mended = int(((before != labels) & (after == labels)).sum())
    expect(page.locator(".mended h3")).to_contain_text(f"Mended: {mended} images")
    first = page.locator(".broken li").first
    [image] = re.findall(r"test image (\d+), a (\d)", first.locator("[role=img]").get_attribute("aria-label") or "")
    at, label = map(int, image)
    assert label == labels[at] == before[at] and after[at] != label
    sure = float(probabilities(logits.after)[at].max())
    confidence = f"after {after[at]} ({round(100 * round(sure, 3))} %)"
    assert confidence in first.inner_text()
    page.get_by_role("button", name="next").click()
    expect(told).to_contain_text("Job 6,")
    assert "job 6:" in page.locator("#chooser option:checked").inner_text()


def cells_of(page: Page, name: str) -> list[list[str]]:
    """The rows of a table below the chooser, without their first cells."""
    rows = page.get_by_role("region", name=name).locator("tbody tr")
    return [row.locator("td").all_text_contents()[1:] for row in rows.all()]


def test_a_chosen_run_shows_its_measures_beside_a_moved_threshold(report: Path, opened: Open) -> None:
    page = opened(report)
    sweep = read_sweep(report.parent / "sweep")
    for job in (5, 10):
        page.locator("#chooser").select_option(str(job))
        gains = sweep.results[job].outcome.gains
        assert gains is not None
        assert cells_of(page, "Measures before and after") == run_cells(sweep.frame.iloc[job])
        assert cells_of(page, "Images that became right or wrong") == mcnemar_cells(gains)
        assert page.get_by_role("region", name="The moved threshold").locator("td").all_text_contents() == shift_cells(
            gains
        )
        expect(page.locator("#gains p")).to_contain_text(said_of(gains))


def test_gain_and_loss_of_balanced_accuracy_have_colours_on_two_sides_of_zero(report: Path, opened: Open) -> None:
    page = opened(report)
    [trace] = page.evaluate("document.getElementById('heat-balanced_accuracy_gained').data")
    most = max(abs(value) for row in trace["z"] for value in row if value is not None)
    assert trace["zmax"] == -trace["zmin"] == pytest.approx(most)
    names = ("vermilion", "paper", "blue")
    tones = [page.evaluate(f"colour('{name}')") for name in names]
    assert trace["colorscale"] == [[0, tones[0]], [0.5, tones[1]], [1, tones[2]]]


def test_a_mark_in_the_trade_off_says_what_was_gained(report: Path, opened: Open) -> None:
    page = opened(report)
    frame, results = (getattr(read_sweep(report.parent / "sweep"), name) for name in ("frame", "results"))
    told = page.evaluate("document.getElementById('trade-off').data.flatMap((trace) => trace.text ?? [])")
    assert len(told) == 12
    for text in told:
        [job] = map(int, re.findall(r"^job (\d+),", text))
        assert f"balanced accuracy gained {points(frame['balanced_accuracy_gained'][job])}<br>" in text
        assert said_of(results[job].outcome.gains) in text


def test_a_mark_in_the_trade_off_chooses_its_run(report: Path, opened: Open) -> None:
    page = opened(report)
    choose(page, "rank", "2")
    marks = page.locator("#trade-off .scatterlayer path.point")
    marks.nth(2).scroll_into_view_if_needed()
    box = marks.nth(2).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#run-summary")).to_contain_text("Job 6,")


def test_failed_jobs_are_told_with_reasons_that_stay_text(report: Path, opened: Open) -> None:
    page = opened(report)
    row = page.get_by_role("row").filter(has_text="failed")
    assert row.locator("td").last.text_content() == MARKED
    assert page.title() == "ranks by digit"
    assert page.get_by_text("the loss stopped being finite at step 4").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_colour_schemes_with_text_that_stands_out(
    report: Path, opened: Open, scheme: str
) -> None:
    page = opened(report, viewport={"width": 320, "height": 640}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for selector in ("body", "button.sort", "#find", ".controls label", ".mended h3", ".broken h3", "figcaption, p"):
        assert contrast(page, selector) >= 4.5, selector


def contrast(page: Page, selector: str) -> float:
    """WCAG 2.2's contrast ratio of the first such element's text and what is behind it."""
    colours = page.locator(selector).first.evaluate(
        """element => {
            const text = getComputedStyle(element).color;
            const solid = (one) => !["rgba(0, 0, 0, 0)", "transparent"].includes(getComputedStyle(one).backgroundColor);
            let behind = element;
            while (behind.parentElement && !solid(behind)) behind = behind.parentElement;
            return [text, getComputedStyle(behind).backgroundColor];
        }"""
    )

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_all_can_be_reached_by_keyboard_and_has_a_name(report: Path, opened: Open) -> None:
    page = opened(report)
    for element in page.locator("button, select, input, [role=img], [role=region], img").all():
        name = element.get_attribute("aria-label") or element.text_content() or element.get_attribute("alt")
        assert name or element.locator("xpath=ancestor::label").count(), element.evaluate("e => e.outerHTML")
    page.get_by_role("button", name="seed", exact=True).focus()
    page.keyboard.press("Enter")
    assert table_column(page, 5) == ["0"] * 6 + ["1"] * 6
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "sort"


def old_run() -> tuple[Any, Any]:
    """A run as an older version wrote it, without gains."""
    result, logits = made.made_run(LABELS[:COUNT], (3,))
    return replace(result, outcome=replace(result.outcome, gains=None)), logits


@pytest.mark.parametrize(
    "runs",
    [
        ["boom", "boom"],
        [None],
        [made.made_run(LABELS[:COUNT], diverged_at=1)],
        [made.made_run(LABELS[:COUNT])],
        [old_run(), old_run()],
        [made.made_run(LABELS[:COUNT]), old_run()],
        [made.made_run(LABELS[:COUNT], (digit,)) for digit in (1, 2)],
        [made.made_run(LABELS[:COUNT], (2, 7), method=method) for method in ("lora", "dora", "full")],
        [made.made_run(LABELS[:COUNT], rank=rank) for rank in range(1, 65)],
        [
            *(made.made_run(LABELS[:COUNT], rank=r, seed=s) for r in (1, 2) for s in (0, 1)),
            made.made_run(LABELS[:COUNT], rank=4),
        ],
    ],
    ids=[
        "failed",
        "missing",
        "diverged",
        "one run",
        "old",
        "one old",
        "two digits",
        "methods",
        "64 ranks",
        "missing seeds",
    ],
)
def test_any_sweep_gives_a_page_without_errors(tmp_path: Path, opened: Open, runs: Sequence[Any]) -> None:
    sweep = read_sweep(made.write_sweep(tmp_path / "sweep", runs))  # type: ignore[arg-type]
    page = opened(write_report(sweep, tmp_path / "report", PICTURES[:COUNT], LABELS[:COUNT]))
    sound = sum(isinstance(run, tuple) and run[0].outcome.diverged_at is None for run in runs)
    assert page.locator("#runs-table tbody tr").count() == sound
    assert not re.search(r"\b(nan|undefined|infinity)\b|<NA>", page.text_content("main") or "", re.IGNORECASE)
