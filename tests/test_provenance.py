"""python -m pytest tests/test_provenance.py

The hash of the code in the keys of the store changes exactly when numbers could; a result knows its commit.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_exp.storage.provenance import (
    COMPUTING,
    NOT_COMPUTING,
    PACKAGE,
    code_version,
    definitions,
    git_commit,
    provenance,
)

BOTH = {"bases", "results"}
# What computing code uses of the package besides itself: none of it determines a number.
HELPERS = ("errors", "config.fields", "config.compose", "config.weights", "storage", "training.packing")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's code."""
    ignore = shutil.ignore_patterns("__pycache__", "mnist", "page")
    return Path(shutil.copytree(PACKAGE, tmp_path / "lora_exp", ignore=ignore))


def changed(package: Path) -> set[str]:
    """The kinds of entries that have other keys with the copied code."""
    return {kind for kind in COMPUTING if code_version(kind, package) != code_version(kind)}


def computing(package: Path) -> set[Path]:
    names = {name for kind in COMPUTING for name, _ in definitions(kind, package)}
    modules = {name.rpartition(".")[0] for name in names}
    return {package / f"{module.replace('.', '/')}.py" for module in modules}


def edit(paths: set[Path], change: Callable[[str], str]) -> None:
    for path in paths:
        path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("module", "before", "after", "kinds"),
    [
        ("config/spec", ".scaling(float(rank)", ".scaling(2.0 * float(rank)", {"results"}),
        ("config/methods", "alpha / rank", "alpha / rank / 2", {"results"}),
        ("numerics", "_ROWS = 16", "_ROWS = 32", BOTH),
        ("model/stack", "**-0.5", "**-0.25", BOTH),
        ("model/swapped", "VECTOR = 64", "VECTOR = 8", BOTH),
        ("config/models", "default=7", "default=8", BOTH),
        ("model/data", "div_(255)", "div_(256)", BOTH),
        ("training/evaluation", "CHUNK_ROWS = 2000", "CHUNK_ROWS = 1000", BOTH),
        ("numerics", "1e-8", "1e-6", BOTH),
        ("training/loop", ".floor_()", ".ceil_()", {"results"}),
        ("adapters/initialisation", "torch.randn", "torch.rand", {"results"}),
        ("adapters/updates", ".sum(", ".mean(", {"results"}),
        ("training/packing", "FULL_PACK = 25", "FULL_PACK = 24", set()),
        ("adapters/peft", '"peft_type"', '"type"', set()),
    ],
)
def test_a_key_changes_when_the_code_of_its_numbers_does(
    package: Path, module: str, before: str, after: str, kinds: set[str]
) -> None:
    text = (package / f"{module}.py").read_text()
    assert before in text, f"{module}.py doesn't hold {before!r} any more: give this test another piece of its code"
    edit({package / f"{module}.py"}, lambda text: text.replace(before, after))
    assert changed(package) == kinds


def reworded(text: str) -> str:
    text = re.sub(r'^(\s*)"""(?=\S)', r'\1"""In other words. ', text, flags=re.MULTILINE)
    return re.sub(r"^(\s*raise \w+Error\()", r'\1"in other words", ', text, flags=re.MULTILINE)


def without_annotations(text: str) -> str:
    """Also without comments and layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Name("object")
    return ast.unparse(tree)


@pytest.mark.parametrize(
    "change",
    [
        reworded,
        without_annotations,
        lambda text: re.sub(r"^(\s*)(def |class |return |for )", r"\1# why\n\1\2", text, flags=re.MULTILINE),
        lambda text: text.replace("from lora_exp.", "from another.place."),
        lambda text: text.replace("from __future__ import annotations", "import math"),
        lambda text: f"import logging\n{text}\nlog = logging.getLogger(__name__)\n",
    ],
    ids=["docstrings and messages", "annotations", "comments", "import lines", "another import", "a logger"],
)
def test_a_key_stays_when_the_code_does_the_same(package: Path, change: Callable[[str], str]) -> None:
    paths = computing(package)
    before = {path: path.read_text() for path in paths}
    edit(paths, change)
    assert sum(path.read_text() != before[path] for path in paths) > 12
    assert changed(package) == set()


def test_a_key_stays_when_code_moves_to_another_file(package: Path) -> None:
    (package / "model" / "base.py").rename(package / "model" / "classifier.py")
    source, target = package / "training" / "evaluation.py", package / "model" / "data.py"
    tree = ast.parse(source.read_text())
    moved = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    tree.body = [node for node in tree.body if node not in moved]
    source.write_text(ast.unparse(tree))
    target.write_text("\n".join([target.read_text(), *map(ast.unparse, moved)]))
    assert len(moved) > 4
    assert changed(package) == set()


def code(package: Path, text: str) -> str:
    package.mkdir()
    (package / "numerics.py").write_text(text)
    return code_version("bases", package)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x: int = 3", "x = 3", True),
        (
            "def f(a: int, *b: int) -> int:\n    c: int\n    d: int = a",
            "def f(a, *b): d = a",
            True,
        ),
        ("def f(self): self.a: int = 3", "def f(self): self.a = 3", True),
        ("class A:\n    x: int = 3", "class A:\n    x: float = 3", True),
        ("class A(ValueError):\n    '''Says why.'''", "class A(ValueError): pass", True),
        ("def f():\n    log.info('%d', 3)\n    return 1", "def f(): return 1", True),
        ("def f(a): assert a, 'why'", "def f(a): assert a", True),
        ("def f(): raise ValueError('why') from None", "def f(): raise ValueError('because')", True),
        ("if TYPE_CHECKING:\n    import torch\nx = 1", "x = 1", True),
        ("def f():\n    import torch\n    return torch.zeros(1)", "import torch\ndef f(): return torch.zeros(1)", True),
        ("a = 1\nb = 2", "b = 2\na = 1", True),
        ("class A:\n    x: int = 3", "class A:\n    x = 3", False),  # a field of a dataclass, and not one
        ("class A:\n    x: int", "class A:\n    y: int", False),
        ("class A:\n    x: int\n    y: int", "class A:\n    y: int\n    x: int", False),
        ("def f(): return 'a'", "def f(): return 'b'", False),
        ("def f(a=1): return a", "def f(a=2): return a", False),
        ("def f(): return 0", "def f(): return None", False),
        ("def f(): return 0", "def f(): return 0.0", False),
        ("def f(a): return -a", "def f(a): return +a", False),
        ("def f(a): raise ValueError(a)", "def f(a): raise KeyError(a)", False),
        ("def f(a): g(); h()", "def f(a): h(); g()", False),
        ("@cache\ndef f(): return 0", "def f(): return 0", False),
    ],
)
def test_only_what_the_code_does_is_hashed(tmp_path: Path, one: str, other: str, same: bool) -> None:
    assert (code(tmp_path / "one", one) == code(tmp_path / "other", other)) is same


@pytest.mark.parametrize("kind", list(COMPUTING))
def test_every_place_that_is_said_to_compute_or_not_holds_code(kind: str) -> None:
    known = {
        ".".join([*path.relative_to(PACKAGE).with_suffix("").parts, getattr(node, "name", "")])
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
    }
    for place in (*COMPUTING[kind], *NOT_COMPUTING[kind]):
        assert any(f"{name}.".startswith(f"{place}.") for name in known), f"{place} is gone; where is its code now?"


def test_computing_code_imports_no_code_of_the_package_that_is_not_hashed() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in computing(PACKAGE)}
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lora_exp."):
                package = str(node.module).removeprefix("lora_exp.")
                for name in {own if (own := f"{package}.{alias.name}") in modules else package for alias in node.names}:
                    is_known = name in modules or name.startswith(HELPERS) or module.startswith("storage.")
                    assert is_known, f"{module} imports {name}, whose code is not in the keys"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_of_a_checkout_is_found_and_changes_are_noted(package: Path) -> None:
    git_commit.cache_clear()
    assert git_commit(package) is None
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "-m", "all")
    commit = git(package.parent, "rev-parse", "HEAD")
    git_commit.cache_clear()
    assert git_commit(package) == commit
    (package / "errors.py").write_text("")
    git_commit.cache_clear()
    assert git_commit(package) == f"{commit}+changes"


def test_a_package_inside_another_projects_checkout_has_no_commit(package: Path) -> None:
    git(package.parent, "init", "--quiet")
    git(package.parent, "commit", "--quiet", "--allow-empty", "-m", "another project")
    (package.parent / "site-packages").mkdir()
    git_commit.cache_clear()
    assert git_commit(package.rename(package.parent / "site-packages" / "lora_exp")) is None


@pytest.mark.skipif(not (PACKAGE.parent / ".git").exists(), reason="not in a checkout")
def test_a_result_holds_the_commit_of_this_checkout_and_the_hash_of_the_code() -> None:
    git_commit.cache_clear()
    found = provenance("cpu", 1, "same bits", "0" * 64)
    assert found["commit"].removesuffix("+changes") == git(PACKAGE.parent, "rev-parse", "HEAD")
    assert found["code"] == code_version("results")
