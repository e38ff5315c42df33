"""Runs of many methods, and PEFT beside them, for the tests of `lora-exp export`, `merge` and `import`.

Logits agree within 1e-5 of the largest logit of the images. Logits are of size 10 to 50 here, where neighbouring
float32 numbers are up to 4e-6 apart, so that a sum of hundreds of products can't agree within 1e-5. SOME of the test
images are enough to compare logits; predicted classes are compared on all.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import forkserver
import torch
from safetensors.torch import load_file, save_file

from lora_exp import AdaptedClassifier, load_base
from lora_exp.commands.export import BASE, export_peft
from lora_exp.measures.logits import AFTER
from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT

# Mixed ranks and alphas by layer.
MIXED = {
    "tiny": ("++adapter.rank_pattern.linear2=5", "++adapter.alpha_pattern.linear1=3"),
    "cnn_small": ("++adapter.rank_pattern.conv1=2", "++adapter.alpha_pattern.conv2=1.5"),
}


SOME = 1000  # images


def in_a_process(folder: Path, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Lab:
    """A working folder with a sweep over `methods` for each model of MIXED."""

    folder: Path
    methods: tuple[str, ...]
    images: Path  # safetensors: all test images, and 200 training images of digit 9
    sweeps: dict[str, Path]

    def lora_exp(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = forkserver.run([str(argument) for argument in arguments], self.folder)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    @property
    def places(self) -> list[str]:
        """Overrides for use from any working folder."""
        return [f"store.folder={self.folder}/cache/store", f"data.root={self.folder}/cache/data"]

    def job(self, model: str, method: str) -> Path:
        return self.sweeps[model] / str(self.methods.index(method))

    def exported(self, folder: Path) -> Path:
        """The adapter of the first method on the tiny model, exported without its base."""
        export_peft(self.job("tiny", self.methods[0]), folder, self.places)
        (folder / BASE).unlink()
        return folder

    def refuses(self, command: str, says: str, places: dict[str, Path]) -> None:
        """Check that a command is rejected in one line that holds `says`, and that it writes no run and no adapter.

        Both texts name `places` in braces.
        """
        roots = {self.folder, *(place.parent for place in places.values())}
        before = {path for root in roots for path in root.rglob("*")}
        done = self.lora_exp(*shlex.split(command.format(**places)), code=2)
        [line] = done.stderr.splitlines()
        assert line.startswith("lora-exp: ") and says.format(**places) in line
        left = {path for root in roots for path in root.rglob("*")} - before
        assert not {path.name for path in left} & {RESULT, ADAPTER, "peft", "merged.safetensors", "runs"}

    def adapted(self, folder: Path) -> AdaptedClassifier:
        return AdaptedClassifier.load(load_base(folder, self.places), folder / ADAPTER)


def make_lab(folder: Path, data_root: Path, mnist: ImageData, methods: tuple[str, ...]) -> Lab:
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    nines = mnist.train.images[mnist.train.of_classes((9,))[:200]]
    save_file({"images": mnist.test.images[:], "train": nines}, folder / "images.safetensors")
    lab = Lab(folder, methods, folder / "images.safetensors", {})
    for model, patterns in MIXED.items():
        sweep = folder / "runs" / model / "sweep"
        lab.lora_exp(
            *("-m", f"model={model}", "data.limit=3000", "finetune.digit=9", "finetune.steps=20", "tracking=off"),
            *(f"adapter={','.join(methods)}", "adapter.rank=3", "adapter.alpha=2.0", *patterns),
            f"hydra.sweep.dir={sweep.relative_to(folder)}",
        )
        lab.sweeps[model] = sweep
    return lab


def same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether they are within 1e-5 of the largest logit, and every image is in the same class."""
    close = float((ours - theirs).abs().max()) <= 1e-5 * float(ours.abs().max())
    return close and torch.equal(ours.argmax(1), theirs.argmax(1))


def predicted_by(folder: Path) -> torch.Tensor:
    return load_file(folder / PREDICTIONS)[AFTER].argmax(1)
