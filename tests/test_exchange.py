"""python -m pytest tests/test_exchange.py

Adapters to PEFT and back, for real: our commands and PEFT each in a process of its own, on all test images.

Logits agree within 1e-5 of the largest logit of the test images. Logits are of size 10 to 50 here, where neighbouring
float32 numbers are up to 4e-6 apart, so that 1e-5 as such is not to be had of a sum of hundreds of products.
"""

from __future__ import annotations

import json
import shlex
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_exp import AdaptedClassifier, load_base, load_sweep, plain_module
from lora_exp.adapters.adapted import METADATA
from lora_exp.errors import LoraExpError
from lora_exp.model.base import plain_logits
from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, read

IN_PEFT = ("lora", "rslora", "lora_plus", "pissa", "dora")
METHODS = (*IN_PEFT, "full", "bitfit", "head", "none")
# Mixed ranks and alphas by layer.
MIXED = {
    "tiny": ("++adapter.rank_pattern.linear2=5", "++adapter.alpha_pattern.linear1=3"),
    "cnn_small": ("++adapter.rank_pattern.conv1=2", "++adapter.alpha_pattern.conv2=1.5"),
}

# What a user of PEFT does, who hasn't lora_exp: the code in each folder's README.
LOAD = """
import os, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
images, out, *folders = [Path(argument).absolute() for argument in sys.argv[1:]]
images, said = load_file(images)["images"], {}
for folder in folders:
    os.chdir(folder)
    names = {}
    exec(Path("README.md").read_text().split("```python")[1].split("```")[0], names)
    assert "lora_exp" not in sys.modules
    with torch.no_grad():
        said[str(folder)] = names["model"].eval()(images)
save_file(said, out)
"""

# What a user of PEFT does, who trains on a base of ours.
TRAIN = """
import json, sys, torch
import lora_exp
from pathlib import Path
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional
run, images, out, options = Path(sys.argv[1]), load_file(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
said = {}
for name, chosen in options.items():
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


def in_a_process(folder: Path, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Lab:
    """A working folder, and in it for each model a sweep of all methods."""

    folder: Path
    images: Path  # safetensors: all test images, and 200 training images of digit 9
    sweeps: dict[str, Path]

    def lora_exp(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return in_a_process(self.folder, "-m", "lora_exp", *arguments, code=code)

    @property
    def places(self) -> list[str]:
        """Overrides for use from any working folder."""
        return [f"store.folder={self.folder}/cache/store", f"data.root={self.folder}/cache/data"]

    def job(self, model: str, method: str) -> Path:
        return self.sweeps[model] / str(METHODS.index(method))

    def adapted(self, folder: Path) -> AdaptedClassifier:
        return AdaptedClassifier.load(load_base(folder, self.places), folder / ADAPTER)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    nines = mnist.train.images[mnist.train.of_classes((9,))[:200]]
    save_file({"images": mnist.test.images, "train": nines}, folder / "images.safetensors")
    made = Lab(folder, folder / "images.safetensors", {})
    for model, patterns in MIXED.items():
        sweep = folder / "runs" / model / "sweep"
        made.lora_exp(
            *("-m", f"model={model}", "data.limit=3000", "finetune.digit=9", "finetune.steps=20", "tracking=off"),
            *(f"adapter={','.join(METHODS)}", "adapter.rank=3", "adapter.alpha=2.0", *patterns),
            f"hydra.sweep.dir={sweep.relative_to(folder)}",
        )
        made.sweeps[model] = sweep
    return made


def same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Within 1e-5 of the largest logit, and every image in the same class."""
    close = float((ours - theirs).abs().max()) <= 1e-5 * float(ours.abs().max())
    return close and torch.equal(ours.argmax(1), theirs.argmax(1))


def said_by(folder: Path) -> torch.Tensor:
    return load_file(folder / PREDICTIONS)["predicted"].long()


def test_every_low_rank_and_dora_adapter_says_the_same_in_peft(lab: Lab, mnist: ImageData, tmp_path: Path) -> None:
    jobs = [lab.job(model, method) for model in MIXED for method in IN_PEFT]
    folders = [Path(lab.lora_exp("export", job, "--format", "peft").stdout.strip()) for job in jobs]
    in_a_process(tmp_path, "-c", LOAD, lab.images, "said.safetensors", *folders)
    said = load_file(tmp_path / "said.safetensors")
    for job, folder in zip(jobs, folders, strict=True):
        assert folder == job / "peft"
        theirs = said[str(folder)]
        assert same_logits(lab.adapted(job).logits(mnist.test.images), theirs), job
        assert torch.equal(said_by(job), theirs.argmax(1)), job
        assert not torch.equal(said_by(job), load_file(job / PREDICTIONS)["before_predicted"].long())


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
    assert {path.name for path in (run / "figures").iterdir()} == {"errors_per_digit.png", "wrong_digits.png"}
    assert set((lab.folder / "cache/store").rglob("*")) == before


@pytest.mark.parametrize(
    ("model", "layers"), [("tiny", ["linear1", "linear2"]), ("cnn_small", ["conv1", "conv2", "linear1"])]
)
def test_an_adapter_that_peft_trained_stands_in_the_report_beside_ours(
    lab: Lab, mnist: ImageData, model: str, layers: list[str], tmp_path: Path
) -> None:
    sweep, options = lab.sweeps[model], {
        "lora": {"r": 4, "lora_alpha": 6, "rank_pattern": {layers[0]: 2}, "alpha_pattern": {"linear.*": 3}},
        "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True, "lora_dropout": 0.1},
        "dora": {"r": 2, "lora_alpha": 4, "use_dora": True},
    }  # fmt: skip
    chosen = {name: {**own, "target_modules": layers} for name, own in options.items()}
    in_a_process(lab.folder, "-c", TRAIN, lab.job(model, "lora"), lab.images, tmp_path, json.dumps(chosen))
    said = load_file(tmp_path / "logits.safetensors")
    overrides = [f"model={model}", "data.limit=3000", "finetune.digit=9", "tracking=off"]
    for name in options:
        lab.lora_exp("import", tmp_path / name, "--into", sweep, *overrides)
    imported = load_sweep(sweep).iloc[len(METHODS) :]
    assert list(imported["method"]) == list(options)
    for name, row in zip(options, imported.to_dict("records"), strict=True):
        job = sweep / str(row["job"])
        assert same_logits(lab.adapted(job).logits(mnist.test.images), said[name]), name
        assert torch.equal(said_by(job), said[name].argmax(1)), name
        assert (row["origin"], row["status"]) == ("imported", "finished") and row["name"].endswith("_imported")
        assert row["target_error"] < row["target_error_before"]
        assert row["overrides"] == shlex.join(["import", str(tmp_path / name), *overrides])
    assert imported[["seed", "steps", "learning_rate", "final_loss", "spec_key"]].isna().all().all()
    page = (lab.folder / "multirun_reports" / f"{model}-sweep" / "report.md").read_text()
    assert "By origin" in page and "imported\\_from" in page
    [line] = [line for line in page.splitlines() if f"{tmp_path / 'dora'} " in line and line.startswith("lora-exp")]
    again = lab.lora_exp(*shlex.split(line, comments=True)[1:], f"hydra.run.dir={tmp_path / 'again'}")
    assert "target error" in again.stdout
    assert read(tmp_path / "again").outcome == read(sweep / str(len(METHODS) + 2)).outcome


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
    assert (params["rank"], params["digit"]) == ("6", "9") and not {"steps", "seed", "learning_rate"} & set(params)
    assert (name, status) == ("digit-9_lora_rank-6_alpha-6_imported", "FINISHED")


@pytest.mark.parametrize("model", MIXED)
def test_merged_weights_say_in_a_plain_module_what_the_adapted_classifier_says(
    lab: Lab, mnist: ImageData, model: str
) -> None:
    for method in METHODS:
        job = lab.job(model, method)
        if method in ("dora", "full"):
            file = Path(lab.lora_exp("merge", job).stdout.strip())
            assert file == job / "merged.safetensors"
        else:
            from lora_exp.commands.export import merge

            file = merge(job, None, lab.places)
        with safe_open(file, framework="pt") as content:
            [(key, about)] = content.metadata().items()
        outcome = read(job).outcome
        assert key == METADATA and json.loads(about)["base_sha256"] == outcome.base_sha256_before
        assert json.loads(about)["adapter_sha256"] == outcome.adapter_sha256
        assert json.loads(about)["folder"] == str(job) and json.loads(about)["model"]["kernel"] == 3
        module = plain_module(load_base(job, lab.places))
        module.load_state_dict(load_file(file))
        with torch.no_grad():
            assert same_logits(lab.adapted(job).logits(mnist.test.images), module(mnist.test.images)), method


@pytest.mark.parametrize("model", MIXED)
def test_the_plain_module_is_the_base_for_flat_and_for_square_images(lab: Lab, mnist: ImageData, model: str) -> None:
    base = load_base(lab.job(model, "none"), lab.places)
    module, images = plain_module(base), mnist.test.images[:100]
    state = module.state_dict()
    assert state.keys() == base.tensors().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in base.tensors().items())
    with torch.no_grad():
        torch.testing.assert_close(module(images), plain_logits(base, images))
        assert torch.equal(module(images), module(images.view(100, 1, 28, 28)))
        module[-1].weight.zero_()
    assert base.sha256() == read(lab.job(model, "none")).outcome.base_sha256_before


def test_a_base_that_is_not_in_the_store_is_one_line_with_the_command_that_makes_it(lab: Lab, tmp_path: Path) -> None:
    job = lab.job("tiny", "lora")
    with pytest.raises(LoraExpError, match=f"is not in {tmp_path}/store") as caught:
        load_base(job, [f"store.folder={tmp_path}/store", lab.places[1]])
    assert "lora-exp model=tiny data.limit=3000" in str(caught.value) and "\n" not in str(caught.value)
    done = lab.lora_exp("export", job, "store.folder=empty", code=2)
    assert done.stderr.startswith(f"lora-exp: {job}: its base ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("export {tiny}/5", "{tiny}/5: full has no form among PEFT's LoRA adapters; use lora-exp merge {tiny}/5"),
        ("export {tiny}/6", "{tiny}/6: bitfit has no form among PEFT's LoRA adapters; use lora-exp merge {tiny}/6"),
        ("export {tiny}/7", "{tiny}/7: head has no form among PEFT's LoRA adapters; use lora-exp merge {tiny}/7"),
        ("export {tiny}/8", "{tiny}/8: none has no form among PEFT's LoRA adapters; nothing was trained"),
        ("export {tiny}", "{tiny}: holds no result.json"),
        ("export {tiny}/0 --out {other}", "{other}: holds another adapter already"),
        ("export {tiny}/0 adapter.rank=2", "adapter.rank=2: must be GROUP.KEY=VALUE of"),
        ("export {tiny}/0 device=cpu", "device=cpu: must be GROUP.KEY=VALUE of"),
        ("export {tiny}/0 device.name=tpu", "device.name=tpu: must be one of auto"),
        ("merge {damaged}", "adapter.safetensors: is not a readable adapter file"),
        ("merge {tiny}/none", "{tiny}/none: holds no result.json"),
        ("import {absent} model=tiny", "{absent}/adapter_config.json: can't be read"),
        (
            "import {other} model=cnn_small",
            "{other}/adapter_config.json: target_modules=linear2: the model has no such",
        ),
        ("import {other} model=small", "linear1.lora_B.weight: must be float32 of shape"),
        ("import {other} model=tiny adapter.rank=2", "adapter.rank=2: the adapter is trained already"),
        ("import {other} model=tiny finetune.steps=9", "finetune.steps=9: the adapter is trained already"),
        ("import {other} model=huge", "model=huge: no such option"),
        ("import {other} {base} --into {tiny}/0", "{tiny}/0: holds no sweep.json"),
        ("import {bad} {base}", "{bad}/adapter_config.json: fan_in_fan_out=true: is not supported"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(
    lab: Lab, command: str, says: str, tmp_path: Path
) -> None:
    from lora_exp.commands.export import BASE, export_peft

    other = export_peft(lab.job("tiny", "lora"), tmp_path / "other", lab.places)
    (other / BASE).unlink()
    bad = export_peft(lab.job("tiny", "lora"), tmp_path / "bad", lab.places)
    config = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": True}))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / RESULT).write_bytes((lab.job("tiny", "lora") / RESULT).read_bytes())
    (damaged / ADAPTER).write_bytes(b"nothing")
    places = {"tiny": lab.sweeps["tiny"], "other": other, "bad": bad, "damaged": damaged, "absent": tmp_path / "absent"}
    places |= {"base": "model=tiny data.limit=3000 tracking=off"}
    before = set(lab.folder.rglob("*")) | set(tmp_path.rglob("*"))
    done = lab.lora_exp(*shlex.split(command.format(**places)), code=2)
    [line] = done.stderr.splitlines()
    assert line.startswith("lora-exp: ") and says.format(**places) in line
    left = (set(lab.folder.rglob("*")) | set(tmp_path.rglob("*"))) - before
    assert not {path.name for path in left} & {RESULT, ADAPTER, "peft", "merged.safetensors", "runs"}


def test_overrides_of_settings_alone_are_taken_by_load_base(lab: Lab) -> None:
    for override in ("model=tiny", "finetune.digit=3", "store", "store.folder", "data.limit=100"):
        with pytest.raises(LoraExpError, match=r"must be GROUP\.KEY=VALUE"):
            load_base(lab.job("tiny", "lora"), [override])
