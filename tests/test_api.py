"""python -m pytest tests/test_api.py

`lora_exp.run` and `lora_exp.sweep` do what the command line does, and a run's classifier says what the run did.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from forkserver import ROOT
from places import Place
from session_lab import in_a_session

import lora_exp
from lora_exp import LoraExpError, load_run, load_sweep
from lora_exp.storage.result import read

TINY = ("model=tiny", "data=digits", "data.validation=0.2", "tracking=off")
CODE = """
tiny = {"model": "tiny", "data": {"name": "digits", "validation": 0.2}, "tracking": "off"}

def made():
    lines = Path(os.environ["COMPUTED"]).read_text().splitlines()
    return sum(line.startswith("results ") for line in lines)

def seen(name, found):
    told[name] = {"folder": str(found.folder), "made": made(), "repr": repr(found)}
    return found

run = seen("run", lora_exp.run(**tiny, finetune={"target": 3, "steps": 3}, adapter={"rank": 2}))
seen("typed", lora_exp.run(["adapter.rank=2", "finetune.target=3", "finetune.steps=3"], tiny_keys := {
    "model": "tiny", "data": "digits", "data.validation": 0.2, "tracking": "off"}))
seen("sweep", lora_exp.sweep(tiny_keys, **{"finetune": {"target": [3, 4], "steps": 3}, "adapter": {"rank": [1, 2]}}))
seen("fresh", lora_exp.run(tiny_keys, finetune={"target": 7, "steps": 3}, adapter="dora",
     overrides=["hydra.run.dir='runs/my own'"]))
failed = seen("failed", lora_exp.run(tiny_keys, finetune={"target": 5, "steps": 3}, adapter={"rank": 2}))
told["why"] = [failed.status, failed.error]
seen("preset", lora_exp.run(["experiment=digit_9", "model=tiny", "data.limit=500", "finetune.steps=2"], tracking="off"))

methods = lora_exp.sweep(model="vit_tiny", data={"name": "digits", "channels": 3}, tracking="off",
    adapter=["lora", "pissa", "full", "shift"], finetune={"target": 3, "steps": 5})
told["methods"] = [str(run.folder) for run in methods]

net = Net()
own = seen("own", lora_exp.run(net, **base, adapter={"rank": 2, "layers": ("fc",)}))
classifier, predicted = own.classifier(), own.predictions()
told["own says"] = bool((classifier.predict(own.images()) == predicted["prediction"].astype(str)).all())
classifier.disable()
told["own said"] = bool((classifier.predict(own.images()) == predicted["prediction_before"].astype(str)).all())
refused = {}
for given in ({"adapter.rank": [1, 2]}, ["adapter.rank=1,2"], "adapter.rank=1", ["--plan"], ["sweep.plan=true"],
              ["experiment=rank_by_digit"], {"hydra.run.dir": "${now:%Y}"}, ["adapter.rnk=1"], 3):
    try:
        lora_exp.run(given)
    except LoraExpError as error:
        refused[str(given)] = str(error)
told["refused"] = refused
print(json.dumps(told))
"""
REFUSED = {
    "{'adapter.rank': [1, 2]}": "adapter.rank=[1, 2]: a list is swept",
    "['adapter.rank=1,2']": "adapter.rank=1,2: ",
    "adapter.rank=1": "adapter.rank=1: overrides must be a list, such as ['adapter.rank=1'], or a mapping",
    "['--plan']": "--plan: is a flag of the command line",
    "['sweep.plan=true']": "sweep.plan=true: runs nothing",
    "['experiment=rank_by_digit']": "experiment: this preset is a sweep; use lora_exp.sweep",
    "{'hydra.run.dir': '${now:%Y}'}": "hydra.run.dir=${now:%Y}: must be a folder's name as it is",
    "['adapter.rnk=1']": "adapter.rnk: no such key",
    "3": "module: must be a torch.nn.Module, and its type is int",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder in which the command line made a run and a sweep."""
    place = Place(tmp_path_factory.mktemp("api"))
    own = (*TINY, "finetune.steps=3")
    place.run(*own, "finetune.target=3", "adapter.rank=2", "hydra.run.dir=runs/run")
    place.run("-m", *own, "finetune.target=3,4", "adapter.rank=1,2", "hydra.sweep.dir=runs/sweep")
    return place


@pytest.fixture(scope="module")
def told(place: Place) -> dict[str, Any]:
    return in_a_session(place, CODE)[0]


def alike(one: Path, other: Path) -> None:
    """Two runs have the same numbers and files."""
    assert read(one).outcome == read(other).outcome and read(one).spec == read(other).spec
    for name in ("adapter.safetensors", "predictions.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("name", ["run", "typed"])
def test_a_run_from_python_is_the_run_of_the_command_line(place: Place, told: dict[str, Any], name: str) -> None:
    alike(place.folder / "runs/run", Path(told[name]["folder"]))
    assert told[name]["made"] == 4, "the store has it from the command line"
    overrides = [
        set(read(own).provenance["overrides"]) for own in (place.folder / "runs/run", Path(told[name]["folder"]))
    ]
    assert overrides[0] == overrides[1]


def test_a_sweep_from_python_is_the_sweep_of_the_command_line(place: Place, told: dict[str, Any]) -> None:
    assert told["sweep"]["made"] == 4
    ours, theirs = (load_sweep(own).frame for own in (told["sweep"]["folder"], place.folder / "runs/sweep"))
    order = ["target", "rank"]
    changing = ["job", "sweep", "overrides", "folder", *(name for name in ours if name.startswith("seconds_"))]
    one, other = (frame.sort_values(order, ignore_index=True).drop(columns=changing) for frame in (ours, theirs))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_the_command_line_finds_what_python_made(place: Place, told: dict[str, Any]) -> None:
    assert told["fresh"]["made"] == 5 and told["fresh"]["folder"] == str(place.folder / "runs" / "my own")
    before = sum(place.results_made().values())
    place.run(*TINY, "adapter=dora", "finetune.target=7", "finetune.steps=3", "hydra.run.dir=runs/fresh")
    alike(place.folder / "runs/fresh", place.folder / "runs" / "my own")
    assert sum(place.results_made().values()) == before


def test_a_run_that_fails_says_why_and_has_no_result(told: dict[str, Any]) -> None:
    status, why = told["why"]
    assert status == "failed" and "out of luck" in why and "out of luck" in told["failed"]["repr"]
    run = load_run(told["failed"]["folder"])
    for use in (lambda: run.outcome, run.predictions, run.classifier, run.plot_errors):
        with pytest.raises(LoraExpError, match=r"failed .*out of luck.*; has no result"):
            use()


def test_a_preset_of_one_run_is_run(told: dict[str, Any]) -> None:
    assert read(Path(told["preset"]["folder"])).spec.finetune.target == (9,)


def test_a_classifier_of_a_torch_module_says_what_its_run_did(told: dict[str, Any]) -> None:
    assert told["own says"] and told["own said"]


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_no_run_is_refused_in_one_line(told: dict[str, Any], given: str) -> None:
    line = told["refused"][given]
    assert line.startswith(REFUSED[given]) and "\n" not in line


def test_a_classifier_says_what_its_run_did(
    place: Place, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)  # where store and data are
    sweep = [Path("runs/sweep") / str(job) for job in range(4)]
    for folder in ("runs/run", *sweep, told["fresh"]["folder"], *told["methods"]):
        run = load_run(folder)
        images, predictions = run.images(), run.predictions().query("split == 'test'")
        classifier = run.classifier()
        assert (classifier.predict(images) == predictions["prediction"].astype(str)).all()
        logits = classifier(images)
        assert (logits.argmax(1).numpy() == predictions["prediction"].cat.codes).all()
        np.testing.assert_allclose(logits.softmax(1).amax(1), predictions["confidence"], rtol=0, atol=2e-3)
        assert re.fullmatch(
            r"<AdaptedClassifier: 10 classes, adapter of [\d,]+ parameters on \d+ layers?, enabled>", repr(classifier)
        )
        classifier.disable()
        assert repr(classifier).endswith(", disabled>")
        assert (classifier.predict(images) == predictions["prediction_before"].astype(str)).all()


def test_predictions_have_a_row_an_image_of_the_test_and_the_validation_split(place: Place) -> None:
    run = load_run(place.folder / "runs/run")
    found = run.predictions()
    assert found["split"].value_counts().to_dict() == {"test": 355, "validation": 288}
    assert found["label"].cat.categories.tolist() == list(run.classes) == list("0123456789")
    for split, errors in (("test", run.outcome.after), ("validation", run.outcome.validation_after)):
        own = found[found["split"] == split]
        assert errors is not None and own["image"].tolist() == list(range(len(own)))
        wrong = own[own["prediction"] != own["label"]].groupby("label", observed=False).size()
        assert wrong.tolist() == errors.errors
    assert found[["confidence_before", "confidence"]].stack().between(0.1, 1).all()


def test_measures_are_those_of_the_table(place: Place) -> None:
    run, [row] = load_run(place.folder / "runs/run"), load_sweep(place.folder / "runs/run").frame.to_dict("records")
    found = run.measures
    assert found.loc["balanced accuracy", "change"] == pytest.approx(row["balanced_accuracy_gained"])
    assert found.loc["balanced accuracy", "low"] == row["balanced_accuracy_gained_low"]
    assert found.loc["error on the target", ["before", "after"]].tolist() == [
        run.outcome.target_error_before,
        run.outcome.target_error,
    ]
    assert found.loc["recall of the target", "moved_threshold"] == row["shift_recall"]
    assert run.target == ("3",) and run.command.startswith("lora-exp model=tiny data=digits")


def test_figures_of_a_run_are_those_of_its_report(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    run = load_run("runs/run")
    assert run.plot_errors().axes[0].get_title() == "Errors per class, fine-tuned on class 3 at rank 2"
    assert len(run.plot_images().axes) == 3
    assert run.outcome.loss_curve == pytest.approx(run.plot_loss().axes[0].lines[0].get_ydata())


def test_a_sweep_is_no_run_and_an_empty_folder_is_none(place: Place, tmp_path: Path) -> None:
    with pytest.raises(LoraExpError, match=r"is a sweep; .* name one of its runs: .*sweep/0"):
        load_run(place.folder / "runs/sweep")
    with pytest.raises(LoraExpError, match="holds no run"):
        load_run(tmp_path)


def test_tab_shows_the_public_names_and_importing_loads_nothing_heavy() -> None:
    code = "import json, sys, lora_exp\nnames = [name for name in dir(lora_exp) if not name.startswith('__')]\n"
    code += "print(json.dumps([names, sorted({'torch', 'pandas', 'numpy', 'hydra', 'matplotlib'} & set(sys.modules))]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    names, heavy = json.loads(done.stdout)
    assert names == sorted(lora_exp.__all__) == sorted(lora_exp.PUBLIC) and heavy == []
    assert all(getattr(lora_exp, name).__name__ == name for name in names)
