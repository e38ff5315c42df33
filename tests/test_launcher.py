"""python -m pytest tests/test_launcher.py

Hydra's public contract suites for launchers, against `hydra/launcher=packed`, none of their tests left out. They run
their own small applications. The jobs of this application are compared with what Hydra's own launcher makes of them.
"""

from __future__ import annotations

from pathlib import Path

import forkserver
import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import _UNSPECIFIED_, VersionBase
from places import QUICK, prepared

from lora_exp.model.data import ImageData
from lora_exp.storage.sweep_folder import read_sweep

# Some of the suites' applications state no version_base.
pytestmark = pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer change working directory")


@pytest.fixture(autouse=True)
def unspecified(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites' applications find no version_base that a test before them has set in this process."""
    monkeypatch.setattr(VersionBase.instance(), "version_base", _UNSPECIFIED_)


def test_hydra_finds_the_launcher_and_the_three_sweepers() -> None:
    found = [cls for kind in (Launcher, Sweeper) for cls in Plugins.instance().discover(kind)]
    own = {cls.__name__ for cls in found if cls.__module__.startswith("hydra_plugins.lora_exp_launcher")}
    assert own == {"PackedLauncher", "GridSweeper", "OptunaSweeper", "ContestSweeper"}


@pytest.mark.parametrize("logging", ["default", "disabled", "none", "stdout"])
def test_the_folder_of_a_job_holds_what_it_holds_with_hydras_own_launcher(
    tmp_path: Path, data_root: Path, mnist: ImageData, logging: str
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    swept = ("adapter=lora,dora", "adapter.rank=4", "adapter.alpha=${adapter.rank},2", "finetune.digit=[2,7]")
    given = (*swept, *QUICK, "finetune.steps=2", "tracking=off", f"hydra/job_logging={logging}")
    made = {}
    for launcher in ("packed", "basic"):  # the second finds all results in the store
        own = ("hydra.verbose=[lora_exp]", "hydra.sweep.dir=sweep", f"hydra/launcher={launcher}")
        done = forkserver.run(("-m", *given, *own), tmp_path)
        assert done.returncode == 0, done.stderr
        made[launcher] = (tmp_path / "sweep").rename(tmp_path / launcher)
    files = {name: {path.relative_to(place) for path in place.rglob("*")} for name, place in made.items()}
    assert files["packed"] == files["basic"]
    jobs = sorted(path for path in files["packed"] if path.parts[0].isdigit())
    assert {path.parts[0] for path in jobs} == set("0123")
    for path in (path for path in jobs if (made["packed"] / path).is_file()):
        ours, hydras = ((place / path).read_bytes() for place in made.values())
        if path.name == "hydra.yaml":  # which names the launcher
            ours, hydras = (
                b"".join(line for line in text.splitlines() if b"auncher" not in line) for text in (ours, hydras)
            )
        elif path.suffix == ".log":
            ours, hydras = (b"".join(line[len("HH:MM:SS") :] for line in text.splitlines()) for text in (ours, hydras))
            assert b"target error" in ours
        assert ours == hydras, path


def test_jobs_return_in_their_own_order_and_equal_ones_all_run(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    """A pack trains rank 1 first, since its factors are smaller. Every job diverges, and the first of them is named."""
    place = prepared(tmp_path, data_root)
    jobs = ("adapter.rank=9,1", "finetune.digit=3,3", "finetune.steps=3", "finetune.learning_rate=1e38")
    _, err = place.run("-m", *QUICK, *jobs, "tracking=off", code=1)
    assert err.splitlines()[-1].startswith("lora-exp: 4 of 4 jobs failed; the first: target-3_lora_rank-9_")
    assert read_sweep(place.sweep()).frame["status"].tolist() == ["diverged"] * 4
    assert len(place.results_made()) == 2


@pytest.mark.parametrize(("launcher_name", "overrides"), [("packed", [])])
class TestPackedLauncher(LauncherTestSuite):
    """One sweep, two jobs, strict configs, bad keys, group sweeps, custom resolvers."""


@pytest.mark.parametrize(("launcher_name", "overrides"), [("packed", ["hydra.sweeper.max_batch_size=2"])])
class TestPackedLauncherInBatches(BatchedSweeperTestSuite):
    """Batches of a sweeper that launches several times."""


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({"defaults": [{"override hydra/launcher": "packed"}]}, ["-m"])],
)
class TestPackedLauncherIntegration(IntegrationTestSuite):
    """Applications in processes of their own: task names, output folders, original and working folder."""
