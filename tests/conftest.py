"""What many tests share: real MNIST, unpacked once a session, and a small base trained on it in a second."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from places import data_in
from playwright.sync_api import Browser, expect, sync_playwright

import lora_exp
from lora_exp import numerics
from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.settings import TrackingSettings
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec
from lora_exp.model import data
from lora_exp.model.architecture import Constants
from lora_exp.model.base import BaseModel, network, train
from lora_exp.model.data import ImageData, Images
from lora_exp.training.evaluation import frozen_constants
from lora_exp.training.loop import FineTuned, Job, TrainingImages, batch_order, fine_tune, step_count
from lora_exp.training.probe import promise_of_products

CPU = torch.device("cpu")
# The key that signs sweeps is the user's own; tests have another.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="lora-exp-state-")
SMALL = ModelSpec((96, 64))
MakeJob = Callable[[AdapterSpec, FinetuneSpec], Job]
TrainPack = Callable[[Sequence[Job]], FineTuned]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    """The MLflow store of a file's tests, which takes seconds to make; each takes an experiment of its own."""
    folder = tmp_path_factory.mktemp("tracking")
    return TrackingSettings("sqlite", f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that holds MNIST once it has been loaded; the workers of pytest-xdist share one."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data_root"
    root.mkdir(exist_ok=True)  # links to it must lead somewhere, whichever test comes first
    return root


@pytest.fixture(scope="session")
def mnist(data_root: Path) -> ImageData:
    """6,000 training images, 500 validation images and the whole test set."""
    spec = DataSpec("mnist", validation=500, limit=6000)
    return data.load(spec, data_in(data_root)(spec), CPU)


@pytest.fixture(scope="session")
def small_base(mnist: ImageData) -> BaseModel:
    """784-96-64-10, trained on 600 batches of 10."""
    return train(SMALL, BaseSpec(), mnist.train)


@pytest.fixture(scope="session")
def images(mnist: ImageData, small_base: BaseModel) -> TrainingImages:
    """What packs on the small base draw from."""
    constants = constants_of(small_base, mnist.train.images)
    return TrainingImages(mnist.train.images, mnist.train.labels, constants)


@pytest.fixture(scope="session")
def make_job(mnist: ImageData) -> MakeJob:
    """(AdapterSpec, FinetuneSpec) -> a job on the small base."""

    def make(adapter: AdapterSpec, finetune: FinetuneSpec) -> Job:
        target, rest = (mnist.train.of_classes(d) for d in (finetune.target, MNIST.others(finetune.target)))
        order = batch_order(finetune, step_count(finetune, len(target)), finetune.target, target, rest)
        return Job(
            adapter_plan(adapter, network(SMALL, MNIST).layers, finetune.seed, finetune.target),
            finetune.learning_rate,
            order,
        )

    return make


@pytest.fixture(scope="session")
def train_pack(small_base: BaseModel, images: TrainingImages) -> TrainPack:
    """jobs in the order that the trainer asks for -> the trained pack, over the small base."""
    return lambda jobs: fine_tune(small_base, jobs, images)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real Chromium without a window, one a worker; `make test` sees to it that there is one."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.fail("there is no chromium on the PATH; make browser installs it")
    expect.set_options(timeout=30_000)  # milliseconds; other tests want the machine too
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As packs train: each product on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def any_pack() -> None:
    """For tests of the stronger promise; `test_numerics.py` tells where it has to be made."""
    need_any_pack(SMALL)


def need_any_pack(model: ModelSpec) -> None:
    """Fail where MKL should make the stronger promise for `model` and doesn't; skip where there is no MKL."""
    if (
        promise_of_products([(layer.outputs, layer.inputs) for layer in network(model, MNIST).layers], CPU)
        != numerics.ANY_PACK
    ):
        assert not torch.backends.mkl.is_available(), "with MKL bits have to be the same in any pack"
        pytest.skip("the matrix products of this build promise the same bits in the same pack only")


def constants_of(base: BaseModel, images: Images) -> Constants | None:
    """What jobs share that adapt every layer: the first product, of a stack that begins with a linear layer."""
    return frozen_constants(base, images, base.forward.cut([True] * len(base.layers)))


def in_a_fresh_process(code: str, **environment: str) -> str:
    """What code prints in a new interpreter, to whose environment MKL_CBWR is not handed down."""
    clean = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        cwd=Path(lora_exp.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def in_trainer_order(jobs: Sequence[Job]) -> list[Job]:
    """Plans of equal shape side by side, longer jobs first."""
    return sorted(jobs, key=lambda job: (job.plan.shape, -len(job.order)))
