"""python -m pytest tests/test_help.py

What the command line says of itself, and what it says when a name is mistyped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forkserver
import pytest

from lora_exp import __version__
from lora_exp.commands import COMMANDS
from lora_exp.commands.glossary import TERMS, markdown
from lora_exp.commands.help import EXAMPLES
from lora_exp.config.compose import compose_config

ROOT = Path(__file__).parent.parent


def interpreter(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_exp", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_command_alone_prints_one_screen_and_runs_nothing(tmp_path: Path) -> None:
    done = interpreter(tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert all(f"  {name:<14}{command.line}" in lines for name, command in COMMANDS.items())
    assert "All defaults  lora-exp experiment=reference" in done.stdout
    assert not list(tmp_path.iterdir())
    assert interpreter(tmp_path, "help").stdout == done.stdout


def test_help_on_one_screen_and_the_version_load_neither_hydra_nor_torch(tmp_path: Path) -> None:
    for arguments in ([], ["--version"], ["reprot"]):
        code = "import sys, lora_exp.__main__ as app\n"
        code += f"sys.argv = ['lora-exp', *{arguments}]\ntry:\n    app.main()\nexcept SystemExit:\n"
        code += "    print({'hydra', 'torch', 'numpy'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "set()", done


def test_the_version_is_that_of_this_project(tmp_path: Path) -> None:
    for arguments in (["--version"], ["model=tiny", "--version"]):
        assert interpreter(tmp_path, *arguments).stdout == f"lora-exp {__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_commands_examples_groups_and_keys(tmp_path: Path, flag: str) -> None:
    done = forkserver.run([flag], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    parts = ["  doctor ", "A search      lora-exp", "adapter: bitfit, dora", "  hidden:\n", "learning_rate: 0.001"]
    places = [done.stdout.index(part) for part in parts]
    assert places == sorted(places)
    assert all(f"  {name:<14}{command.line}" in done.stdout for name, command in COMMANDS.items())


@pytest.mark.parametrize("example", EXAMPLES.values())
def test_the_examples_of_the_help_compose(example: str) -> None:
    import shlex

    arguments = [part for part in shlex.split(example)[1:] if part not in ("-m", "--plan")]
    compose_config(arguments, multirun="-m" in example)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("reprot runs/x", "report"),
        ("adaptor.rank=4", "adapter.rank=4"),
        ("-m adaptor.rank=1,2", "adapter.rank=1,2"),
        ("adapter=lorra", "adapter=lora"),
        ("experiment=rank_by_digits", "experiment=rank_by_digit"),
        ("adapter.rnk=4", "adapter.rank=4"),
        ("finetune.digt=3", "finetune.digit=3"),
        ("rank=4", "adapter.rank=4"),
        ("digit=3", "finetune.digit=3"),
        ("seed=3", "base.seed=3 or finetune.seed=3 or search.seed=3"),
        ("adptr=lora", "adapter=lora"),
        ("search.sampler=tpee", "search.sampler=tpe"),
        ("hydra/sweeper=optna", "hydra/sweeper=optuna"),
        ("hydra.verbos=true", "hydra.verbose"),
        ("--plann", "--plan"),
        ("model=tiny --cfgg job", "--cfg"),
        ("ui stor.folder=x", "store.folder=x"),
        ("glossary forgeting", "forgetting"),
    ],
)
def test_a_mistyped_name_gets_one_line_that_ends_with_what_may_be_meant(
    tmp_path: Path, arguments: str, meant: str
) -> None:
    done = forkserver.run(arguments.split(), tmp_path)
    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("lora-exp: ") and line.endswith(f"; did you mean {meant}?")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("quux", "lora-exp: quux: must be a command, or an override KEY=VALUE; lora-exp help lists the commands"),
        ("model=tiny quux", "lora-exp: quux: must be KEY=VALUE, such as adapter.rank=4"),
        ("--quux", "lora-exp: --quux: no such flag; lora-exp --help lists them"),
        (
            "adapter.rank=1,2",
            "lora-exp: adapter.rank=1,2: several values need a sweep; add -m for a run of each: "
            "lora-exp -m adapter.rank=1,2; one run with that list: 'adapter.rank=[1,2]'",
        ),
        (
            "finetune.seed=range(0,3)",
            "lora-exp: finetune.seed=range(0,3): several values need a sweep; add -m for a run of each: "
            "lora-exp -m 'finetune.seed=range(0,3)'",
        ),
    ],
)
def test_other_words_get_one_line_that_says_what_to_do(tmp_path: Path, arguments: str, line: str) -> None:
    done = forkserver.run(arguments.split(), tmp_path)
    assert done.returncode == 2 and done.stderr == f"{line}\n"
    assert not list(tmp_path.iterdir())


def test_a_list_needs_no_flag_where_a_preset_makes_a_sweep(tmp_path: Path) -> None:
    given = ["experiment=rank_by_digit", "adapter.alpha=1,2", "model=tiny", "data.limit=3000", "--plan"]
    done = forkserver.run(given, tmp_path)
    assert done.returncode == 0 and "80 jobs: 0 in the store already, 80 to run" in done.stdout
    given = ["model=tiny", "-m", "data.limit=3000", "adapter.rank=1,2", "--plan"]  # the flag among the overrides
    assert "2 jobs: " in forkserver.run(given, tmp_path).stdout


def test_the_glossary_explains_a_term_in_a_line_and_the_document_is_made_of_it(tmp_path: Path) -> None:
    done = interpreter(tmp_path, "glossary")
    assert all(f"\n{name} " in f"\n{done.stdout}" for name in TERMS)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert {"forgetting", "front", "rung", "pack", "recall", "replay", "setting", "moved threshold"} <= set(TERMS)
    assert list(TERMS) == sorted(TERMS, key=str.lower)
    assert interpreter(tmp_path, "glossary", "Moved", "threshold").stdout.startswith("moved threshold     a constant")
    assert (ROOT / "docs" / "glossary.md").read_text() == markdown(), "lora-exp glossary --markdown > docs/glossary.md"
