"""python -m pytest tests/test_session.py

`lora_exp.sweep` with a module of one's own, as in a script that runs in an empty folder.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from places import Place
from safetensors.numpy import load_file
from session_lab import in_a_session

from lora_exp.storage.result import read
from lora_exp.storage.sweep_folder import read_sweep

WELL = r"""
from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import DataSpec
from lora_exp.data.prepared import prepare
from lora_exp.model.data import load
from safetensors.torch import save_file

def made():
    file = Path(os.environ["COMPUTED"])
    lines = file.read_text().splitlines() if file.exists() else []
    return sum(line.startswith("results ") for line in lines)

def seen(name, sweep):
    told[name] = {"folder": str(sweep.folder), "made": made(), "keys": [run.spec.key for run in sweep.runs],
                  "status": list(sweep.frame["status"]), "jobs": len(sweep.frame)}
    return sweep

net = Net().train()
net(torch.rand(64, 1, 8, 8))  # BatchNorm counts
net.fc.weight.requires_grad_(False)
def state():
    return [[*map(str, net.state_dict())], [tensor.tolist() for tensor in net.state_dict().values()],
            [part.training for part in net.modules()], [own.requires_grad for own in net.parameters()]]
before = state()
grid = {**base, "adapter": {"method": ["lora", "dora"], "rank": [1, 2], "layers": ("conv", "f*")}}
seen("first", lora_exp.sweep(net, **grid))
seen("again", lora_exp.sweep(net, **grid))
told["unchanged"] = state() == before
with torch.no_grad():
    net.norm.running_mean[1] += 0.01
seen("other buffer", lora_exp.sweep(net, **grid))
exec(SOURCE.replace("h += 1", "h += 2"))
other = Net()
other.load_state_dict(net.state_dict())
seen("other code", lora_exp.sweep(other, **grid))
seen("failed", lora_exp.sweep(other, **{**base, "finetune": {"target": 5, "steps": 3}}, adapter={"rank": [1, 2]}))
seen("names", lora_exp.sweep(model="tiny", data={"name": "npz", "file": 'it\'s "my", file.npz', "limit": 60},
     finetune={"target": json.loads(os.environ["NAMES"]), "steps": 1}, tracking="off",
     overrides={"hydra.sweep.dir": "runs/names, of 'all'"}))

grey = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(),
                     nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
spec = DataSpec("digits", size=(12, 12))
images = load(spec, prepare(spec, DataFolder("cache/data", None, "cache/data")), torch.device("cpu"))
adam = torch.optim.Adam(grey.parameters(), 1e-2)
for at in torch.randint(0, len(images.train.labels), (20, 50)):
    adam.zero_grad()
    logits = grey(images.train.images[at].view(-1, 1, 12, 12))
    nn.functional.cross_entropy(logits, images.train.labels[at]).backward()
    adam.step()
seen("grey", lora_exp.sweep(grey, **{**base, "data": {"name": "digits", "size": 12}}))
with torch.no_grad():
    save_file({"logits": grey.eval()(images.test.images[:].view(-1, 1, 12, 12))}, "grey.safetensors")
seen("further", lora_exp.sweep(other, **base, base={"epochs": 1, "batch_size": 100},
     adapter={"layers": [("fc",), ("conv", "fc")], "alpha": "rank"}))
print(json.dumps(told))
"""
NAMES = [
    "a b",
    "it's",
    'say "x"',
    "a, b",
    "{a: b}",
    "[c]",
    "d=e",
    "back\\slash",
    "ends\\",
    "$f",
    "7",
    "null",
    "True",
    "été",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("session"))
    labels = np.arange(130) % len(NAMES)
    pixels = (np.arange(130 * 25) % 256).astype(np.uint8).reshape(130, 5, 5)
    arrays = {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels, "class_names": np.array(NAMES)}
    np.savez(place.folder / 'it\'s "my", file.npz', **arrays)
    return place


@pytest.fixture(scope="module")
def told(place: Place) -> dict[str, Any]:
    return in_a_session(place, WELL, NAMES=json.dumps(NAMES))[0]


def test_a_sweep_over_a_module_has_a_row_a_job(told: dict[str, Any], place: Place) -> None:
    assert told["first"]["status"] == ["finished"] * 4 and told["first"]["made"] == 4
    frame = read_sweep(place.folder / told["first"]["folder"]).frame
    assert frame["method"].tolist() == ["lora", "lora", "dora", "dora"] and frame["rank"].tolist() == [1, 2, 1, 2]
    spec = read(place.folder / told["first"]["folder"] / "3").spec
    assert spec.model.kind == "module" and (spec.model.name or "").startswith("Net-")
    assert spec.adapter.layers == ("conv", "f*") and spec.base.epochs == 0


def test_a_second_call_takes_all_from_the_store(told: dict[str, Any], place: Place) -> None:
    assert told["again"]["made"] == told["first"]["made"] and told["again"]["status"] == ["finished"] * 4
    assert told["again"]["keys"] == told["first"]["keys"] and told["again"]["folder"] != told["first"]["folder"]


def test_the_module_of_the_user_stays_as_it_is(told: dict[str, Any]) -> None:
    assert told["unchanged"]


def test_another_weight_and_another_line_of_code_are_computed_again(told: dict[str, Any]) -> None:
    keys = [set(told[name]["keys"]) for name in ("first", "other buffer", "other code")]
    assert len(set.union(*keys)) == 12
    assert [told[name]["made"] for name in ("first", "other buffer", "other code")] == [4, 8, 12]


def test_a_list_is_swept_and_a_tuple_is_one_value(told: dict[str, Any], place: Place) -> None:
    folder = place.folder / told["further"]["folder"]
    assert [read(folder / str(job)).spec.adapter.layers for job in (0, 1)] == [("fc",), ("conv", "fc")]
    assert read(folder / "0").spec.adapter.alpha == "rank" and told["further"]["jobs"] == 2


def test_a_job_that_fails_is_a_row_and_no_error(told: dict[str, Any], place: Place) -> None:
    assert told["failed"]["status"] == ["finished", "failed"]
    assert "out of luck" in read_sweep(place.folder / told["failed"]["folder"]).frame["error"][1]


def test_blanks_quotes_and_commas_reach_the_spec_as_they_are(told: dict[str, Any], place: Place) -> None:
    folder = place.folder / "runs" / "names, of 'all'"
    assert told["names"]["folder"] == str(folder)
    assert [read(folder / str(job)).spec.finetune.target for job in range(len(NAMES))] == [(name,) for name in NAMES]
    assert set(read_sweep(folder).frame["target"]) == set(NAMES)


def test_a_base_goes_on_from_the_weights_of_the_module(told: dict[str, Any], place: Place) -> None:
    before, after = (read(place.folder / told[name]["folder"] / "0") for name in ("other code", "further"))
    assert before.outcome.base_sha256_before != after.outcome.base_sha256_before
    assert after.spec.base.weights == before.spec.base.weights and after.spec.base.epochs == 1


def test_a_grey_cnn_with_batchnorm_says_as_a_base_what_it_says_itself(told: dict[str, Any], place: Place) -> None:
    found = read(place.folder / told["grey"]["folder"] / "0")
    assert found.facts.shape == (1, 12, 12) and found.outcome.base_unchanged and found.outcome.adapter_off_equals_base
    [entry] = [
        file.parent
        for file in place.folder.glob("cache/store/bases/*/*/sha256.txt")
        if file.read_text() == found.outcome.base_sha256_before
    ]
    own = load_file(entry / "predictions.safetensors")["test_logits"]
    np.testing.assert_allclose(own, load_file(place.folder / "grey.safetensors")["logits"], rtol=0, atol=1e-5)


def test_the_command_line_says_that_a_module_is_of_a_session(told: dict[str, Any], place: Place) -> None:
    folder = place.folder / told["other code"]["folder"]
    spec = read(folder / "0").spec
    [weights] = place.folder.glob(f"cache/modules/{spec.model.name}-*.safetensors")
    model = ("model=module", f"model.name={spec.model.name}", f"base.weights={weights}", "base.epochs=0")
    job = ("data=digits", "finetune.target=3", "finetune.steps=3", "tracking=off")
    line = (
        f"lora-exp: model.name={spec.model.name}: is a module of a Python session; "
        "run lora_exp.sweep(module=...) with it again\n"
    )
    assert place.run("-m", *model, *job, "adapter.rank=1,2,3", code=2)[1].endswith(line)
    assert place.run(*model, *job, "adapter.rank=7", code=2)[1].endswith(line)
    err = place.run("reproduce", str(folder / "0"), code=2)[1]
    assert "run lora_exp.sweep(module=...) with it again" in err and "Traceback" not in err
