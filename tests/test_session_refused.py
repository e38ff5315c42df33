"""python -m pytest tests/test_session_refused.py

What `lora_exp.sweep` refuses: modules that can't be adapted, and values that are not allowed. One script tries
them all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from places import Place
from session_lab import in_a_session

ILL = r"""
class Flat(nn.Module):
    def __init__(self, outputs=10):
        super().__init__()
        self.fc = nn.Linear(64, outputs)
    def forward(self, x):
        return self.fc(x.flatten(1))
class Pair(Flat):
    def forward(self, x):
        return super().forward(x), x
class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 10))
    def forward(self, x):
        return x.flatten(1) @ self.weight
class Centred(Flat):
    def forward(self, x):
        return super().forward(x - x.mean(0))
class CentredAtLast(Flat):
    def forward(self, x):
        logits = super().forward(x)
        return logits - logits.mean(0)
class Locked(Flat):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.two.weight = self.one.weight
    def forward(self, x):
        return self.fc(self.two(self.one(x.flatten(1)).relu()).relu())

without_counts = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 10))
broken = Flat()
torch.nn.init.constant_(broken.fc.bias, torch.nan)
for name, module, groups in [
    ("pair", Pair(), {}), ("bare", Bare(), {}), ("batchnorm", without_counts, {}), ("centred", Centred(), {}),
    ("centred at last", CentredAtLast(), {}), ("locked", Locked(), {}), ("shared", Shared(), {}),
    ("double", Flat().double(), {}), ("seven", Flat(7), {}), ("not finite", broken, {}), ("no module", len, {}),
    ("pattern", Flat(), {"adapter": {"layers": ("conv*",)}}), ("processes", Flat(), {"executor": "processes"}),
    ("processes too", Flat(), {"executor": {"kind": "processes", "workers": 2}}),
    ("rank", Flat(), {"adapter": {"rank": [1, 0]}}), ("key", Flat(), {"adapter": {"rnk": 1}}),
    ("empty", Flat(), {"adapter": {"rank": []}}),
    ("data", Flat(), {"data": "digit"}), ("group", Flat(), {"tune": {"steps": 3}}),
    ("target", Flat(), {"finetune": {"target": "an 'elf', or \"two\""}}),
    ("size", Flat(), {"data": {"name": "digits", "size": 9}}),
]:
    try:
        lora_exp.sweep(module, **{**base, **groups})
    except LoraExpError as error:
        told[name] = str(error)
print(json.dumps(told))
"""
MIXED = "the result for an image depends on the other images of its batch, first in"
REFUSED = {
    "pair": "model.name=Pair-*: returns a tuple; it must return logits [N, 10]",
    "bare": "model.name=Bare-*: has no linear layer and no convolution to adapt",
    "batchnorm": "model.name=Sequential-*: 1 (BatchNorm1d) normalises with the statistics of a batch",
    "centred": f"model.name=Centred-*: {MIXED} fc",
    "centred at last": f"model.name=CentredAtLast-*: {MIXED} the logits",
    "locked": "Locked: can't be copied (cannot pickle '_thread.lock' object)",
    "shared": "model.name=Shared-*: one.weight and two.weight share their values: not supported",
    "double": "model.name=Flat-*: fc.weight must be float32",
    "seven": "model.name=Flat-*: returns [N, 7]; it must return logits [N, 10]",
    "not finite": "base.weights=*: fc.bias holds values that are not finite",
    "no module": "module: must be a torch.nn.Module, and its type is builtin_function_or_method",
    "pattern": "adapter.layers=conv*: matches no layer; the layers are fc",
    "processes": "executor=processes: a module of one's own trains with executor=local",
    "processes too": "executor=processes: a module of one's own trains with executor=local",
    "rank": "adapter.rank=0: must be an integer of at least 1",
    "key": "adapter.rnk: no such key; allowed in adapter: method, rank,",
    "empty": "adapter.rank=[]: the list is empty; it holds the values to sweep over",
    "data": "data=digit: no such option; allowed: cifar10,",
    "group": "tune.steps: no such key; allowed: model, data,",
    "target": "finetune.target=an 'elf', or \"two\": no such class",
    "size": "model.name=Flat-*: can't take images of 9 x 9 with 1 channel",
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str, Path]:
    place = Place(tmp_path_factory.mktemp("refused"))
    return *in_a_session(place, ILL), place.folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_is_refused_by_name_in_one_line(name: str, refused: tuple[dict[str, str], str, Path]) -> None:
    line, (begin, _, rest) = refused[0][name], REFUSED[name].partition("-*" if "-*" in REFUSED[name] else "=*")
    assert line.startswith(begin) and rest in line and "\n" not in line


def test_nothing_is_printed_or_written_of_what_is_refused(refused: tuple[dict[str, str], str, Path]) -> None:
    told, err, folder = refused
    assert told.keys() == REFUSED.keys() and "Traceback" not in err
    assert not [*folder.glob("runs/*/*/*/result.json")]
