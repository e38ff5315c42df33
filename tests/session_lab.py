"""Scripts that call `lora_exp.sweep`, each run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from forkserver import ROOT
from places import Place

HEAD = """
import json, os, sys, threading, torch
from pathlib import Path
from torch import nn
import lora_exp
from lora_exp.errors import LoraExpError

SOURCE = '''
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 36, 10)

    def forward(self, x):
        h = self.fc(self.norm(self.conv(x)).relu().flatten(1))
        h += 1
        return h
'''
exec(SOURCE)
torch.manual_seed(0)
base = {"data": "digits", "finetune": {"target": 3, "steps": 3}, "tracking": "off"}
told = {}
"""


def in_a_session(place: Place, code: str, **environment: str) -> tuple[dict[str, Any], str]:
    """What a script prints as JSON in its last line, and its stderr."""
    (place.folder / "script.py").write_text(HEAD + code)
    paths = os.pathsep.join([str(place.folder), str(ROOT)])
    own = {"PYTHONPATH": paths, "COMPUTED": str(place.computed), "FAULTS": "5=raise", **environment}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=place.folder, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, done.stderr
