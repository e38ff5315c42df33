"""python -m pytest tests/test_any_classes.py

Whatever the pictures are, all that runs do holds: packs of equal bits, resuming, reproducing, PEFT's format, the
registered model. Pictures of several kinds, drawn once.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from PIL import Image
from places import Place, same
from playwright.sync_api import Browser
from safetensors.numpy import load_file

from lora_exp import AdaptedClassifier, load_base, plain_module
from lora_exp.data.prepared import test_pictures as pictures_of
from lora_exp.storage.result import RESULT, read
from lora_exp.storage.sweep_folder import read_sweep

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]
JOBS = ("adapter.rank=1,2", "finetune.steps=30", "finetune.replay=0.5", "data.validation=0.1")
KINDS = {
    # Three classes of pictures in colour, wider than high, in files.
    "colour": (["data=folder", "data.root=pictures", "model=cnn_small"], "finetune.target='grün und blau','2'"),
    # A hundred classes in one file.
    "hundred": (["data=npz", "data.file=hundred.npz", "model=tiny"], "finetune.target=class 7,99"),
    "digits": (["data=digits", "model=tiny"], "finetune.digit=3,8"),
}
NAMES = ("2", "10", "Grün und blau")


def drawn(folder: Path) -> None:
    """Draw pictures of three classes in colour into files, and of a hundred grey ones into one file."""
    random = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        for split, count in (("train", 60), ("test", 20)):
            place = folder / "pictures" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 150, (9, 14, 3), dtype=np.uint8)
                pixels[:, :, label] += random.integers(0, 90, (9, 14), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    centres = random.integers(0, 200, (100, 6, 6))
    arrays = {}
    for split, count in (("train", 3000), ("test", 500)):
        labels = np.arange(count) % 100
        noise = random.integers(0, 55, (count, 6, 6))
        arrays |= {f"{split}_images": (centres[labels] + noise).astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(folder / "hundred.npz", **arrays, class_names=np.array([f"class {number}" for number in range(100)]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("any classes")
    drawn(folder)
    return Place(folder)


@pytest.fixture(scope="module", params=KINDS)
def swept(request: pytest.FixtureRequest, place: Place) -> tuple[str, Path]:
    """A kind of data and the folder of a sweep on it: two ranks, two targets, one pack."""
    kind = request.param
    data, target = KINDS[kind]
    command = ["-m", *data, target, *JOBS, "base.epochs=2", f"hydra.sweep.dir=runs/{kind}"]
    place.run(*command, f"report.name={kind}")
    return kind, place.folder / "runs" / kind


def test_the_names_of_classes_stand_in_table_files_and_log(swept: tuple[str, Path], place: Place) -> None:
    kind, sweep = swept
    targets = {"colour": ["2", "Grün und blau"], "hundred": ["class 7", "class 99"], "digits": ["3", "8"]}[kind]
    frame = read_sweep(sweep).frame
    assert sorted(frame["target"].unique()) == targets and set(frame["status"]) == {"finished"}
    own = [name for name in frame if name.startswith("errors_before_")]
    assert len(own) == {"colour": 3, "hundred": 0, "digits": 10}[kind]
    facts = read(sweep / "0").facts
    assert facts.shape == {"colour": (3, 9, 14), "hundred": (1, 6, 6), "digits": (1, 8, 8)}[kind]
    assert len(facts.mean) == facts.shape[0] and len(facts.classes) == {"colour": 3, "hundred": 100, "digits": 10}[kind]
    report = (place.folder / "multirun_reports" / kind / "report.md").read_text()
    assert all(target in report for target in targets)
    assert (place.folder / "multirun_reports" / kind / "figures" / "wrong_images.png").stat().st_size > 2000


def test_the_page_shows_every_picture_and_the_names(swept: tuple[str, Path], place: Place, browser: Browser) -> None:
    kind, _ = swept
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((place.folder / "multirun_reports" / kind / "report.html").as_uri())
    page.locator("#classes").scroll_into_view_if_needed()
    page.wait_for_selector("#classes .plot-container")
    shown = page.locator("#classes").inner_text()
    page.close()
    assert complaints == []
    assert {"colour": "Grün und blau", "hundred": "70 others", "digits": "9"}[kind] in shown


def test_alone_and_without_a_store_a_job_has_the_same_bits(swept: tuple[str, Path], place: Place) -> None:
    _, sweep = swept
    assert "4 of 4 runs reproduced" in place.run("reproduce", *(str(sweep / str(job)) for job in range(4)))[0]


def test_a_sweep_that_was_killed_ends_as_one_that_was_not(swept: tuple[str, Path], place: Place) -> None:
    kind, sweep = swept
    data, target = KINDS[kind]
    resumed = place.folder / "runs" / f"{kind} again"
    command = ["-m", *data, target, *JOBS, "base.epochs=2", f"hydra.sweep.dir=runs/{kind} again"]
    process = place.start(*command, "store.folder=other", "report.name=again")
    while not (resumed / "sweep.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    place.run("resume", str(resumed))
    same(sweep, resumed)


def test_an_exported_adapter_says_the_same_in_peft(swept: tuple[str, Path], place: Place) -> None:
    _, sweep = swept
    run = sweep / "0"
    out = place.folder / "exported" / sweep.name
    place.run("export", str(run), "--format", "peft", "--out", str(out))
    base = load_base(run, [f"store.folder={place.folder / 'cache' / 'store'}"])
    facts = read(run).facts
    images = torch.rand(20, *facts.shape, generator=torch.Generator().manual_seed(0))
    own = AdaptedClassifier.load(base, run / "adapter.safetensors").logits(images.flatten(1))
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(plain_module(base), str(out))(images)
    torch.testing.assert_close(theirs, own, rtol=1e-4, atol=1e-4)


def test_a_registered_model_takes_the_datas_own_pictures_and_answers_with_names(
    swept: tuple[str, Path], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, sweep = swept
    told = place.run("register", str(sweep / "1"), "--name", kind)[0]
    [prepared] = [
        path
        for path in place.folder.glob("cache/data/*.safetensors")
        if path.name.startswith({"colour": "folder-", "hundred": "npz-", "digits": "digits"}[kind])
    ]
    pictures, labels = pictures_of(prepared)
    assert f"{len(labels)} of {len(labels)} test images classified as in the run" in told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.folder}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/{kind}/1")
    given = pictures[:, 0] if pictures.shape[1] == 1 else pictures.transpose(0, 2, 3, 1)
    predicted = load_file(sweep / "1" / "predictions.safetensors")["logits"].argmax(axis=1)
    assert model.predict(given).tolist() == [read(sweep / "1").facts.classes[label] for label in predicted]


def test_an_experiment_whose_runs_are_on_data_of_ones_own_has_a_report(swept: tuple[str, Path], place: Place) -> None:
    told = "".join(place.run("report", "--experiment", "lora_exp", "--out", "all of it"))
    assert "all of it/report.html" in told and (place.folder / "all of it" / "summary.csv").is_file()
    report = (place.folder / "all of it" / "report.md").read_text()
    sets = set(pd.read_csv(place.folder / "all of it" / "summary.csv")["data"])
    # Other workers of the tests may have the other sweeps.
    assert {"colour": "folder pictures", "hundred": "npz hundred.npz", "digits": "digits"}[swept[0]] in sets
    assert len(sets) == 1 or f"They are on {len(sets)} data sets (" in report


def test_a_class_with_a_single_test_image_is_no_obstacle(place: Place) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 5, 5), dtype=np.uint8)
    labels = np.arange(60) % 3
    np.savez(place.folder / "few.npz", x_train=pixels, y_train=labels, x_test=pixels[:3], y_test=labels[:3])
    out = "".join(place.run("data=npz", "data.file=few.npz", "model=tiny", "finetune.target=1", "tracking=off"))
    assert "no moved threshold has its recall" in out


def test_a_target_that_is_no_class_is_refused_before_anything_runs(place: Place) -> None:
    data, _ = KINDS["colour"]
    err = place.run("-m", *data, "finetune.target='grün und rot'", "adapter.rank=1,2", code=2)[1]
    assert err.startswith("lora-exp: finetune.target=grün und rot: no such class; did you mean Grün und blau?")
    assert err.count("\n") == 1
    err = place.run("-m", *data, "finetune.target='2'", "base.classes=['2',roth]", code=2)[1]
    assert err.startswith("lora-exp: base.classes=roth: no such class") and err.count("\n") == 1


def test_bad_files_are_left_out_and_counted_when_asked(place: Place) -> None:
    damaged = place.folder / "pictures" / "train" / "2" / "damaged.png"
    damaged.write_bytes(b"no picture")
    try:
        data, _ = KINDS["colour"]
        command = [*data, "finetune.target='2'", "finetune.steps=1", "tracking=off", "hydra.run.dir=runs/skipping"]
        err = place.run(*command, code=2)[1]
        assert str(damaged) in err and err.count("\n") == 1
        told = "".join(place.run(*command, "data.skip_bad=true"))
        assert "data=folder: 1 files that can't be read are left out" in told
        images = json.loads((place.folder / "runs" / "skipping" / RESULT).read_text())["provenance"]["images"]
        assert images == {"train": 180, "validation": 0, "skipped": 1}
    finally:
        damaged.unlink()
