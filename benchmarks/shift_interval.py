"""Does the interval of `beyond_shift` hold the truth 95 times in 100?

python benchmarks/shift_interval.py [samples]: trains a small classifier and adapters on 6,000 images of MNIST, takes
the other 64,000 as the population, draws samples from it, and prints how often the interval of a sample holds the
difference in the population. No classifier saw an image of the population, so that it behaves like a test set.
"""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory

import numpy as np
import torch

from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec
from lora_exp.data.prepared import prepare
from lora_exp.measures.logits import Logits, compact
from lora_exp.measures.shift import matched_shift
from lora_exp.model.base import network, train
from lora_exp.model.data import Images, Split, load
from lora_exp.training.evaluation import predict_base, predict_pack
from lora_exp.training.loop import Job, TrainingImages, batch_order, fine_tune

MODEL, IMAGES, TRAINED_ON = ModelSpec((64,)), 4000, 6000


def population(digit: int, steps: int, replay: float) -> Logits:
    """Logits of all images that were not trained on, before and after an adapter."""
    with TemporaryDirectory() as folder:
        mnist = DataSpec("mnist")
        data = load(mnist, prepare(mnist, DataFolder(folder, None, folder)), torch.device("cpu"))
    of_train, parts = data.train.where(slice(TRAINED_ON)), (data.train.where(slice(TRAINED_ON, None)), data.test)
    pixels = torch.cat([part.images.pixels for part in parts])
    held = Split(Images(pixels, data.facts), torch.cat([part.labels for part in parts]))
    base = train(MODEL, BaseSpec(batch_size=50), of_train)
    how = FinetuneSpec(target=(digit,), steps=steps, replay=replay)
    order = batch_order(
        how, steps, how.target, of_train.of_classes((digit,)), of_train.of_classes(MNIST.others((digit,)))
    )
    plan = adapter_plan(AdapterSpec(rank=4), network(MODEL, MNIST).layers, 0, (digit,))
    images = TrainingImages(of_train.images, of_train.labels, None)
    pack: AdapterPack = fine_tune(base, [Job(plan, 1e-3, order)], images).pack
    [after] = predict_pack(base, pack, held, None)
    before = predict_base(base, held)
    return Logits(held.labels.numpy().astype(np.uint8), compact(before.logits.numpy()), compact(after.logits.numpy()))


def main(samples: int) -> None:
    """Print a row for each adapter, without and with validation images."""
    random = np.random.default_rng(0)
    print("digit steps replay  true difference  held in the interval: cross-fitted, validation   mean width")
    for digit, steps, replay in ((3, 60, 0.0), (9, 30, 0.0), (5, 200, 0.5), (8, 400, 0.8)):
        everything = population(digit, steps, replay)
        whole = matched_shift(everything, None, (digit,))
        assert whole is not None
        held, widths = [], []
        for _ in range(samples):
            drawn = random.permutation(len(everything.labels))[: 2 * IMAGES]
            test, validation = (
                Logits(everything.labels[at], everything.before[at], everything.after[at])
                for at in (drawn[:IMAGES], drawn[IMAGES:])
            )
            found = [matched_shift(test, on, (digit,)) for on in (None, validation)]
            beyond = [own.beyond for own in found if own is not None]
            held.append([own.low <= whole.beyond.value <= own.high for own in beyond])
            widths.append([100 * (own.high - own.low) for own in beyond])
        shares, mean = np.mean(held, axis=0), np.mean(widths, axis=0)
        print(
            f"{digit:5} {steps:5} {replay:6.1f} {100 * whole.beyond.value:+11.2f} points"
            f"{shares[0]:25.1%} {shares[1]:10.1%} {mean[0]:15.2f} and {mean[1]:.2f} points (n={samples})"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
