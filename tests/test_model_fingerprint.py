"""python -m pytest tests/test_model_fingerprint.py

The hash of a module of one's own: whatever changes what the module computes changes the hash, and nothing else does.
"""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lora_exp.model.fingerprint import fingerprint

SOURCE = """
import functools, math, torch
from torch import nn

FACTOR = 2.0
NAMES = {"one", "two", "three"}

def scaled(images):
    return images * FACTOR

def kept(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)
    return wrapper

def by(power):
    return lambda images: images ** power

class Net(nn.Module):
    clip = 5

    def __init__(self, outputs=10, slope=0.1):
        super().__init__()
        self.fc = nn.Linear(64, outputs)
        self.slope = slope
        self.options = {"more": [1, (2, 3)]}
        self.bent = by(2)
        self.partly = functools.partial(scaled)
        self.register_buffer("hidden", torch.arange(3.0), persistent=False)
        self.plain = torch.ones(2)
        self.fc.register_forward_hook(lambda own, given, made: made + 0)

    @property
    def floor(self):
        return -1

    @staticmethod
    def flat(images):
        return images.flatten(1)

    @kept
    def inner(self, images):
        return scaled(self.flat(images))

    def forward(self, images):
        if "one" in NAMES and self.clip:
            images = images.clamp(self.floor, self.clip)
        return self.bent(self.fc(self.inner(images))) * self.slope + math.pi + self.hidden[0]
"""
CHANGES = [
    ("FACTOR = 2.0", "FACTOR = 3.0"),
    ('"two", "three"', '"two"'),
    ("return images * FACTOR", "return images + FACTOR"),
    ("return function(*arguments)", "return -function(*arguments)"),
    ("images ** power", "images * power"),
    ("by(2)", "by(3)"),
    ("clip = 5", "clip = 6"),
    ("slope=0.1", "slope=0.2"),
    ("nn.Linear(64, outputs)", "nn.Linear(64, outputs, bias=False)"),
    ("(2, 3)", "(2, 4)"),
    ("partial(scaled)", "partial(scaled, None)"),
    ("torch.arange(3.0)", "torch.arange(3.0) + 1"),
    ("torch.ones(2)", "torch.zeros(2)"),
    ("made + 0", "made + 1"),
    ("return -1", "return -2"),
    ("images.flatten(1)", "images.flatten(1) * 1"),
    ("math.pi", "math.e"),
    ("self.hidden[0]", "self.hidden[1]"),
    ("(self.inner(images))", "(self.inner(images) + 1)"),
]


def net(source: str = SOURCE, **given: Any) -> nn.Module:
    names: dict[str, Any] = {"__name__": "a_session"}
    exec(source, names)
    module = names["Net"](**given)
    assert isinstance(module, nn.Module)
    return module


@pytest.mark.parametrize(("code", "other"), CHANGES)
def test_whatever_changes_the_result_changes_the_hash(code: str, other: str) -> None:
    assert code in SOURCE
    assert fingerprint(net(SOURCE.replace(code, other))) != fingerprint(net())


def test_values_of_weights_a_copy_and_the_same_code_again_change_nothing() -> None:
    own = net()
    expected = fingerprint(own)
    assert fingerprint(net()) == fingerprint(copy.deepcopy(own)) == fingerprint(own.eval()) == expected
    with torch.no_grad():
        own(torch.rand(2, 1, 8, 8))
    assert fingerprint(own.requires_grad_(False)) == expected
    assert fingerprint(net(slope=0.3)) != expected and fingerprint(net(outputs=7)) != expected
    assert fingerprint(net().double()) != expected


def test_parts_that_share_their_weights_are_other_parts() -> None:
    apart, shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert fingerprint(apart) == fingerprint(shared)
    shared[0].weight = shared[1].weight
    assert fingerprint(apart) != fingerprint(shared)


def test_a_value_inside_itself_and_modules_in_a_list_are_no_obstacle() -> None:
    own, other = net(), net()
    for module, width in ((own, 2), (other, 3)):
        module.loop = [module.__dict__]
        module.aside = [nn.Linear(width, width)]
    assert fingerprint(own) != fingerprint(other)


def test_a_model_of_a_library_has_one_hash_in_every_process() -> None:
    code = "import lora_exp, torchvision; from lora_exp.model.fingerprint import fingerprint as f; "
    code += "print(f(torchvision.models.resnet18()))"
    clean = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(resnet18())
    assert fingerprint(resnet18(norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-3))) != fingerprint(resnet18())
