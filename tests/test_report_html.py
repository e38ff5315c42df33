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
from lora_exp.report.recommended import headline, recommended_table
from lora_exp.report.tables import points
from lora_exp.report.write import write_report
from lora_exp.storage.recommendation import recommendations
from lora_exp.storage.sweep_file import run_command
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.storage.table import pareto_front

PICTURES, LABELS = made.pictures_and_labels()
COUNT = 2000
MARKED = "out of <b>memory</b> </script><script>document.title='run'</script> {{ 7 * 7 }}"
INSIDE = re.compile("data:|blob:|about:blank")
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


def is_own(address: str, page: str) -> bool:
    return bool(INSIDE.match(address)) or address.partition("#")[0] == page


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
        page.on("request", lambda asked: None if is_own(asked.url, own) else troubles.append(asked.url))
        page.goto(own)
        page.locator("body[data-drawn=true]").wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def table_column(page: Page, column: int) -> list[str]:
    return page.locator(f"#runs-table tbody tr:not([hidden]) td:nth-child({column})").all_text_contents()


def choose(page: Page, setting: str, *values: str) -> None:
    """Show these values of a setting alone; without any, all."""
    box = page.locator(f"[data-filter={setting}]")
    box.locator("summary").click()
    for checked in box.locator("input[type=checkbox]").all():
        checked.set_checked((checked.get_attribute("value") or "") in values)
    page.keyboard.press("Escape")
    page.locator("body[data-drawn=true]").wait_for(state="attached")


def see(page: Page, chart: str) -> Any:
    """A chart's element, once it is in sight and drawn."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    page.locator(f"#{chart}[data-drawn=true]").wait_for()
    return page.locator(f"#{chart}")


def recommended(page: Page) -> list[list[str]]:
    return [row.locator("td").all_text_contents() for row in page.locator("#recommended tbody tr").all()]


def test_every_chart_is_drawn_with_the_means_of_its_runs(report: Path, opened: Open) -> None:
    page = opened(report)
    frame = read_sweep(report.parent / "sweep").frame
    for name in ("target_error", "forgetting", "balanced_accuracy_gained"):
        means = frame[frame["status"] == "finished"].groupby(["target", "rank"])[name].mean()
        texts = see(page, f"map-{name}").locator(".textpoint text").all_text_contents()
        sign = "" if name == "target_error" else "+"
        assert sorted(texts) == sorted(f"{100 * mean:{sign}.2f}" for mean in means)
    assert see(page, "scatter").locator(".scatterlayer path.point").count() == 12  # a mark a run
    assert see(page, "slice").locator(".scatterlayer path.point").count() >= 12
    assert see(page, "parallel").locator(".scatterlayer path.js-line").count() == 12  # a path a run
    assert (
        see(page, "losses").locator(".scatterlayer path.js-line").count() == 6
    )  # each rank's mean, and the edge of its band
    assert see(page, "classes").locator(".bars path").count() >= 20
    assert see(page, "confusion").locator(".textpoint text").count() > 10


def test_the_recommendation_comes_first_and_is_that_of_the_sweep(report: Path, opened: Open) -> None:
    page = opened(report)
    found = recommendations(read_sweep(report.parent / "sweep").frame)
    assert page.locator("main h2").first.text_content() == "Recommendation"
    assert page.locator(".headline").text_content() == headline(found)
    assert recommended(page) == recommended_table(found)[1]
    box = page.locator("#recommended tbody tr").last.bounding_box()
    assert box is not None and box["y"] + box["height"] < 720  # without scrolling
    assert page.locator("details.part[open]").count() == 0


@pytest.mark.parametrize(
    "shown",
    [{"rank": ("1",)}, {"rank": ("2", "10"), "target": ("9",)}, {"seed": ("1",)}, {"target": ("2",), "seed": ("0",)}],
)
def test_a_filter_acts_on_the_recommendation_as_if_the_sweep_had_those_runs_alone(
    report: Path, opened: Open, shown: dict[str, tuple[str, ...]]
) -> None:
    page = opened(report)
    frame = read_sweep(report.parent / "sweep").frame
    for setting, values in shown.items():
        choose(page, setting, *values)
        frame = frame[frame[setting].astype("string").isin(values)]
    found = recommendations(frame)
    assert recommended(page) == recommended_table(found)[1]
    assert f"job {found[0].jobs[0]}:" in page.locator("#chooser option:checked").inner_text()  # the best of those shown
    expect(page.locator("#of-shown")).to_contain_text(f"Of the {int((frame['status'] == 'finished').sum())} runs")
    expect(page.locator(".headline")).to_be_hidden()


def test_a_filter_takes_several_values_and_ranges_acts_on_all_and_is_reset(report: Path, opened: Open) -> None:
    page = opened(report)
    choose(page, "rank", "2", "10")
    expect(page.locator("#shown")).to_have_text("8 of 12 finished runs shown.")
    assert table_column(page, 1) == [str(job) for job in range(4, 12)]
    assert page.locator("#chooser option").count() == 8
    assert see(page, "scatter").locator(".scatterlayer path.point").count() == 8
    assert page.locator("#means-table tbody tr").count() == 2
    choose(page, "target", "9")
    assert table_column(page, 1) == ["6", "7", "10", "11"]
    errors = sorted(float(text) for text in table_column(page, 6))
    page.locator("#choices > .filter", has_text="measures").locator("> summary").click()
    page.locator("[data-filter=target_error] summary").click()
    page.locator("[data-filter=target_error] input[data-end=to]").fill(str((errors[0] + errors[-1]) / 2))
    page.keyboard.press("Tab")
    left = len(table_column(page, 1))
    assert 0 < left < 4 and f"{left} of 12" in (page.locator("#shown").text_content() or "")
    page.locator("[data-filter=target_error] input[data-end=to]").fill("-1")
    page.keyboard.press("Tab")
    expect(page.locator("#shown")).to_contain_text("0 of 12 finished runs shown. None has all of these")
    expect(page.locator("#scatter")).to_be_hidden()
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(page.locator("#shown")).to_have_text("12 of 12 finished runs shown.")
    assert page.locator("#choices input:checked").count() == 0
    page.get_by_label("Find").fill("finetune.seed=1")  # is in the command
    assert len(table_column(page, 1)) == 6
    page.get_by_label("Find").fill("class 9, rank 10")  # is what labels say
    assert table_column(page, 1) == ["10", "11"]


def test_the_address_holds_what_is_shown(report: Path, opened: Open) -> None:
    page = opened(report)
    choose(page, "rank", "2", "10")
    choose(page, "target", "9")
    see(page, "scatter")
    page.locator("#price [data-choice=y]").select_option("other_error")
    address = page.url
    assert "rank=2" in address and "rank=10" in address and "target=9" in address
    page.goto("about:blank")
    page.goto(address)
    page.locator("body[data-drawn=true]").wait_for(state="attached")
    expect(page.locator("#shown")).to_have_text("4 of 12 finished runs shown.")
    see(page, "scatter")
    assert page.locator("#price [data-choice=y]").input_value() == "other_error"
    page.goto(address.partition("#")[0] + "#rank=77&nonsense=1&look.colour=%3Cscript%3E&target.range=x")
    page.reload()
    expect(page.locator("#shown")).to_have_text("12 of 12 finished runs shown.")


def test_filters_stay_in_sight_down_to_the_last_line(report: Path, opened: Open) -> None:
    page = opened(report)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    assert page.locator("#filters").evaluate("element => element.getBoundingClientRect().top") == 0


def test_the_table_sorts_by_number_and_back(report: Path, opened: Open) -> None:
    page = opened(report)
    header = page.locator("#runs-table").get_by_role("button", name="rank", exact=True)
    header.click()
    assert table_column(page, 3) == ["1"] * 4 + ["2"] * 4 + ["10"] * 4
    header.click()
    assert table_column(page, 3) == ["10"] * 4 + ["2"] * 4 + ["1"] * 4
    assert page.locator("#runs-table th").nth(2).get_attribute("aria-sort") == "descending"
    page.locator("#runs-table").get_by_role("button", name="target error after (%)").click()
    errors = [float(text) for text in table_column(page, 6)]
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
    see(page, "map-balanced_accuracy_gained")
    trace = page.evaluate("document.getElementById('map-balanced_accuracy_gained').data[0]")
    most = max(abs(value) for row in trace["z"] for value in row if value is not None)
    assert trace["zmax"] == -trace["zmin"] == pytest.approx(most)
    tones = [page.evaluate(f"rgb(parts(colour('{name}')))") for name in ("vermilion", "paper", "blue")]
    assert trace["colorscale"] == [[0, tones[0]], [0.5, tones[1]], [1, tones[2]]]


def test_every_number_in_a_cell_stands_out_from_its_colour(report: Path, opened: Open) -> None:
    page = opened(report)
    for share in range(101):
        for stops in ("VIRIDIS", "DIVERGING()"):
            cell = page.evaluate(f"mixed({stops}, {share / 100})")
            text = page.evaluate(f"parts(textOn(mixed({stops}, {share / 100})))")
            assert ratio(cell, text) >= 4.5, (stops, share)


def test_a_mark_says_its_job_all_that_varies_and_what_was_gained(report: Path, opened: Open) -> None:
    page = opened(report)
    see(page, "scatter")
    sweep = read_sweep(report.parent / "sweep")
    told = page.evaluate("document.getElementById('scatter').data.flatMap((trace) => trace.text ?? [])")
    assert len(told) == 12
    for text in told:
        [job] = map(int, re.findall(r"^job (\d+):", text))
        row = sweep.frame.iloc[job]
        assert f"job {job}: class {row['target']}, rank {row['rank']}, seed {row['seed']}<br>" in text
        assert f"balanced accuracy gained (points): {points(row['balanced_accuracy_gained'])}<br>" in text
        assert said_of(sweep.results[job].outcome.gains) in text  # type: ignore[arg-type]


def test_a_front_is_drawn_for_each_class(report: Path, opened: Open) -> None:
    page = opened(report)
    see(page, "scatter")
    lines = page.evaluate("document.getElementById('scatter').data.filter((trace) => trace.mode === 'lines')")
    frame = read_sweep(report.parent / "sweep").frame
    expected = []
    for target in ("2", "9"):
        own = frame[(frame["target"] == target) & (frame["status"] == "finished")]
        expected.append([100 * own["forgetting"][job] for job in pareto_front(own)][::-1])
    assert [line["x"] for line in lines] == [pytest.approx(one) for one in expected]


def test_a_click_on_a_mark_or_a_cell_chooses_its_runs(report: Path, opened: Open) -> None:
    page = opened(report)
    choose(page, "rank", "2")
    marks = see(page, "scatter").locator(".scatterlayer .trace").first.locator("path.point")
    box = marks.nth(2).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#run-summary")).to_contain_text("Job 6,")
    page.get_by_role("button", name="Reset", exact=True).click()
    cell = see(page, "map-forgetting").locator(".textpoint text").last
    box = cell.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#run-summary")).to_contain_text("Job 10,")
    assert page.locator("#chooser option").count() == 2  # the seeds of class 9 at rank 10
    assert page.locator("#runs-table tr.chosen").count() == 2
    page.get_by_role("button", name="all shown runs").click()
    assert page.locator("#chooser option").count() == 12


@pytest.mark.parametrize("chart", ["map-forgetting", "scatter", "slice", "parallel", "losses", "classes", "confusion"])
def test_what_a_chart_shows_is_a_file_and_a_table_too(report: Path, opened: Open, chart: str) -> None:
    page = opened(report)
    see(page, chart)
    frame = page.locator(f".frame:has(#{chart})")
    with page.expect_download() as saved:
        frame.get_by_role("button", name=re.compile("^Save the data as CSV")).click()
    text = Path(saved.value.path()).read_text(encoding="utf-8")
    frame.locator("details.data > summary").click()
    frame.locator("details.data table").wait_for()
    assert frame.locator("details.data tbody tr").count() == len(text.splitlines()) - 1 > 0
    with page.expect_download() as picture:
        frame.get_by_role("button", name=re.compile("^Save as PNG")).click()
    assert Path(picture.value.path()).read_bytes().startswith(b"\x89PNG")


def test_axes_and_colour_are_chosen_on_the_page(report: Path, opened: Open) -> None:
    page = opened(report)
    page.locator("[data-choice=colour]").select_option("target")
    see(page, "scatter")
    names = page.evaluate("document.getElementById('scatter').data.map((trace) => trace.name)")
    assert names[:5] == ["class 2", "class 9", "rank 1", "rank 2", "rank 10"]  # symbols stand for ranks
    page.locator("[data-choice=across]").select_option("seed")
    page.locator("[data-choice=down]").select_option("rank")
    see(page, "map-forgetting")
    trace = page.evaluate("document.getElementById('map-forgetting').data[0]")
    assert (trace["x"], trace["y"]) == (["0", "1"], ["1", "2", "10"])
    page.locator("[data-choice=as]").select_option("contour")
    see(page, "map-forgetting")
    assert page.evaluate("document.getElementById('map-forgetting').data[0].type") == "contour"


def test_failed_jobs_are_told_with_reasons_that_stay_text(report: Path, opened: Open) -> None:
    page = opened(report)
    page.get_by_text("Jobs without errors to compare").click()
    row = page.get_by_role("row").filter(has_text="failed")
    assert row.locator("td").last.text_content() == MARKED
    assert page.title() == "class by rank"
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

    return ratio(*([int(part) for part in re.findall(r"\d+", colour)[:3]] for colour in colours))


def ratio(one: Sequence[int], other: Sequence[int]) -> float:
    """WCAG 2.2's contrast ratio of two colours in sRGB."""

    def luminance(colour: Sequence[int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_all_can_be_reached_by_keyboard_and_has_a_name(report: Path, opened: Open) -> None:
    page = opened(report)
    for element in page.locator("button, select, input, [role=img], [role=region], img").all():
        name = element.get_attribute("aria-label") or element.text_content() or element.get_attribute("alt")
        assert name or element.locator("xpath=ancestor::label").count(), element.evaluate("e => e.outerHTML")
    find = page.get_by_label("Find")
    find.focus()
    page.keyboard.press("Tab")  # into the table, which is one stop
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert table_column(page, 4) == ["0"] * 6 + ["1"] * 6
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")  # the job of the first row
    expect(page.locator("#run-summary")).to_contain_text("Job 0,")
    find.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.closest('#runs-table') !== null")


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
    found = recommendations(sweep.frame)
    assert recommended(page) == (recommended_table(found)[1] if found else [])
    assert not re.search(r"\b(nan|undefined|infinity)\b|<NA>", page.text_content("main") or "", re.IGNORECASE)
