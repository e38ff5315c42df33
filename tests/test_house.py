"""python -m pytest tests/test_house.py

The rules of the architecture: which package may import which, what each shows to the others, which few modules know a
large library, and what start-up may load.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lora_exp"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
PLUGINS = sorted((ROOT / "hydra_plugins").rglob("*.py"))

# A package imports what stands before it. `report` and `tracking` read what is on disk, and neither knows the other;
# `contest` reads it too, and says what it found as a report does.
ORDER = [
    "errors",
    "child",
    "config",
    "numerics",
    "measures",
    "storage",
    "data",
    "model",
    "adapters",
    "training",
    "executors",
    "sweeps",
    "api",
    "commands",
    "__main__",
]
ON_DISK = ORDER[: ORDER.index("data")]
ASIDE = {"report": ON_DISK, "tracking": ON_DISK, "contest": [*ON_DISK, "report"]}
USERS_OF_ASIDE = ("sweeps", "api", "commands", "__main__")
# What other packages may import of a package.
FACES = {
    "config": "fields images methods models spec settings contest compose names hydra_rules",
    "measures": "class_errors intervals logits measured gains paired",
    "storage": "ownership recommendation result varied words table sweep_file sweep_folder store keys pruning promises "
    "provenance",
    "data": "header prepared embedded",
    "model": "data architecture base weights builders module swapped",
    "adapters": "plan pack adapted peft initialisation",
    "training": "laboratory executor base packing pack loop halving checkpoint probe",
    "executors": "choice",
    "report": "write verdict terminal next_steps figures search_section document gained recommended sweep_figures "
    "tables statistics",
    "contest": "protocol space scores rounds verdict words write next_steps",
    "tracking": "connection recorder reader delivery registry",
    "sweeps": "job sweep search launcher recording application",
    "api": "listing run session sweep",
    "commands": "help",  # the package itself holds the table of commands
}
# The only places that know a large library.
KNOW = {
    "mlflow": "tracking.connection tracking.recorder tracking.reader tracking.facts tracking.registry "
    "tracking.served_classifier",
    "optuna": "sweeps.study sweeps.samplers sweeps.search_space",
    "ray": "executors.ray executors.worker",
    "submitit": "executors.slurm",
    "omegaconf": "config.compose config.hydra_rules sweeps.job_configs sweeps.job sweeps.launcher sweeps.sweep "
    "sweeps.search sweeps.contest sweeps.contestants sweeps.application",
    "hydra": "config.compose config.hydra_rules config.names sweeps.job_configs sweeps.job sweeps.launcher "
    "sweeps.sweep sweeps.search sweeps.search_space sweeps.contest sweeps.contestants sweeps.application api.session",
    "matplotlib": "report.figures report.sweep_figures report.claims.figure report.write api.shown api.run api.sweep "
    "contest.figures",
}


# What only looks as if it ran code: a module's mode, and a command that a message shows, which reads tensors alone.
HARMLESS = (".eval()", "torch.load({path!r}, weights_only=True)")


def name_of(path: Path) -> str:
    """`storage.result`, `numerics`, and `report.claims` for a package's own file."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" else parts[:-1])


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; of this package without `lora_exp.`, others in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if is_module(name) else node.module for name in whole]
        else:
            continue
        yield from (name.removeprefix("lora_exp.") for name in found)


def is_module(name: str) -> bool:
    place = ROOT / Path(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def own_imports(path: Path) -> set[str]:
    known = {name_of(module) for module in MODULES}
    return {name for name in imports_of(path) if name in known and name}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def test_the_house_has_fourteen_packages_and_the_test_sees_all_of_them() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(FACES)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "child", "errors", "numerics"}
    assert 80 <= len(MODULES) <= 220


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    package = package_of(name_of(path))
    if not package:  # lora_exp/__init__.py offers names from anywhere
        return
    allowed = {package, *(ASIDE.get(package) or ORDER[: ORDER.index(package)])}
    allowed |= set(ASIDE) if package in USERS_OF_ASIDE else set()
    assert {package_of(module) for module in own_imports(path)} <= allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_face_of_a_package_is_imported_from_outside(path: Path) -> None:
    package = package_of(name_of(path))
    if not package:
        return
    for module in own_imports(path):
        other, _, inner = module.partition(".")
        if other != package and other in FACES:
            assert inner in FACES[other].split() or (other == "commands" and not inner), f"{path} imports {module}"


def test_a_face_holds_no_module_that_only_its_own_package_imports() -> None:
    plugins = {module for path in PLUGINS for module in own_imports(path)}
    outside = {
        module for path in MODULES for module in own_imports(path) if package_of(module) != package_of(name_of(path))
    }
    used = outside | plugins
    assert {f"{package}.{inner}" for package, face in FACES.items() for inner in face.split()} <= used


def test_the_modules_of_a_package_do_not_import_in_circles() -> None:
    order: list[str] = []
    left = {name_of(path): own_imports(path) - {name_of(path)} for path in MODULES if name_of(path)}
    while left:
        ready = [name for name, needs in left.items() if needs <= set(order)]
        assert ready, f"a circle among {sorted(left)}"
        order += ready
        for name in ready:
            del left[name]


@pytest.mark.parametrize("library", KNOW)
def test_few_modules_know_a_large_library(library: str) -> None:
    importing = {name_of(path) for path in MODULES if library in {name.partition(".")[0] for name in imports_of(path)}}
    importing |= {"executors.ray"} if library == "ray" else set()  # which imports it by name
    assert importing == set(KNOW[library].split())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_a_package_says_what_it_is_for_and_names_each_of_its_files(path: Path) -> None:
    tree = ast.parse(path.read_text())
    said = ast.get_docstring(tree)
    assert said
    if path.parent == PACKAGE:
        return
    if path.parent.name != "commands":  # where the table of commands is
        assert len(tree.body) == 1, "start-up may load nothing, so a package holds a docstring only"
    files = {file.stem for file in path.parent.glob("*.py")} - {"__init__"}
    files |= {folder.parent.name for folder in path.parent.glob("*/__init__.py")}
    assert {name for name in files if f"`{name}`" not in said} == set()


def test_no_file_is_long() -> None:
    assert {name_of(path): count for path in MODULES if (count := len(path.read_text().splitlines())) > 300} == {}


def test_nothing_in_the_project_runs_code_from_a_config() -> None:
    assert len(PLUGINS) == 3
    for path in [*MODULES, *PLUGINS]:
        text = path.read_text()
        for harmless in HARMLESS:
            text = text.replace(harmless, "")
        for banned in ("instantiate(", "pickle", "torch.load(", "eval(", "exec("):
            assert banned not in text, f"{banned} in {path}"
    configs = list((ROOT / "conf").rglob("*.yaml"))
    assert len(configs) > 40
    for config in configs:
        assert "_target_" not in config.read_text(), config


def loaded(code: str, *libraries: str) -> set[str]:
    """Those of `libraries` that a new process has loaded after `code`."""
    report = f"import sys\n{code}\nsys.stderr.write(' '.join({set(libraries)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_and_config_need_none_of_the_heavy_libraries() -> None:
    code = "import lora_exp.__main__ as app\nsys.argv = ['lora-exp', '--cfg', 'job']\n"
    code += "try:\n    app.main()\nexcept SystemExit as end:\n    assert not end.code"
    heavy = ("torch", "torchvision", "mlflow", "pandas", "matplotlib", "numpy", "scipy")
    assert loaded(code, "hydra", *heavy) == {"hydra"}


def test_training_and_its_workers_load_nothing_of_configs_reports_and_tracking() -> None:
    code = "import lora_exp.executors.choice, lora_exp.executors.worker"
    others = ("hydra", "omegaconf", "mlflow", "pandas", "matplotlib", "scipy", "torchvision", "ray", "submitit")
    assert loaded(code, "torch", *others) == {"torch"}


def test_training_a_base_does_not_load_the_compiler_of_torch() -> None:
    code = """
import torch
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import BaseSpec
from lora_exp.model.base import train
from lora_exp.config.images import MNIST
from lora_exp.model.data import Images, Split
train(ModelSpec((8,)), BaseSpec(), Split(Images(torch.zeros(40, 784, dtype=torch.uint8), MNIST), torch.arange(40) % 10))
"""
    assert loaded(code, "torch", "torch._dynamo", "torch._inductor", "sympy") == {"torch"}
