"""python -m pytest tests/test_import_peft.py

Adapters from PEFT, for real: PEFT trains them in a process of its own, and our commands evaluate them.
"""

from __future__ import annotations

import json
import shlex
import sqlite3
from pathlib import Path

import pytest
import torch
from peft_lab import MIXED, SOME, Lab, in_a_process, make_lab, predicted_by, same_logits
from safetensors.torch import load_file

from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, PREDICTIONS, read
from lora_exp.storage.sweep_folder import read_sweep

METHODS = ("lora", "dora", "pissa")
BASE = "model=tiny data.limit=3000 tracking=off"

# What a user of PEFT does, who trains on a base of ours.
TRAIN = """
import json, sys, torch
import lora_exp
from pathlib import Path
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional
images, out, asked = load_file(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
said = {}
for run, name, chosen in asked:
    torch.manual_seed(0)
    model = get_peft_model(lora_exp.plain_module(lora_exp.load_base(run)), LoraConfig(**chosen))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for batch in images["train"].split(10):
        optimizer.zero_grad()
        functional.cross_entropy(model(batch), torch.full((len(batch),), 9)).backward()
        optimizer.step()
    model.save_pretrained(out / name)
    with torch.no_grad():
        said[name] = model.eval()(images["images"])
save_file(said, out / "logits.safetensors")
"""
# What is trained: adapters of both models that differ from the defaults of ours.
TRAINED = {
    "tiny": {
        "lora": {"r": 4, "lora_alpha": 6, "rank_pattern": {"linear1": 2}, "alpha_pattern": {"linear.*": 3}},
        "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True, "lora_dropout": 0.1},
        "dora": {"r": 2, "lora_alpha": 4, "use_dora": True},
    },
    "cnn_small": {
        "lora": {"r": 4, "lora_alpha": 6, "rank_pattern": {"conv1": 2}, "alpha_pattern": {"linear.*": 3}},
        "dora": {"r": 2, "lora_alpha": 4, "use_dora": True},
    },
}
LAYERS = {"tiny": ["linear1", "linear2"], "cnn_small": ["conv1", "conv2", "linear1"]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Lab:
    return make_lab(tmp_path_factory.mktemp("lab"), data_root, mnist, METHODS)


@pytest.fixture(scope="module")
def peft(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapters that PEFT trained, each in `<model>_<name>/`, and their logits."""
    folder = tmp_path_factory.mktemp("peft")
    asked = [
        (str(lab.job(model, "lora")), f"{model}_{name}", {**chosen, "target_modules": LAYERS[model]})
        for model, own in TRAINED.items()
        for name, chosen in own.items()
    ]
    in_a_process(lab.folder, "-c", TRAIN, lab.images, folder, json.dumps(asked))
    return folder


@pytest.mark.parametrize("model", MIXED)
def test_an_exported_adapter_comes_back_as_the_same_adapter_with_the_same_predictions(
    lab: Lab, model: str, tmp_path: Path
) -> None:
    job = lab.job(model, "dora")
    folder = Path(lab.lora_exp("export", job, "--out", tmp_path / "an adapter").stdout.strip())
    before = set((lab.folder / "cache/store").rglob("*"))
    run = tmp_path / "run"
    lab.lora_exp(
        *("import", folder, f"model={model}", "data.limit=3000", "finetune.digit=9", "tracking=off"),
        f"hydra.run.dir={run}",
    )
    assert (run / PREDICTIONS).read_bytes() == (job / PREDICTIONS).read_bytes()
    assert load_file(run / ADAPTER).keys() == load_file(job / ADAPTER).keys()
    ours, theirs = read(job), read(run)
    assert theirs.outcome.after == ours.outcome.after and theirs.outcome.layers == ours.outcome.layers
    assert (theirs.spec.adapter.rank, theirs.spec.adapter.rank_pattern) == (3, ours.spec.adapter.rank_pattern)
    assert (theirs.outcome.steps, theirs.outcome.loss_curve) == (0, [])
    assert theirs.outcome.base_unchanged and theirs.outcome.adapter_off_equals_base
    assert {path.name for path in (run / "figures").iterdir()} == {"errors_per_class.png", "wrong_images.png"}
    assert set((lab.folder / "cache/store").rglob("*")) == before


@pytest.mark.parametrize("model", TRAINED)
def test_an_adapter_that_peft_trained_stands_in_the_report_beside_ours(
    lab: Lab, mnist: ImageData, peft: Path, model: str, tmp_path: Path
) -> None:
    sweep, names = lab.sweeps[model], [f"{model}_{name}" for name in TRAINED[model]]
    said = load_file(peft / "logits.safetensors")
    overrides = [f"model={model}", "data.limit=3000", "finetune.digit=9", "tracking=off"]
    for name in names:
        lab.lora_exp("import", peft / name, "--into", sweep, *overrides)
    imported = read_sweep(sweep).frame.iloc[len(METHODS) :]
    assert list(imported["method"]) == list(TRAINED[model])
    for name, row in zip(names, imported.to_dict("records"), strict=True):
        job = sweep / str(row["job"])
        assert same_logits(lab.adapted(job).logits(mnist.test.images[:SOME]), said[name][:SOME]), name
        assert torch.equal(predicted_by(job), said[name].argmax(1)), name
        assert (row["origin"], row["status"]) == ("imported", "finished") and row["name"].endswith("_imported")
        assert row["target_error"] < row["target_error_before"]
        assert row["overrides"] == shlex.join(["import", str(peft / name), *overrides])
    assert imported[["seed", "steps", "learning_rate", "final_loss", "spec_key"]].isna().all().all()
    page = (lab.folder / "multirun_reports" / f"{model}-sweep" / "report.md").read_text()
    assert "By origin" in page and "imported\\_from" in page
    [line] = [line for line in page.splitlines() if f"{peft / names[-1]} " in line and line.startswith("lora-exp")]
    again = lab.lora_exp(*shlex.split(line, comments=True)[1:], f"hydra.run.dir={tmp_path / 'again'}")
    assert "target error" in again.stdout
    assert read(tmp_path / "again").outcome == read(sweep / str(len(METHODS) + len(names) - 1)).outcome


def test_an_imported_adapter_is_recorded_and_says_where_it_is_from(lab: Lab, tmp_path: Path) -> None:
    folder = Path(lab.lora_exp("export", lab.job("tiny", "pissa"), "--out", tmp_path / "pissa").stdout.strip())
    lab.lora_exp("import", folder, "model=tiny", "data.limit=3000", "finetune.digit=9", "hydra.run.dir=imported")
    assert read(lab.folder / "imported").provenance["imported_from"] == str(folder)
    assert read(lab.folder / "imported").spec.adapter.rank == 6
    with sqlite3.connect(lab.folder / "mlflow.db") as database:
        tags = dict(database.execute("SELECT key, value FROM tags").fetchall())
        params = dict(database.execute("SELECT key, value FROM params").fetchall())
        [(name, status)] = database.execute("SELECT name, status FROM runs").fetchall()
    assert tags["imported_from"] == str(folder) and "spec_key" not in tags
    assert (params["rank"], params["target"]) == ("6", "9") and not {"steps", "seed", "learning_rate"} & set(params)
    assert (name, status) == ("target-9_lora_rank-6_alpha-6_imported", "FINISHED")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("import {absent} model=tiny", "{absent}/adapter_config.json: can't be read"),
        (
            "import {other} model=cnn_small",
            "{other}/adapter_config.json: target_modules=linear2: the model has no such",
        ),
        ("import {other} model=small", "linear1.lora_B.weight: must be float32, float16 or bfloat16 of shape"),
        ("import {other} model=tiny adapter.rank=2", "adapter.rank=2: the adapter is trained already"),
        ("import {other} model=tiny finetune.steps=9", "finetune.steps=9: the adapter is trained already"),
        ("import {other} model=huge", "model=huge: no such option"),
        (f"import {{other}} {BASE} --into {{tiny}}/0", "{tiny}/0: holds no sweep.json"),
        (f"import {{bad}} {BASE}", "{bad}/adapter_config.json: fan_in_fan_out=true: is not supported; turn it off"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(
    lab: Lab, command: str, says: str, tmp_path: Path
) -> None:
    other, bad = lab.exported(tmp_path / "other"), lab.exported(tmp_path / "bad")
    config = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": True}))
    places = {"tiny": lab.sweeps["tiny"], "other": other, "bad": bad, "absent": tmp_path / "absent"}
    lab.refuses(command, says, places)
