"""pytest tests/test_data_raw.py"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lora_exp
from lora_exp.data.raw import shown

ROOT = Path(lora_exp.__file__).parents[1]


def test_the_readers_load_no_library_before_they_read() -> None:
    modules = sorted(path.stem for path in (ROOT / "lora_exp" / "data").glob("*.py") if path.stem != "__init__")
    assert len(modules) > 15
    libraries = {"numpy", "PIL", "pyarrow", "torch", "torchvision", "sklearn", "scipy", "psutil", "tqdm"}
    code = f"import sys\nfrom lora_exp.data import {', '.join(modules)}\nprint({libraries!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_a_path_is_shown_in_one_line() -> None:
    assert shown(Path("a/ä b.png")) == "a/ä b.png"
    assert shown("two\nlines\x1b[31m\udcff") == "two?lines?[31m?"
