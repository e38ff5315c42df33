"""python -m pytest tests/test_compose.py"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_exp.config.compose import config_folder, error_line, read, register, without_hydra
from lora_exp.config.hydra_rules import check_overrides
from lora_exp.config.settings import Settings
from lora_exp.config.spec import RunSpec
from lora_exp.errors import LoraExpError
from lora_exp.sweeps.job_configs import JobConfigs

FILES = sorted(config_folder().rglob("*.yaml"))
# Models that need a name.
NAMED = {"model/timm": "resnet18", "model/torchvision": "resnet18", "model/module": "net-0a1b2c3d"}


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    before = copy.deepcopy(Singleton.get_state())
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield
    Singleton.set_state(before)  # other tests start applications with another version_base


def composed(*overrides: str) -> tuple[RunSpec, Settings]:
    return read(compose("config", list(overrides)))


def refused(*overrides: str) -> str:
    """As the application: the overrides alone come first."""
    try:
        check_overrides(overrides)
        composed(*overrides)
    except LoraExpError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return error_line(error)
    raise AssertionError(f"{overrides} was taken")


def test_the_folder_holds_all_the_config_files_there_are() -> None:
    assert len(FILES) == 61


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(config_folder())))
def test_every_config_file_composes_to_a_valid_run(path: Path) -> None:
    relative = path.relative_to(config_folder()).with_suffix("")
    overrides = [] if relative.name == "config" else [f"{relative.parent}={relative.name}"]
    if name := NAMED.get(str(relative)):
        assert refused(*overrides).startswith("model.name: missing; needs the name of a model")
        overrides.append(f"model.name={name}")
    spec, settings = composed(*overrides)
    assert isinstance(spec, RunSpec) and isinstance(settings, Settings)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(config_folder())))
def test_every_config_file_starts_with_the_command_that_runs_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == config_folder() / "model" / "module.yaml":  # a module is given in Python
        first = path.read_text().splitlines()[0]
        assert first.startswith("# import lora_exp; lora_exp.sweep(module=")
        compile(first.removeprefix("# "), str(path), "exec")
        return
    commands = [line for line in path.read_text().splitlines() if line.startswith("# lora-exp ")]
    assert len(commands) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(b"some weights")
    composed(*shlex.split(commands[0].removeprefix("# lora-exp ")))


def test_the_defaults_are_the_reference() -> None:
    assert composed()[0] == composed("experiment=reference")[0]


def test_presets_differ_from_the_reference_in_what_they_say() -> None:
    assert composed("experiment=historical")[0].model.rectify_logits is True
    assert composed("experiment=digit_9")[0].finetune.target == (9,)
    assert composed("experiment=digit_9", "finetune.digit=3")[0].finetune.target == (3,)


def test_settings_do_not_change_the_key_of_a_run() -> None:
    key = composed()[0].key
    for other in (
        "data.root=elsewhere",
        "store.folder=elsewhere",
        "device.threads=1",
        "tracking=off",
        "sweep.memory=1",
    ):
        assert composed(other)[0].key == key
    assert composed("adapter.rank=2")[0].key != key


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("adapter.rnk=3", "adapter.rnk: no such key; allowed in adapter: method, rank, alpha, rank_pattern, "),
        ("adapter.rank=abc", "adapter.rank=abc: must be an integer of at least 1"),
        ("adapter.rank=1.5", "adapter.rank=1.5: must be an integer of at least 1"),
        ("adapter.rank=null", "adapter.rank=null: must be an integer of at least 1"),
        ("adapter.rank=0", "adapter.rank=0: must be an integer of at least 1"),
        ("adapter.rank=-4", "adapter.rank=-4: must be an integer of at least 1"),
        (
            "finetune.digit=12",
            "finetune.digit=12: must be a digit from 0 to 9, or a list of one to nine different ones, written as "
            "'finetune.digit=[1,2]'",
        ),
        ("finetune.replay=1.5", "finetune.replay=1.5: must be a share of at least 0 and below 1"),
        ("finetune.batch_size=0", "finetune.batch_size=0: must be an integer of at least 1"),
        ("base.epochs=zero", "base.epochs=zero: must be an integer of at least 0"),
        (
            "model.hidden=3",
            "model.hidden=3: must be a list of layer widths of at least 2, such as [1000,2000]",
        ),
        (
            "model=huge",
            "model=huge: no such option; allowed: cnn, cnn_small, large, medium, module, reference, small, timm, tiny, "
            "torchvision, vit_small, vit_tiny",
        ),
        ("tracking=of", "tracking=of: no such option; allowed: off, server, sqlite"),
        ("device.threads=0", "device.threads=0: must be null or an integer of at least 1"),
        (
            "+adapter.foo=1",
            "adapter.foo: no such key; allowed: alpha, alpha_pattern, dropout, init, init_std, layers, ",
        ),
        (
            "+foo=1",
            "foo: no such key; allowed: model, data, base, adapter, finetune, device, tracking, store,",
        ),
        (
            "foo=1",
            "foo: no such key; allowed: model, data, base, adapter, finetune, device, tracking, store,",
        ),
        ("data.limit=1", "data.limit=1: must be null or an integer of at least 2"),
        ("data.validation=1", "data.validation=1: must be 0, a number of images of at least 2, or a share below 1"),
        ("adapter.alpha=big", "adapter.alpha=big: must be a number above 0, or rank"),
    ],
)
def test_bad_input_is_one_line_with_key_value_and_what_is_allowed(override: str, expected: str) -> None:
    line = refused(override)
    assert line.startswith(expected)
    assert "\n" not in line


@pytest.mark.parametrize("override", ["adapter.rank=[", "adapter=1", "~model", "adapter.rank=", "data.root=${nope}"])
def test_what_hydra_cannot_parse_is_one_line_too(override: str) -> None:
    line = refused(override)
    assert line and "\n" not in line


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["adapter.rank=4", "finetune.digit=[2,7]", "adapter.alpha=rank"],
        ["model=tiny", "adapter.rank=2", "data.limit=500"],
        ["adapter.rank=4", "model.hidden=[30,20]", "finetune.epochs=0.5", "adapter.layers=[linear1]"],
        ["experiment=digit_9", "adapter.rank=2"],
        ["experiment=digit_9", "~experiment"],
        ["++finetune.seed=3"],
        ["finetune.seed=${base.seed}"],
        ["adapter.rank=4", "adapter.alpha=$\\{adapter.rank\\}", "base.seed=5", "finetune.seed=$\\{base.seed\\}"],
        ["data.root='a b, c'", "finetune.learning_rate=1e-4", "hydra.verbose=true"],
        ["report.name='ein sehr langer Name, bei dem YAML die Zeile umbricht, mit Umlauten wie ä und ö: 100 %'"],
        ["adapter.rank_pattern={linear1:4}", "store={folder:elsewhere}"],
        ["store.folder=yes", "tracking.experiment='null'", "executor=processes", "executor.workers=2"],
    ],
    ids=" ".join,
)
def test_a_job_config_made_the_quick_way_is_the_one_hydra_makes(overrides: list[str], tmp_path: Path) -> None:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    loader = hydra.config_loader
    master = loader.load_configuration("config", ["base.seed=4"], RunMode.MULTIRUN)
    configs = JobConfigs(loader, master)
    slow = loader.load_sweep_config(master, overrides)
    slow.hydra.job.id = slow.hydra.job.num = 7
    slow.hydra.runtime.output_dir = str(tmp_path)
    own = without_hydra(slow)
    for _ in range(2):  # the second time from what the first has composed
        assert configs.saved(overrides, 7, tmp_path) == {
            "config.yaml": OmegaConf.to_yaml(own),
            "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(slow, "hydra")),
            "overrides.yaml": OmegaConf.to_yaml(slow.hydra.overrides.task),
        }
        assert configs.task(overrides) == slow.hydra.overrides.task
        assert OmegaConf.to_yaml(configs.own(overrides)) == OmegaConf.to_yaml(own)
        assert configs.read(overrides) == read(own)


def test_an_override_of_one_job_does_not_reach_the_next() -> None:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    master = hydra.config_loader.load_configuration("config", [], RunMode.MULTIRUN)
    configs = JobConfigs(hydra.config_loader, master)
    assert configs.own(["adapter.rank=4"]).adapter.rank == configs.read(["adapter.rank=4"])[0].adapter.rank == 4
    assert configs.own(["finetune.digit=3"]).adapter.rank == configs.read(["finetune.digit=3"])[0].adapter.rank == 1
