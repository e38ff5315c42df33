"""python -m pytest tests/test_house.py

The rules of the architecture: who may import whom, and what start-up may load.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lora_exp"

# Module: the modules of the package that it may import. docs/architecture.md says it in words.
TABLE = """
__init__: adapted numerics run_folder sweep torch_module
numerics:
initialisation: adapter_plan base_model seeding updates
adapter_plan: architecture methods numerics spec updates
updates: products
products: numerics
architecture: data fields spec
methods:
fields:
spec: fields methods
comparison:
evidence: comparison
verdict: comparison evidence
claims: comparison evidence verdict
executor_settings: crew fields processes ray_cluster slurm spec
settings: claims crew executor_settings experiment fields halving objectives spec store
hydra_rules: fields spec
config: hydra_rules settings spec
composition: config hydra_rules
seeding: spec
result: spec
data: fields spec
base_model: architecture data numerics seeding spec
adapters: adapter_plan architecture base_model initialisation products seeding updates
adapter_file:
adapted: adapter_file adapter_plan adapters base_model training updates
training: adapter_plan adapters base_model checkpoint seeding spec
evaluation: adapters base_model data fields numerics products training
packing:
provenance: numerics spec
store: living
trained_base: base_model data evaluation fields spec store
living:
store_keeping: living result store trained_base
workload: adapter_plan architecture data evaluation packing spec training
bench: adapter_file adapters base_model checkpoint data evaluation result spec trained_base training workload
plan: base_model data experiment spec workload
experiment: adapter_plan adapters architecture bench checkpoint crew data executors halving initialisation numerics packing provenance result rung_training spec store trained_base workload
run_facts: data methods result spec
tracking: settings
records: result run_facts settings sweep sweep_facts tracking trade_off
delivery: records result sweep sweep_files tracking
executors:
checkpoint:
halving: objectives spec
rung_training: bench checkpoint evaluation executors halving objectives spec store
crew:
pack_task: bench crew executors experiment numerics spec store trained_base workload
pack_worker: crew pack_task
processes: crew executors
ray_cluster: crew numerics pack_task spec store
slurm: crew pack_task spec store
doctor: architecture config data living numerics provenance settings spec store store_keeping tracking
resume: config delivery records sweep sweep_files
sweep_files:
sweep: fields halving result run_facts spec sweep_files
trade_off:
sweep_facts: run_facts sweep trade_off
tables: sweep trade_off
aggregation: comparison tables trade_off
gallery: fields result
document: tables
terminal: sweep tables trade_off
figures: fields gallery result spec
sweep_figures: fields figures spec sweep
markdown: document
report_sections: aggregation comparison document figures result sweep tables trade_off
search_section: document objectives sweep tables trade_off
page_data: figures gallery result sweep tables trade_off
report_html: document
claim_figures: comparison evidence figures verdict
claim_page: comparison document verdict
report: aggregation claim_figures claim_page claims document figures markdown page_data report_html report_sections search_section sweep sweep_figures sweep_files tables trade_off verdict
job: config delivery experiment figures halving provenance records result settings spec store_keeping sweep_files
job_run: config
launching: composition config job job_run spec
conducting: composition config job report search_section settings spec store_keeping sweep sweep_files terminal
grid: conducting config job plan
search_space: spec
objectives: result
proposals: search_space settings spec
study: proposals search_space settings sweep_files
search: composition conducting config experiment fields job objectives packing plan proposals search_space settings spec study sweep_files
differences: result
stored_run: config differences recorded result run_folder spec sweep sweep_files
reproduce: config differences executor_settings experiment halving result run_folder settings spec stored_run sweep
torch_module: architecture base_model data
peft_format: architecture fields spec
run_folder: base_model config result settings sweep trained_base
exchange: adapted adapter_file base_model methods peft_format result run_folder torch_module
recorded: result settings sweep_files tracking
joined_report: config halving recorded report result run_folder settings sweep
served_classifier:
registry: data delivery exchange fields provenance records result run_facts run_folder spec torch_module tracking
importing: architecture config job joined_report peft_format result run_folder spec sweep sweep_files
cli: config doctor exchange importing joined_report registry reproduce resume settings store store_keeping tracking
__main__: cli config fields hydra_rules job resume run_folder spec store sweep_files tracking
"""
MAY_IMPORT = {
    module: set(allowed.split()) for module, _, allowed in (line.partition(":") for line in TABLE.strip().splitlines())
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lora_exp":
            inner = node.module.partition(".")[2]
            found |= {inner} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lora_exp.")}
    return found


def test_the_table_names_every_module_and_no_other() -> None:
    assert set(MAY_IMPORT) == {path.stem for path in PACKAGE.glob("*.py")}


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    assert imports_of(PACKAGE / f"{module}.py") <= MAY_IMPORT[module]


def test_imports_run_one_way() -> None:
    order: list[str] = []
    left = {name: imports_of(PACKAGE / f"{name}.py") - {"__init__"} for name in MAY_IMPORT if name != "__init__"}
    while left:
        ready = [name for name, needs in left.items() if needs <= set(order)]
        assert ready, f"a circle among {sorted(left)}"
        order += ready
        for name in ready:
            del left[name]


def test_few_modules_know_mlflow_and_few_know_omegaconf() -> None:
    for path in PACKAGE.glob("*.py"):
        text = path.read_text()
        if path.stem not in ("records", "recorded", "tracking", "registry", "served_classifier"):
            assert "import mlflow" not in text and "from mlflow" not in text, path
        if path.stem not in (
            "config",
            "composition",
            "hydra_rules",
            "launching",
            "job_run",
            "conducting",
            "grid",
            "search",
            "job",
            "__main__",
        ):
            assert "import omegaconf" not in text and "from omegaconf" not in text, path


def test_nothing_in_the_project_runs_code_from_a_config() -> None:
    for path in [*PACKAGE.glob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        text = path.read_text()
        for banned in ("instantiate(", "pickle", "torch.load(", "eval(", "exec("):
            assert banned not in text.replace("model.eval(", ""), f"{banned} in {path}"
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert "_target_" not in path.read_text(), path


def test_help_and_config_need_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, lora_exp.__main__ as app\n"
        "sys.argv = ['lora-exp', '--cfg', 'job']\n"
        "app.main()\n"
        "heavy = {'torch', 'torchvision', 'mlflow', 'pandas', 'matplotlib', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
