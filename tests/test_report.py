"""pytest tests/test_report.py: a report tells what was gained and what it cost, whatever the jobs came to."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import made_results as made
import pandas as pd
import pytest

from lora_exp.report.tables import MEASURES, means_table, percent
from lora_exp.report.terminal import sweep_text
from lora_exp.report.verdict import verdict
from lora_exp.report.write import judged_claim, write_report
from lora_exp.storage.result import PREDICTIONS
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.storage.varied import NONE

PICTURES, LABELS = made.pictures_and_labels()
FEW = LABELS[:1000]


def reported(folder: Path, runs: Sequence[object]) -> str:
    """The page of a report on a sweep of these runs, whose images all exist."""
    made.write_sweep(folder / "the sweep", runs)  # type: ignore[arg-type]
    count = len(FEW)
    out = write_report(read_sweep(folder / "the sweep"), folder / "my report", PICTURES[:count], FEW)
    text = (out / "report.md").read_text()
    links = re.findall(r"!\[(.+?)\]\((.+?)\)", text)
    assert sorted(link for _, link in links) == sorted(f"figures/{p.name}" for p in out.glob("figures/*"))
    assert all(len(alt) > 20 for alt, _ in links)
    return text


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two ranks by two digits, one diverged, one failed, one missing, one whose base changed."""
    folder = tmp_path_factory.mktemp("mixed")
    runs = [made.made_run(FEW, (digit,), rank) for rank in (1, 4) for digit in (4, 9)]
    changed = (made.unproven(runs[3][0]), runs[3][1])
    lost = made.made_run(FEW, rank=2, diverged_at=7)
    return folder, reported(folder, [*runs[:3], changed, lost, "no | `memory` <left>", None])


def test_the_summaries_are_the_table(mixed: tuple[Path, str]) -> None:
    frame = read_sweep(mixed[0] / "the sweep").frame.assign(folder=[str(job) for job in range(7)])
    parquet = pd.read_parquet(mixed[0] / "my report" / "summary.parquet")
    csv = pd.read_csv(mixed[0] / "my report" / "summary.csv", dtype={"folder": str, "target": str})
    # The file has every bit, but before 3.1 pandas reads the last ones wrongly.
    for read, error in ((parquet, 0.0), (csv, 1e-13)):
        assert list(read) == list(frame)
        for name in frame:
            kept, back = frame[name].astype(object), read[name].astype(object)
            for value, seen in zip(kept[kept.notna()], back[kept.notna()], strict=True):
                assert value == seen or math.isclose(value, seen, rel_tol=error), name
            assert back[kept.isna()].isna().all(), name


def test_the_page_tells_of_every_job(mixed: tuple[Path, str]) -> None:
    text = mixed[1]
    assert "4 finished, 1 diverged, 1 failed, 1 missing" in text
    assert "the loss stopped being finite at step 7" in text
    assert r"no \| \`memory\` \<left>" in text
    assert "never ran" in text


def test_every_row_has_the_command_that_reproduces_it(mixed: tuple[Path, str]) -> None:
    frame = read_sweep(mixed[0] / "the sweep").frame
    for job, overrides in enumerate(frame["overrides"]):
        assert f"\nlora-exp {overrides}  # job {job}\n" in mixed[1]


def test_a_broken_proof_is_told(mixed: tuple[Path, str]) -> None:
    assert "unchanged (SHA-256 before and after): 4 of 5 runs" in mixed[1]
    assert "equals the base's: 5 of 5 runs" in mixed[1]
    assert "does not hold for jobs 3." in mixed[1]


def test_the_model_table_counts_parameters_at_each_rank(mixed: tuple[Path, str]) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in mixed[1].splitlines() if "|" in line]
    assert ["layer", "weight", "base", "rank 1", "rank 2", "rank 4"] in rows
    assert ["linear2", "2000 x 1000", "2,002,000", "3,000", "6,000", "12,000"] in rows
    assert ["with the base", "", "2,807,010", "2,813,804", "2,820,598", "2,834,186"] in rows
    assert ["overhead (%)", "", "", "0.242", "0.484", "0.968"] in rows


def test_provenance_is_told_once_where_all_runs_agree(mixed: tuple[Path, str]) -> None:
    assert re.search(r"\| versions\.torch +\| `2\.14\.1` +\|", mixed[1])
    assert re.search(r"\| adapter\.rank +\| `1, 4, 2` +\|", mixed[1])


def test_no_gain_is_told_without_its_cost(mixed: tuple[Path, str]) -> None:
    assert "best" not in mixed[1].lower()
    section = mixed[1].split("## Verdict")[1].split("##")[0]
    claims = [paragraph for paragraph in section.split("\n\n") if "->" in paragraph or "gained" in paragraph]
    assert len(claims) == 1
    assert all("forgetting" in paragraph and "balanced accuracy" in paragraph for paragraph in claims)


def test_the_verdict_of_one_run_is_its_numbers(tmp_path: Path) -> None:
    run = made.made_run(FEW, (2, 7))
    out = run[0].outcome
    line = verdict(read_sweep(made.write_sweep(tmp_path / "s", [run])).frame)
    assert line.startswith("Classes 2 and 7 at rank 4: ")
    assert f"{100 * out.target_error_before:.2f} % -> {100 * out.target_error:.2f} %" in line
    assert f"{100 * out.other_error_before:.2f} % -> {100 * out.other_error:.2f} %" in line


def test_runs_without_a_rank_have_a_mean_of_their_own(tmp_path: Path) -> None:
    runs = [
        made.made_run(LABELS, rank=4),
        made.made_run(LABELS, (3,), method="full"),
        made.made_run(LABELS, method="full"),
    ]
    frame = read_sweep(made.write_sweep(tmp_path / "sweep", runs)).frame
    headings, cells = means_table(frame, ["rank"])
    assert [row[: headings.index("runs") + 1] for row in cells] == [["4", "1"], [NONE, "2"]]
    error = headings.index(MEASURES["target_error"][0])
    assert cells[1][error] == percent(frame["target_error"][1:].mean())


def test_a_sweep_without_a_gain_says_so_first_and_names_no_best(tmp_path: Path) -> None:
    """The made runs mend the target by breaking the others, as a moved threshold would."""
    runs = [made.made_run(LABELS, (digit,), 64) for digit in (1, 2)]
    frame = read_sweep(made.write_sweep(tmp_path / "s", runs)).frame
    assert (frame["balanced_accuracy_gained_high"] < 0).all()
    assert verdict(frame).startswith("Every run is worse than doing nothing: balanced accuracy ")
    one = verdict(frame.head(1))
    assert one.startswith("Class 1 at rank 64: balanced accuracy ") and ", worse than doing nothing; " in one


def test_runs_count_as_better_by_their_intervals_alone(tmp_path: Path) -> None:
    runs = [made.made_run(LABELS, (digit,), 4) for digit in (1, 2, 3, 4)]
    frame = read_sweep(made.write_sweep(tmp_path / "s", runs)).frame
    for name, lows, highs in (
        ("balanced_accuracy_gained", [0.01, -0.01, -0.02, 0.0], [0.02, 0.01, -0.01, 0.01]),
        ("beyond_shift", [-0.01, 0.001, -0.02, 0.002], [0.02, 0.01, -0.01, 0.01]),
    ):
        frame = frame.assign(**{f"{name}_low": lows, f"{name}_high": highs})
    told = verdict(frame)
    assert told.startswith("1 of 4 runs is better than doing nothing, 1 is worse: ")
    assert "2 of 4 forget less than a moved threshold of the same recall, 1 more." in told
    frame = frame.assign(balanced_accuracy_gained_low=-0.1, beyond_shift_low=-0.1)
    told = verdict(frame)
    assert told.startswith("No run is better than doing nothing, 1 of 4 is worse: ")
    assert "None forgets less than a moved threshold of the same recall; 1 forgets more." in told
    frame = frame.assign(balanced_accuracy_gained_high=0.1, beyond_shift_high=0.1)
    told = verdict(frame)
    assert told.startswith("No run is better than doing nothing: balanced accuracy ")
    assert "None forgets less than a moved threshold of the same recall. " in told and " 0 " not in told
    twice = verdict(pd.concat([frame, frame.head(2)]))
    assert twice == told and "Mean of 4 finished runs" in told, "a run that was asked for twice counts once"


def test_a_diverged_run_is_in_no_mean(tmp_path: Path) -> None:
    runs = [made.made_run(FEW), made.made_run(FEW, rank=1), made.made_run(FEW, rank=8, diverged_at=2)]
    line = verdict(read_sweep(made.write_sweep(tmp_path / "s", runs)).frame)
    mean = sum(run[0].outcome.target_error for run in runs[:2]) / 2
    assert "Mean of 2 finished runs (1 diverged besides)" in line
    assert f"-> {100 * mean:.2f} %, on the other" in line


@pytest.mark.parametrize(
    ("runs", "told", "pictures"),
    [
        ([made.made_run(FEW)], "1 finished", 3),
        ([made.made_run(FEW, (2, 7), rank) for rank in (1, 2)], "fine-tuned on classes 2 and 7", 6),
        ([made.made_run(FEW, (digit,)) for digit in (1, 2)], "Each cell is one run.", 5),
        (
            [made.made_run(FEW, rank=r, seed=s) for r in (1, 2) for s in (0, 1)],
            "up to 2 runs, which differ in seed",
            6,
        ),
        ([made.made_run(FEW, rank=r, alpha=a) for r in (1, 2) for a in (1.0, "rank")], "### By alpha", 6),
        ([made.made_run(FEW, rank=rank) for rank in range(1, 65)], "8 of 64 methods and ranks", 6),
        ([made.made_run(FEW, method=m) for m in ("lora", "dora", "full")], "### By method", 5),
        ([made.made_run(FEW, (digit,), method="full") for digit in (1, 2)], "with full", 5),
        (["boom", "boom"], "No finished run among 2 (2 failed)", 0),
        ([None], "No finished run among 1 (1 missing)", 0),
        ([made.made_run(FEW, diverged_at=1)], "No finished run among 1 (1 diverged)", 0),
    ],
    ids=[
        "one job",
        "two digits",
        "one rank",
        "seeds",
        "alphas",
        "64 ranks",
        "methods",
        "full",
        "failed",
        "missing",
        "diverged",
    ],
)
def test_any_sweep_gives_a_sensible_page(tmp_path: Path, runs: list[object], told: str, pictures: int) -> None:
    text = reported(tmp_path, runs)
    assert told in text
    assert text.count("![") == pictures
    assert not re.search(r"\b(nan|none|inf)\b|<NA>", text, re.IGNORECASE)


@pytest.mark.parametrize("lost", [False, True])
def test_a_claim_is_told_before_the_other_figures_whatever_became_of_its_jobs(tmp_path: Path, lost: bool) -> None:
    runs: list[object] = [
        made.made_run(FEW, rank=rank, seed=seed, base_seed=seed) for rank in (1, 2, 4, 64) for seed in (0, 1)
    ]
    sweep = read_sweep(made.write_sweep(tmp_path / "s", [*runs[:7], "no memory" if lost else runs[7]]))  # type: ignore[list-item]
    claim = judged_claim(sweep, "rank_saturates")
    assert claim is not None and judged_claim(sweep, None) is None
    out = write_report(sweep, tmp_path / "report", PICTURES[: len(FEW)], FEW, claim)
    text = (out / "report.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    expected = ["Claim", "Recommendation", "Verdict", "What was gained", "Settings over seeds"]
    assert headings[:5] == expected
    section = text.split("## Claim")[1].split("\n## ")[0]
    assert f"**{claim.outcome}**: Few ranks suffice" in section
    assert (out / "figures" / "claim.png").is_file() == ("](figures/claim.png)" in section) == (not lost)
    assert ("Not judged: of 8 jobs 1 failed" in section) == lost


def test_a_run_whose_predictions_are_lost_is_reported_without_them(tmp_path: Path) -> None:
    folder = made.write_sweep(tmp_path / "s", [made.made_run(FEW)])
    (folder / "0" / PREDICTIONS).unlink()
    out = write_report(read_sweep(folder), tmp_path / "report", PICTURES[:1000], FEW)
    assert "No figure for job 0: its predictions can't be read" in (out / "report.md").read_text()


def test_a_report_replaces_an_older_one_and_nothing_else(tmp_path: Path) -> None:
    sweep = read_sweep(made.write_sweep(tmp_path / "s", ["boom"]))
    out = tmp_path / "reports" / "one"
    write_report(sweep, out, PICTURES, LABELS)
    (out / "figures" / "stale.png").touch()
    write_report(sweep, out, PICTURES, LABELS)
    assert not (out / "figures" / "stale.png").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.md").touch()
    with pytest.raises(ValueError, match="mine: exists and is not a report"):
        write_report(sweep, mine, PICTURES, LABELS)
    assert [path.name for path in mine.iterdir()] == ["thesis.md"]


def test_a_report_that_fails_leaves_the_older_one_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(made.write_sweep(tmp_path / "s", ["boom"]))
    out = write_report(sweep, tmp_path / "reports" / "one", PICTURES, LABELS)
    older = (out / "report.md").read_bytes()

    def no_page(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr("lora_exp.report.write.html", no_page)
    with pytest.raises(OSError, match="no space left"):
        write_report(sweep, out, PICTURES, LABELS)
    assert [path.name for path in out.parent.iterdir()] == ["one"]
    assert (out / "report.md").read_bytes() == older


def told_terminal(capsys: pytest.CaptureFixture[str], folder: Path) -> list[str]:
    print(sweep_text(read_sweep(folder).frame, terminal=False), end="")
    return capsys.readouterr().out.splitlines()


def test_the_terminal_table_has_a_row_for_each_finished_job_and_a_line_for_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [made.made_run(FEW, rank=1), "no memory", made.made_run(FEW, rank=2)]
    lines = told_terminal(capsys, made.write_sweep(tmp_path / "s", runs))
    numbered = [line.split() for line in lines if re.match(r" *\d", line)]
    assert [row[:2] for row in numbered] == [["0*", "1"], ["2*", "2"]]
    out = runs[0][0].outcome  # type: ignore[union-attr]
    assert numbered[0][3:5] == [f"{100 * out.forgetting:+.2f}", f"{100 * out.target_error:.2f}"]
    assert lines[0].startswith(f"base: error on class 9 {100 * out.target_error_before:.2f} %, on the other classes ")
    assert lines[-1].endswith("failed: no memory")
    assert max(map(len, lines[:-1])) <= 80  # a reason may be longer


def test_a_long_terminal_table_becomes_means_by_what_varies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = itertools.product((1, 2, 3), range(1, 12), (0, 1))
    runs = [made.made_run(FEW, (digit,), rank, seed=seed) for digit, rank, seed in keys]
    lines = told_terminal(capsys, made.write_sweep(tmp_path / "s", [*runs, *["boom"] * 30]))
    assert lines[0] == "means of the 66 finished runs by class and rank"
    assert len(lines) < 60
    assert lines[-1] == "... and 20 more jobs without errors to compare"
    first = next(line.split() for line in lines if re.match(r" *2 ", line))
    assert first[:3] == ["2", "1", "1"]
    mean = sum(run[0].outcome.forgetting for run in runs[:2]) / 2
    assert first[4] == f"{100 * mean:+.2f}"


def test_a_report_of_forty_jobs_is_small(tmp_path: Path) -> None:
    runs = [made.made_run(LABELS, (digit,), rank) for rank in (1, 2, 4, 8) for digit in range(10)]
    made.write_sweep(tmp_path / "s", runs)
    out = write_report(read_sweep(tmp_path / "s"), tmp_path / "report", PICTURES, LABELS)
    sizes = {path.name: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    assert sizes.pop("report.html") < 7_000_000
    assert sum(sizes.values()) < 2_000_000
