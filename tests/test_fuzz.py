"""python -m pytest tests/test_fuzz.py

Any command either starts valid runs or is refused: exit code 2 and one line. Nothing that a command or a config names
is imported or called, the environment stays unread, and no file appears outside the folders that were chosen.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forkserver
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.types import RunMode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lora_exp.__main__ import main
from lora_exp.config.compose import config_folder, read, register
from lora_exp.config.settings import Settings
from lora_exp.config.spec import RunSpec
from lora_exp.errors import LoraExpError
from lora_exp.model.data import ImageData
from lora_exp.sweeps.job_configs import JobConfigs

SECRET = "hunter2-of-the-environment"
QUICK = ("model=tiny", "data.limit=6000", "data.validation=500", "tracking=off")
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


class Begun(BaseException):
    """Raised where computing would begin, with the run's (or the sweep's) folder and config."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, None when computing would have begun."""

    code: int | None
    out: str
    err: str
    folder: Path | None = None


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Iterator[Path]:
    """A working folder with data, the module `evil` that leaves a trace when imported, and stubs of all computing."""
    folder = tmp_path_factory.mktemp("fuzz") / "lab"
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "data").symlink_to(data_root)
    (folder.parent / "outside").mkdir()
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "evil.py").write_text(
        f"open({str(folder.parent / 'executed')!r}, 'w').close()\nHandler = stream = print\n"
    )
    (folder / "presets").mkdir()
    before, handlers = copy.deepcopy(Singleton.get_state()), logging.getLogger().handlers[:]

    def begin_run(config: Any) -> float:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None and SECRET not in OmegaConf.to_yaml(config, resolve=True)
        from hydra.core.hydra_config import HydraConfig

        raise Begun(HydraConfig.get().runtime.output_dir)

    def begin_sweep(folder: Path, *_: Any, **__: Any) -> None:
        raise Begun(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("SECRET", SECRET)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr("lora_exp.sweeps.job.run", begin_run)
        patch.setattr("lora_exp.sweeps.sweep.begin_sweep", begin_sweep)
        yield folder
    Singleton.set_state(before)
    logging.getLogger().handlers[:] = handlers


def command(arguments: Sequence[str]) -> Ended:
    """The command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["lora-exp", *arguments])
        try:
            main()
        except SystemExit as end:
            return Ended(int(end.code or 0), out.getvalue(), err.getvalue())
        except Begun as begun:
            return Ended(None, out.getvalue(), err.getvalue(), Path(begun.args[0]).absolute())
        finally:
            GlobalHydra.instance().clear()
    raise AssertionError("main ends by sys.exit")


def assert_sound(ended: Ended, lab: Path) -> None:
    """It ran, or was refused in one line; and none of what must never happen happened."""
    if ended.code not in (None, 0):
        assert ended.code == 2, ended.err
        [line] = ended.err.splitlines()
        assert line.startswith("lora-exp: ") and len(line) > 20, ended.err
    if ended.folder is not None:
        assert ended.folder.is_relative_to(lab) and ".." not in ended.folder.parts
    assert "Traceback" not in ended.out + ended.err and SECRET not in ended.out + ended.err
    assert_unharmed(lab)


def assert_unharmed(lab: Path) -> None:
    assert "evil" not in sys.modules
    assert sorted(path.name for path in lab.parent.iterdir()) == ["lab", "outside"]
    assert list((lab.parent / "outside").iterdir()) == []


def listed(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, max_size=4).map(lambda parts: f"[{','.join(parts)}]")


WHOLE = st.sampled_from(["0", "1", "2", "4", "9", "12", "-1", "100", "1e3", "999999999999999999999", "0x10", "1_0"])
NUMBER = st.sampled_from(
    ["1e-3", "0.5", "1", "0", "-1", "nan", "inf", "-inf", "1e400", "1e-400", "rank", "true", "null"]
)
WORD = st.one_of(
    st.sampled_from(
        ["tiny", "small", "lora", "dora", "full", "none", "mnist", "off", "cpu", "linear1", "'*'", "gaussian"]
    ),
    st.sampled_from(
        ["a b", "'a b'", "größe", "数字", "🙂", "..", "../x", "/", "a/b", "x" * 300, "''", "*", "?", "[", "]["]
    ),
    st.text(min_size=1, max_size=8),
)
HOSTILE = st.sampled_from(
    [
        *("${oc.env:SECRET}", "${oc.env:NONE,fallback}", "${oc.decode:'${oc.env:SECRET}'}", "${oc.create:{a:1}}"),
        *("${oc.select:hydra.runtime.cwd}", "${hydra:runtime.cwd}", "${oc.dict.keys:hydra}", "${oc.deprecated:base}"),
        *("${base.seed}", "${adapter}", "${nope}", "${.rank}", "${..base.seed}", "${now:%Y}", "${unique:}", "${", "$"),
        *(
            "${adapter.rank}",
            "${finetune.seed}",
            "${adapter.alpha}",
            "${oc.env:${oc.env:SECRET}}",
            "${python_version:}",
        ),
        *("'!!python/object/apply:os.system [id]'", "!!python/name:evil.stream", "{_target_:evil.stream}"),
        *(
            "[{_target_:evil.stream}]",
            "{a:{_target_:evil.stream}}",
            "range(0,3)",
            "range(0,10,0)",
            "choice(1,2)",
            "glob(*)",
        ),
        *(
            "interval(0,1)",
            "sort(3,1)",
            "shuffle(1,2)",
            "int(x)",
            "float(nan)",
            "json_str(1)",
            "extend_list(1)",
            "str([1])",
        ),
        *(
            "\x00",
            "a\x00b",
            "a\nb",
            "\x1b[31m",
            "\udcff",
            "\u2028",
            "\\",
            "'",
            '"',
            ",",
            "1,2",
            "1,,2",
            "=",
            ":",
            "@",
            "~",
        ),
        *("[" * 60, "{a:" * 40, "x" * 5000, "[" + "1," * 500 + "1]"),
    ]
)
VALUE = st.one_of(WHOLE, NUMBER, WORD, listed(WHOLE), listed(WORD), HOSTILE)
GROUPS = {
    "model": ["tiny", "small", "cnn_small", "huge"],
    "adapter": ["lora", "dora", "pissa", "full", "bitfit", "head", "shift", "none", "rslora", "lora_plus", "evil"],
    "experiment": ["digit_9", "reference", "null", "rank_by_digit", "../config", "/config", "../../etc/passwd"],
    "device": ["cpu", "auto", "cuda", "mps", "tpu"],
    "tracking": ["off", "server", "on"],
    "data": ["mnist", "kmnist", "qmnist", "cifar"],
    "base": ["one_epoch", "two"],
    "hydra/launcher": ["packed", "basic", "joblib", "submitit_local", "evil"],
    "hydra/sweeper": ["grid", "optuna", "basic", "nevergrad"],
    "hydra/job_logging": ["default", "stdout", "disabled", "none", "colorlog"],
    "hydra/hydra_logging": ["none", "hydra_debug", "default"],
    "hydra/callbacks": ["null", "evil", "log_job_return"],
    "hydra/env": ["default"],
    "hydra/output": ["default"],
}
# Values that a run can be made of, so that most lists are valid but for one thing.
VALID = {
    "adapter.rank": ["1", "2", "64"],
    "adapter.alpha": ["rank", "1", "0.5", "16"],
    "adapter.layers": ["[linear1]", "['*']", "[linear1,linear2]", "[lin*]"],
    "adapter.rank_pattern": ["{linear1:4}", "{}"],
    "adapter.init": ["gaussian", "kaiming", "orthogonal"],
    "adapter.init_std": ["1e-2", "1"],
    "adapter.dropout": ["0", "0.5"],
    "finetune.digit": ["0", "9", "[2,7]"],
    "finetune.steps": ["1", "10"],
    "finetune.epochs": ["null", "0.5"],
    "finetune.batch_size": ["1", "32"],
    "finetune.learning_rate": ["1e-3", "1"],
    "finetune.seed": ["0", "${base.seed}", "123456"],
    "finetune.replay": ["0", "0.5"],
    "base.epochs": ["1", "2"],
    "base.seed": ["0", "7"],
    "base.digits": ["null", "[1,3,5]"],
    "model.hidden": ["[64]", "[32,16]", "[]"],
    "model.rectify_logits": ["true", "false"],
    "store.folder": ["cache/store", "'a b/größe'"],
    "report.name": ["null", "ranks", "'größer 数字'"],
    "report.folder": ["reports"],
    "sweep.memory": ["null", "1"],
    "device.threads": ["null", "1"],
    "hydra.verbose": ["true", "false", "[lora_exp]"],
    "hydra.run.dir": ["runs/x", "runs/${finetune.seed}", "'a b'"],
    "hydra.sweep.dir": ["runs/y", "runs/${now:%Y}"],
}
OTHER_KEYS = [
    *("adapter", "adapter.method", "adapter.rnk", "adapter.rank.deep", "model.channels", "model.kernel", "data.name"),
    *("tracking.kind", "tracking.experiment", "device.name", "report.claim", "sweep.plan", "foo", "_target_", "store"),
    *("hydra", "hydra.mode", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.name", "hydra.job.chdir"),
    *(
        "hydra.job.env_set.PATH",
        "hydra.job.env_copy",
        "hydra.searchpath",
        "hydra.callbacks",
        "hydra.callbacks.a._target_",
    ),
    *(
        "hydra.launcher._target_",
        "hydra.launcher",
        "hydra.sweeper._target_",
        "hydra.sweeper.params",
        "hydra.runtime.cwd",
    ),
    *("hydra.sweeper.params.x", "hydra.sweeper.params._target_", "hydra.job_logging", "hydra.job_logging.root.level"),
    *("hydra.job_logging.handlers.file.class", "hydra.job_logging.handlers.file.filename", "hydra.overrides.task"),
    *("hydra.job_logging.handlers.console.stream", "hydra.job_logging.handlers.console.()", "hydra.help.template"),
    *(
        "hydra.hydra_logging.formatters.simple.class",
        "hydra.job_logging.formatters.simple.format",
        "hydra.runtime.choices",
    ),
    *("model@hydra.callbacks", "experiment@_global_", "defaults", "''", "a b", "größe", "", ".", "..", "a..b", "$"),
]
SOUND = st.sampled_from([f"{key}={value}" for key, values in VALID.items() for value in values])
OF_A_JOB = SOUND.filter(lambda override: not override.startswith("hydra."))  # a sweep over Hydra's keys is refused
CHOICE = st.sampled_from([f"{group}={option}" for group, options in GROUPS.items() for option in options])
ASSIGNMENT = st.builds(
    "{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from([*VALID, *OTHER_KEYS]), VALUE
)
BROKEN = st.one_of(
    ASSIGNMENT,
    CHOICE,
    st.sampled_from([f"~{key}" for key in (*VALID, *GROUPS, *OTHER_KEYS)]),
    st.text(max_size=12),
    st.sampled_from(
        ["", "=", "==", "a=", "=a", "-", "\x00", "adapter.rank", "adapter.rank=1=2", "+", "~", "@=a", "a:b=c@d"]
    ),
)
FLAG = st.sampled_from(
    [
        *(
            "-m",
            "-m",
            "-m",
            "-m",
            "--multirun",
            "--run",
            "--plan",
            "--cfg=job",
            "--cfg=all",
            "--cfg",
            "--help",
            "--resolve",
        ),
        *(
            "--hydra-help",
            "--info",
            "--info=plugins",
            "--version",
            "-sc",
            "--config-dir=presets",
            "--config-path=presets",
        ),
        *(
            "--config-name=config",
            "-cd",
            "-cp=/etc",
            "--config-dir=/",
            "--experimental-rerun=evil.pkl",
            "--nope",
            "-x",
            "--",
        ),
        *("--package=adapter", "-p", "--mul", "--conf=x"),
    ]
)


@pytest.fixture(scope="module")
def jobs(lab: Path) -> JobConfigs:
    """Composes the jobs of a sweep, as `lora_exp.sweeps.sweep` checks them."""
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    return JobConfigs(loader, loader.load_configuration("config", list(QUICK), RunMode.MULTIRUN))


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.long)])
def test_override_lists_are_specs_or_refused(jobs: JobConfigs, lab: Path, count: int) -> None:
    seen: list[bool] = []

    @settings(FUZZ, max_examples=count)
    @given(st.lists(OF_A_JOB, max_size=4), st.one_of(*[st.none()] * 5, BROKEN))
    def check(sound: list[str], broken: str | None) -> None:
        overrides = [*QUICK, *sound, *([] if broken is None else [broken])]
        try:
            spec, made = read(jobs.own(overrides))
        except LoraExpError as error:
            assert str(error) and SECRET not in str(error)
            with pytest.raises(LoraExpError, match=f"^{re.escape(str(error))}$"):
                jobs.read(overrides)
            seen.append(False)
        else:
            assert isinstance(spec, RunSpec) and isinstance(made, Settings) and len(spec.key) == 64
            assert jobs.read(overrides) == (spec, made)
            seen.append(True)
        assert_unharmed(lab)

    check()
    assert len(seen) >= count and 0.2 < sum(seen) / len(seen) < 0.9


@pytest.mark.parametrize("count", [50, pytest.param(120, marks=pytest.mark.long)])
def test_any_command_runs_or_is_refused_in_one_line(lab: Path, count: int) -> None:
    ends: list[int | None] = []

    @settings(FUZZ, max_examples=count)
    @given(st.lists(FLAG, max_size=1), st.lists(SOUND, max_size=3), st.lists(BROKEN, max_size=1))
    def check(flags: list[str], sound: list[str], broken: list[str]) -> None:
        ended = command([*flags, *QUICK, *sound, *broken])
        assert_sound(ended, lab)
        ends.append(ended.code)

    check()
    assert {None, 0, 2} <= set(ends)


HOSTILE_COMMANDS = [
    ["-m", "adapter.rank=1,2", "+hydra.callbacks.x._target_=evil.Handler"],
    ["+hydra.callbacks.x={_target_:evil.Handler}"],
    ["++hydra={callbacks:{x:{_target_:evil.Handler}}}"],
    ["hydra.launcher._target_=evil.Handler", "-m"],
    ["-m", "hydra.launcher._target_=evil.Handler"],
    ["-m", "hydra.sweeper._target_=evil.Handler"],
    ["-m", "hydra.sweeper.params={adapter.rank:{_target_:evil.Handler}}"],
    ["-m", "+hydra.sweeper.params.x=${adapter.rank_pattern}", "adapter.rank_pattern={_target_:evil.Handler}"],
    ["hydra.job_logging.handlers.console.class=evil.Handler"],
    ["+hydra.job_logging.handlers.console.()=evil.Handler"],
    ["hydra.job_logging.handlers.console.stream=ext://evil.stream"],
    ["+hydra.job_logging.filters={f:{'()':evil.Handler}}"],
    ["hydra.job_logging={version:1,handlers:{x:{class:evil.Handler}}}"],
    ["hydra.job_logging.handlers.file.filename=../outside/log"],
    ["hydra.hydra_logging.handlers.console.class=evil.Handler", "-m"],
    ["hydra.searchpath=[pkg://evil]"],
    ["hydra.searchpath=[file:///]"],
    ["hydra.job.env_set.PATH=/"],
    ["+hydra.job.env_set.SECRET=x"],
    ["hydra.job.env_copy=[SECRET]"],
    ["--cfg=hydra", "hydra.job.env_copy=[SECRET]"],
    ["--cfg=all", "--resolve", "data.root=${oc.env:SECRET}"],
    ["--help", "--resolve", "data.root=${oc.env:SECRET}"],
    ["data.root=${oc.env:SECRET}"],
    ["data.root=${oc.decode:'${oc.env:SECRET}'}"],
    ["model=${oc.env:SECRET}"],
    ["hydra.run.dir=${oc.env:SECRET}"],
    ["-m", "hydra.sweep.dir=${oc.env:SECRET}"],
    ["-m", "hydra.sweep.subdir=../../outside/x"],
    ["-m", "hydra.sweep.dir=runs/${data.root}", "data.root=../../outside,x"],
    ["hydra.run.dir=runs/${data.root}", "data.root=../../outside"],
    ["hydra.output_subdir=../../outside"],
    ["hydra.job.name=../../outside/log"],
    ["+hydra.job.name=../../outside/log"],
    ["hydra.job.chdir=true"],
    ["--config-dir=presets", "+presets=evil"],
    ["--config-path=presets"],
    ["--config-name=evil"],
    ["--experimental-rerun=evil.pkl"],
    ["+experiment@hydra.callbacks=digit_9"],
    ["+model@hydra.callbacks.x=tiny"],
    ["hydra/callbacks=evil"],
    ["hydra/launcher@hydra.callbacks=packed"],
    ["hydra/sweeper=basic"],
    ["~hydra"],
    ["~hydra.launcher"],
    ["hydra.run.dir=''"],
    ["hydra.run.dir=a\x00b"],
    ["data.root=a\x00b"],
    ["tracking.experiment=a\nb"],
    ["store.folder=\udcff"],
    ["adapter.rank='!!python/object/apply:evil.Handler []'"],
    *(
        ["-m", f"report.name={name}"]
        for name in ("../x", "/x", "..", ".", "a/b", "'a\\b'", "${data.root}", "x" * 201, "''")
    ),
]


@pytest.mark.parametrize("arguments", HOSTILE_COMMANDS, ids=lambda arguments: ascii(" ".join(arguments))[:60])
def test_what_could_run_code_read_the_environment_or_leave_its_folder_is_refused(
    lab: Path, arguments: list[str]
) -> None:
    flags = [argument for argument in arguments if argument.startswith("-")]
    ended = command([*flags, *QUICK, *(argument for argument in arguments if argument not in flags)])
    assert ended.code == 2
    assert_sound(ended, lab)


@pytest.mark.parametrize(
    "preset",
    [
        "hydra: {callbacks: {x: {_target_: evil.Handler}}}",
        "hydra: {launcher: {_target_: evil.Handler}}",
        "hydra: {sweeper: {_target_: evil.Handler}}",
        "hydra: {sweeper: {params: {adapter.rank: {_target_: evil.Handler}}}}",
        "hydra: {job_logging: {handlers: {console: {class: evil.Handler}}}}",
        "hydra: {job_logging: {handlers: {console: {(): evil.Handler}}}}",
        "hydra: {job_logging: {filters: {x: {(): evil.Handler}}}}",
        "hydra: {job_logging: {handlers: {console: {stream: 'ext://evil.stream'}}}}",
        "hydra: {job: {env_set: {SECRET: x}}}",
        "hydra: {sweep: {subdir: ../../outside}}",
        "hydra: {sweep: {dir: 'runs/${data.root}'}}",
        "hydra: {searchpath: ['pkg://evil']}",
        "data: {root: '${oc.env:SECRET}'}",
        "data: {root: !!python/object/apply:evil.Handler []}",
        "data: {root: !!python/name:evil.stream ''}",
        'report: {name: "a\0b"}',
        "report: {name: ../x}",
        "defaults: [{override /hydra/callbacks: evil}]",
        "hydra: {sweeper: {params: {adapter.rank: '${adapter.rank_pattern}'}}}",
        "- not a mapping",
        "just text",
        "a: [",
        "a: &a [*a]",
        "\tx: 1",
    ],
)
@pytest.mark.parametrize("multirun", [False, True], ids=["run", "sweep"])
def test_a_config_file_may_do_no_more_than_a_command(
    lab: Path, monkeypatch: pytest.MonkeyPatch, preset: str, multirun: bool
) -> None:
    conf = lab / "conf"
    if not conf.is_dir():
        shutil.copytree(config_folder(), conf)
    (conf / "experiment" / "hostile.yaml").write_text(f"# @package _global_\n{preset}\n")
    monkeypatch.setattr("lora_exp.config.compose.config_folder", lambda: conf)
    monkeypatch.setattr("lora_exp.sweeps.application.config_folder", lambda: conf)
    sweep = ["-m", *QUICK, "experiment=digit_9,hostile"]
    ended = command(sweep if multirun else [*QUICK, "experiment=hostile"])
    assert ended.code == 2
    assert_sound(ended, lab)


def test_real_processes_refuse_in_one_line_too(lab: Path) -> None:
    commands = [arguments for arguments in HOSTILE_COMMANDS[::6] if not any("\0" in text for text in arguments)]
    environment = os.environ | {"SECRET": SECRET, "PYTHONPATH": str(lab)}

    def process(arguments: list[str]) -> Ended:
        done = forkserver.run(arguments, lab, environment)
        return Ended(done.returncode, done.stdout, done.stderr)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = list(pool.map(process, commands))
    assert len(ends) >= 8
    for ended in ends:
        assert ended.code == 2
        assert_sound(ended, lab)
