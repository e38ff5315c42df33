"""python -m pytest tests/test_contest_page.py

The page of a contest in real Chromium: accessible, self-contained, no wider than a screen or a sheet of A4; and what
stands in its Markdown, its LaTeX table and its CSV.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

import made_contest as made
import pytest
from axe_playwright_python.sync_playwright import Axe
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page

from lora_exp.contest.latex import escaped
from lora_exp.contest.page import sections, title_of, write_contest
from lora_exp.contest.verdict import Verdict
from lora_exp.contest.words import sentences
from lora_exp.report.document import Grid, Picture

INSIDE = re.compile("data:|about:blank")
A4 = 180 * 96 / 25.4  # pixels between the margins of a sheet
JUDGED = [name for name in made.CONTESTS if name != "unjudged"]
FIGURES = ["contest_forest.pdf", "contest_forest.svg", "contest_rates.pdf", "contest_rates.svg"]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {name: make() for name, make in made.CONTESTS.items()}


@pytest.fixture(scope="module")
def folders(verdicts: dict[str, Verdict], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("contests")
    for name, verdict in verdicts.items():
        (root / name).mkdir()
        write_contest(verdict, root / name)
    return {name: root / name for name in verdicts}


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """In the end it has seen no error, and no request for another file."""
    opened, troubles = browser.new_page(viewport={"width": 1024, "height": 800}), list[str]()
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on(
        "request",
        lambda asked: None if INSIDE.match(asked.url) or asked.is_navigation_request() else troubles.append(asked.url),
    )
    yield opened
    opened.close()
    assert troubles == []


def show(page: Page, folder: Path) -> None:
    page.goto((folder / "contest.html").as_uri())
    for picture in page.locator("img").all():
        assert picture.evaluate("(one) => one.decode().then(() => one.naturalWidth)") > 300


@pytest.mark.parametrize("name", made.CONTESTS)
def test_the_page_is_accessible_in_light_and_dark_and_no_wider_than_any_screen(
    folders: dict[str, Path], page: Page, name: str
) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        show(page, folders[name])
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", [name for name in made.CONTESTS if name != "long names"])
def test_no_table_is_cut_on_a_sheet_of_a4(folders: dict[str, Path], page: Page, name: str) -> None:
    page.emulate_media(media="print")
    page.set_viewport_size({"width": int(A4), "height": 1000})
    show(page, folders[name])
    assert page.evaluate("Math.max(...[...document.querySelectorAll('table')].map((one) => one.scrollWidth))") <= A4


def test_the_page_needs_no_script(folders: dict[str, Path], browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folders["winner"] / "contest.html").as_uri())
    assert page.locator("tbody tr").count() > 20
    assert "<script" not in page.content()
    context.close()


@pytest.mark.parametrize("name", made.CONTESTS)
def test_every_table_has_a_numbered_caption_and_headers_and_every_picture_a_text(
    folders: dict[str, Path], verdicts: dict[str, Verdict], page: Page, name: str
) -> None:
    show(page, folders[name])
    blocks = [block for section in sections(verdicts[name]) for block in section.blocks]
    grids = [block for block in blocks if isinstance(block, Grid)]
    captions = page.locator("table > caption").all_text_contents()
    assert [text.partition(".")[0] for text in captions] == [f"Table {at}" for at in range(1, len(grids) + 1)]
    assert page.locator("table").count() == len(grids)
    for table, grid in zip(page.locator("table").all(), grids, strict=True):
        assert table.locator("thead th[scope=col]").all_text_contents() == grid.table[0]
        assert table.locator("tbody th[scope=row]").count() == len(grid.table[1])
    pictures = [block for block in blocks if isinstance(block, Picture)]
    shown = page.locator("figure img[role=img]").all()
    assert [one.get_attribute("alt") for one in shown] == [block.alt for block in pictures]
    assert len(pictures) == (1 if name == "unjudged" else 2)


def test_headings_are_in_order_and_the_verdict_comes_first(
    folders: dict[str, Path], verdicts: dict[str, Verdict], page: Page
) -> None:
    show(page, folders["winner"])
    assert page.locator("h1").all_text_contents() == [
        "Which of lora, dora, pissa and bitfit errs least, when each is tuned with the same effort?"
    ]
    assert page.locator("h2").all_text_contents() == [
        *("Verdict", "Results", "Equivalence and power", "Cost", "Tuning", "Protocol", "Repeat it")
    ]
    assert page.locator("#verdict p").first.text_content() == " ".join(sentences(verdicts["winner"]))
    text = page.locator("main").inner_text()
    assert verdicts["winner"].protocol.sha256 in text
    assert verdicts["winner"].command in text
    assert all(version in text for version in made.VERSIONS.values())


def test_names_are_text_and_no_markup(folders: dict[str, Path], page: Page) -> None:
    show(page, folders["long names"])
    assert page.locator("main b").count() == 0
    assert page.locator("tbody th").first.inner_text() == made.LONG


def test_a_contest_without_judging_says_why_and_what_was_tried(folders: dict[str, Path], page: Page) -> None:
    show(page, folders["unjudged"])
    assert page.locator("h2").all_text_contents() == ["Verdict", "Tuning", "Protocol", "Repeat it"]
    assert "15 of the 30 jobs of selection have no result" in page.locator("#verdict").inner_text()
    assert page.locator("#tuning tbody tr").count() == 10
    assert not (folders["unjudged"] / "contest.tex").exists()
    assert (folders["unjudged"] / "contest.csv").read_text() == "arm,opponent,base_seed,difference\n"


@pytest.mark.parametrize("name", JUDGED)
def test_the_csv_has_every_difference_with_the_seed_of_its_base(
    folders: dict[str, Path], verdicts: dict[str, Verdict], name: str
) -> None:
    with (folders[name] / "contest.csv").open(newline="") as file:
        rows = [
            (row["arm"], row["opponent"], int(row["base_seed"]), float(row["difference"]))
            for row in csv.DictReader(file)
        ]
    assert rows == [
        (one.arm, one.opponent, base, difference)
        for standing in verdicts[name].standings
        for one in standing.comparisons
        for base, difference in zip(one.bases, one.differences, strict=True)
    ]


@pytest.mark.parametrize("name", made.CONTESTS)
def test_the_markdown_has_the_same_tables_and_links_to_figures_that_exist(
    folders: dict[str, Path], verdicts: dict[str, Verdict], name: str
) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse((folders[name] / "contest.md").read_text())
    grids = [block for section in sections(verdicts[name]) for block in section.blocks if isinstance(block, Grid)]
    assert sum(token.type == "table_open" for token in tokens) == len(grids)
    assert sum(token.type == "tr_open" for token in tokens) == sum(1 + len(grid.table[1]) for grid in grids)
    images = [child.attrs["src"] for token in tokens for child in token.children or [] if child.type == "image"]
    assert images and all((folders[name] / str(source)).is_file() for source in images)
    assert "".join(child.content for child in tokens[1].children or []) == title_of(verdicts[name])


@pytest.mark.parametrize("name", JUDGED)
def test_the_latex_table_has_a_cell_for_each_column_and_states_how_it_was_tested(
    folders: dict[str, Path], verdicts: dict[str, Verdict], name: str
) -> None:
    text, verdict = (folders[name] / "contest.tex").read_text(), verdicts[name]
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 1 + len(verdict.standings)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {5}
    plain = re.sub(r"\\[{}$]", "", text)
    assert plain.count("{") == plain.count("}")
    assert all(line.count("$") % 2 == 0 for line in plain.splitlines())
    for word in ("booktabs", r"\toprule", "$n=10$ bases" if name != "open" else "$n=5$ bases", "Holm", "margin of 0.3"):
        assert word in text
    assert verdict.protocol.sha256 in text.replace(r"\allowbreak ", "")
    for one in (one for own in verdict.standings for one in own.comparisons if one.differences):
        assert f"${one.interval.mean:+z.2f}" in text and not math.isnan(one.interval.mean)


def test_what_latex_takes_for_commands_is_escaped() -> None:
    assert escaped(r"a_b & 5 % of $x$ #1 {y} \z ~^<>|") == (
        r"a\_b \& 5 \% of \$x\$ \#1 \{y\} \textbackslash{}z \textasciitilde{}\textasciicircum{}"
        r"\textless{}\textgreater{}\textbar{}"
    )


def test_equal_verdicts_give_equal_files(
    folders: dict[str, Path], verdicts: dict[str, Verdict], tmp_path: Path
) -> None:
    write_contest(verdicts["winner"], tmp_path)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert names == [
        *(f"contest.{kind}" for kind in ("csv", "html", "md", "tex")),
        *(f"figures/{name}" for name in FIGURES),
    ]
    for name in names:
        assert (tmp_path / name).read_bytes() == (folders["winner"] / name).read_bytes(), name


@pytest.mark.parametrize("name", made.CONTESTS)
def test_no_number_that_is_missing_or_infinite_is_written(folders: dict[str, Path], name: str) -> None:
    for kind in ("html", "md", "tex", "csv"):
        if (path := folders[name] / f"contest.{kind}").exists():
            visible = re.sub(r"data:[^\"]*", "", path.read_text())
            assert re.findall(r"[-+$>( ](?:nan|inf)\b", visible) == [], path
