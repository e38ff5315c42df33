"""python -m pytest tests/test_launcher.py

Hydra's public contract suites for launchers, against `hydra/launcher=packed`, none of their tests left out.
They run their own small applications, whose jobs have nothing to pack: what is tested is everything else.
"""

from __future__ import annotations

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

# Some of the suites' applications state no version_base.
pytestmark = pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer change working directory")


def test_hydra_finds_the_launcher_and_the_two_sweepers() -> None:
    found = [cls for kind in (Launcher, Sweeper) for cls in Plugins.instance().discover(kind)]
    own = {cls.__name__ for cls in found if cls.__module__.startswith("hydra_plugins.lora_exp_launcher")}
    assert own == {"PackedLauncher", "GridSweeper", "OptunaSweeper"}


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
