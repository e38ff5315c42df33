"""Where a result comes from: versions, commit, processor, threads, and a hash of the code that computes."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lora_exp import numerics
from lora_exp.config.spec import digest

PACKAGE = Path(__file__).resolve().parents[1]
# The code that determines the numbers in an entry of the store: folders, modules or single definitions. A new file in
# one of these folders counts from its first day.
COMPUTING = {
    "bases": (
        "numerics",
        "config.spec",
        "config.models",
        "config.images",
        "data.header",
        "model",
        "training.base",
        "training.evaluation",
    ),
    "results": (
        *(
            "numerics",
            "config.spec",
            "config.models",
            "config.images",
            "data.header",
            "config.methods",
            "measures",
            "model",
            "adapters",
            "training",
        ),
        "storage.result.Outcome",
    ),
}
# Exceptions: code that only schedules, that uses what is stored (a base, a classifier), or that converts adapters of
# other libraries; and the parts of `config.spec` that no base depends on.
NOT_COMPUTING = {
    "bases": (
        *("config.spec.AdapterSpec", "config.spec.FinetuneSpec"),
        *("training.base.load_base", "training.base.load_classifier"),
    ),
    "results": (
        *("adapters.peft", "adapters.adapted.AdaptedClassifier", "measures.intervals"),
        *("training.base.load_base", "training.base.load_classifier"),
        *("training.laboratory", "training.packing", "training.halving", "training.executor"),
    ),
}
# Fields of a syntax tree that say nothing about numbers: annotations, error messages and bookkeeping of `ast`.
NO_NUMBERS = {"annotation", "returns", "type_params", "type_comment", "cause", "msg", "ctx", "kind"}
FIELD = 2  # marks `name: type` in the body of a class: a field of a dataclass, which a plain assignment is not
LIBRARIES = ("torch", "torchvision", "hydra-core", "omegaconf", "mlflow", "pandas", "numpy", "safetensors")


@functools.cache
def code_version(kind: str, package: Path = PACKAGE) -> str:
    """Hash of the code that computes the entries of `kind` ("bases" or "results"), 16 hex digits.

    What is hashed is the set of top-level statements, without comments, docstrings, imports, annotations and messages:
    the hash stays the same when a definition moves to another computing module. It doesn't see when an import line
    binds another object to the same name.
    """
    return digest(sorted({text for _, text in definitions(kind, package)}))[:16]


def definitions(kind: str, package: Path = PACKAGE) -> Iterator[tuple[str, str]]:
    """The top-level statements that compute the entries of `kind`: name (`model.base.train`), and code."""
    places, others = COMPUTING[kind], NOT_COMPUTING[kind]
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        if _is_in(module, places) or any(_is_in(place, [module]) for place in places):
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                name = f"{module}.{_name(statement)}"
                if _is_in(name, places) and not _is_in(name, others) and (code := _essence(statement)):
                    yield name, code


def _is_in(name: str, places: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def _name(statement: ast.stmt) -> str:
    """What a top-level statement defines; a question mark for several names or none."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
    return str(getattr(statement, "name", None) or getattr(target, "id", "?"))


def _essence(node: object) -> str:
    """The code of a syntax tree, without what changes no number; the same text in every version of Python.

    Left out are docstrings, imports, annotations, error messages and logging. "" for code that is nothing else.
    """
    if isinstance(node, list):
        return f"[{', '.join(filter(None, map(_essence, node)))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.If(test=ast.Name("TYPE_CHECKING")):
            return ""
        case ast.Expr(ast.Constant(str())) | ast.Expr(ast.Call(ast.Attribute(ast.Name("log")))):
            return ""
        case ast.Assign([ast.Name("log")]):
            return ""
        case ast.ClassDef():
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign):
                    statement.simple = FIELD
        case ast.AnnAssign(target, _, value, simple) if simple != FIELD:
            if value is None:
                return ""
            node = ast.Assign([target], value)
        case ast.Raise(ast.Call(function)):
            node = ast.Raise(function)
    parts = {name: getattr(node, name, None) for name in node._fields if name not in NO_NUMBERS}
    shown = (f"{name}={_essence(part)}" for name, part in parts.items() if part not in (None, []))
    return f"{type(node).__name__}({', '.join(shown)})"


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of Python and of the libraries that matter."""
    found = {"python": platform.python_version(), "lora-exp": importlib.metadata.version("lora-exp")}
    return found | {name: importlib.metadata.version(name) for name in LIBRARIES}


@functools.cache
def git_commit(package: Path = PACKAGE) -> str | None:
    """Commit of the checkout that holds `package` at its top, with `+changes` when files differ; None outside one."""

    def git(*arguments: str) -> list[str]:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD")
        if Path(top) != package.parent:  # installed inside another project's checkout
            return None
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


@functools.cache
def processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def provenance(device: str, threads: int, promise: str, data_sha256: str) -> dict[str, Any]:
    """Describe where and with what a result is computed, as JSON types."""
    import torch

    return {
        "versions": versions(),
        "commit": git_commit(),
        "code": code_version("results"),
        "platform": platform.platform(),
        "processor": processor(),
        "device": device,
        "threads": threads,
        "torch_threads": torch.get_num_threads(),  # the number that bases train on
        "mkl_cbwr": numerics.requested(),
        "kernels": numerics.kernels(),
        "promise": promise,
        "data_sha256": data_sha256,
    }
