"""python -m pytest tests/test_export.py

Adapters to PEFT and merged weights, for real: our commands and PEFT each in a process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft_lab import MIXED, SOME, Lab, in_a_process, make_lab, predicted_by, same_logits
from safetensors import safe_open
from safetensors.torch import load_file

from lora_exp import load_base, plain_module
from lora_exp.adapters.adapted import METADATA
from lora_exp.commands.export import export_peft, merge
from lora_exp.errors import LoraExpError
from lora_exp.measures.logits import BEFORE
from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, read

IN_PEFT = ("lora", "rslora", "lora_plus", "pissa", "dora")
METHODS = (*IN_PEFT, "full", "bitfit", "head", "none", "shift")

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


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Lab:
    return make_lab(tmp_path_factory.mktemp("lab"), data_root, mnist, METHODS)


def test_every_low_rank_and_dora_adapter_says_the_same_in_peft(lab: Lab, mnist: ImageData, tmp_path: Path) -> None:
    jobs = [lab.job(model, method) for model in MIXED for method in IN_PEFT]
    by_command = {lab.job(model, "lora") for model in MIXED}
    folders = [
        Path(lab.lora_exp("export", job, "--format", "peft").stdout.strip())
        if job in by_command
        else export_peft(job, None, lab.places)
        for job in jobs
    ]
    in_a_process(tmp_path, "-c", LOAD, lab.images, "said.safetensors", *folders)
    said = load_file(tmp_path / "said.safetensors")
    for job, folder in zip(jobs, folders, strict=True):
        assert folder == job / "peft"
        theirs = said[str(folder)]
        assert same_logits(lab.adapted(job).logits(mnist.test.images[:SOME]), theirs[:SOME]), job
        assert torch.equal(predicted_by(job), theirs.argmax(1)), job
        assert not torch.equal(predicted_by(job), load_file(job / PREDICTIONS)[BEFORE].argmax(1))


@pytest.mark.parametrize("model", MIXED)
def test_merged_weights_say_in_a_plain_module_what_the_adapted_classifier_says(
    lab: Lab, mnist: ImageData, model: str
) -> None:
    images = mnist.test.images[:SOME]
    for method in METHODS:
        job = lab.job(model, method)
        if method in ("dora", "full"):
            file = Path(lab.lora_exp("merge", job).stdout.strip())
            assert file == job / "merged.safetensors"
        else:
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
            assert same_logits(lab.adapted(job).logits(images), module(images)), method


@pytest.mark.parametrize("model", MIXED)
def test_the_plain_module_is_the_base_for_flat_and_for_square_images(lab: Lab, mnist: ImageData, model: str) -> None:
    base = load_base(lab.job(model, "none"), lab.places)
    module, images = plain_module(base), mnist.test.images[:100]
    state = module.state_dict()
    assert state.keys() == base.state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in base.state.items())
    with torch.no_grad():
        torch.testing.assert_close(module(images), base.forward.logits(images))
        assert torch.equal(module(images), module(images.view(100, 1, 28, 28)))
        module[-1].weight.zero_()
    assert base.sha256() == read(lab.job(model, "none")).outcome.base_sha256_before


def test_a_base_that_is_not_in_the_store_is_one_line_with_the_command_that_makes_it(lab: Lab, tmp_path: Path) -> None:
    job = lab.job("tiny", "lora")
    with pytest.raises(LoraExpError, match=r"its base [0-9a-f]{12} is not in") as caught:
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
        ("export {tiny}/0 stor.folder=elsewhere", "stor.folder=elsewhere: must be an override GROUP.KEY=VALUE"),
        ("export {tiny}/0 device=cpu", "device=cpu: must be GROUP.KEY=VALUE of"),
        ("export {tiny}/0 device.name=tpu", "device.name=tpu: must be one of auto"),
        (
            "merge {damaged}",
            "adapter.safetensors: is damaged, or of another run: its SHA-256 is not that in result.json",
        ),
        (
            "export {damaged}",
            "adapter.safetensors: is damaged, or of another run: its SHA-256 is not that in result.json",
        ),
        ("register {damaged} --name x", "adapter.safetensors: is damaged, or of another run"),
        ("merge {tiny}/none", "{tiny}/none: holds no result.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(
    lab: Lab, command: str, says: str, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / RESULT).write_bytes((lab.job("tiny", "lora") / RESULT).read_bytes())
    content = bytearray((lab.job("tiny", "lora") / ADAPTER).read_bytes())
    content[-1] ^= 1
    (damaged / ADAPTER).write_bytes(content)
    (damaged / PREDICTIONS).write_bytes((lab.job("tiny", "lora") / PREDICTIONS).read_bytes())
    lab.refuses(
        command, says, {"tiny": lab.sweeps["tiny"], "other": lab.exported(tmp_path / "other"), "damaged": damaged}
    )


def test_overrides_of_settings_alone_are_taken_by_load_base(lab: Lab) -> None:
    for override in ("model=tiny", "finetune.digit=3", "store", "store.folder", "data.limit=100"):
        with pytest.raises(LoraExpError, match=r"must be GROUP\.KEY=VALUE"):
            load_base(lab.job("tiny", "lora"), [override])
