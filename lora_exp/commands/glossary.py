"""`lora-exp glossary`: the terms of tables, reports, messages and docs, a line each. docs/glossary.md is made of it."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence

from lora_exp.errors import LoraExpError, closest, did_you_mean

TERMS = {
    "adapter": "the few weights that fine-tuning adds to the base and trains; switched off, the base answers as before",
    "alpha": "numerator of the scaling; with alpha=rank the scaling of LoRA is 1",
    "arm": "one of the adapters that a contest compares",
    "AUROC": "area under the ROC curve of the target's probability; a moved threshold does not change it",
    "balanced accuracy": "the mean recall of all classes, so that each class counts the same",
    "base": "the classifier before fine-tuning; its weights stay as they are",
    "beyond a shift": "forgetting of a moved threshold of the same recall minus that of the run; above 0: better",
    "calibration error": "expected calibration error: how far the classifier's confidence is from its accuracy",
    "chosen run": "a run of the recommended setting, its first job: it is shown in detail, and can be repeated",
    "claim": "a statement of a paper that a preset tests; the report says holds, fails or undecided",
    "contest": "adapters compared after each was tuned with the same effort, by a protocol stated before",
    "diverged": "a run whose loss became infinite or not a number; it has no errors to compare",
    "executor": "where packs train: on this machine, in worker processes, on Ray or on Slurm",
    "experiment": "a preset: a config file that chooses several options and keys at once",
    "forgetting": "the rise of the mean error rate of the classes that are not the target, in percentage points",
    "front": "Pareto front: the runs that no other run beats in target error and forgetting at once",
    "gain": "balanced accuracy after fine-tuning minus before, in percentage points",
    "halving": "successive halving: at each rung only the better jobs of a sweep continue",
    "held-out images": "images that no training saw: validation images, or the half of the test images for choosing",
    "interval": "95 % confidence interval; over test images for one run, over bases or seeds for a setting",
    "job": "one run of a sweep; its folder is named by its number",
    "layers": "the layers that have an adapter, by name or pattern",
    "margin": "a difference in percentage points that is too small to matter; a contest shows such ones by TOST",
    "method": "how fine-tuning changes a layer: lora, dora, pissa, full, bitfit, ...",
    "moved threshold": "a constant added to the target's logit of the base: what is gained without any training",
    "opponent": "what a contest compares an arm with: the base, a moved threshold, the reference arm",
    "overhead": "parameters of the adapter as a share of the parameters of the base",
    "override": "KEY=VALUE on the command line, in place of the value in the config",
    "pack": "jobs that train together as one batched computation; each has the same bits as alone",
    "power": "the chance that a contest shows a difference of the size of the margin",
    "price": "what a gain on the target costs: forgetting, and parameters",
    "protocol": "what a contest compares and how it decides, in contest.yaml, written before anything runs",
    "rank": "rows of LoRA's A and columns of its B; the rank of the update of a layer is at most that",
    "recall": "share of the images of a class that are classified as that class; 1 minus the error on it",
    "recommended setting": "the one that gains most balanced accuracy, then forgets least, on held-out images",
    "replay": "share of the fine-tuning images that are of other classes than the target",
    "rung": "a number of steps after which halving compares jobs and stops the worse ones",
    "scaling": "factor of LoRA's update: alpha / rank; alpha / sqrt(rank) with rsLoRA",
    "search": "a sweep whose settings a sampler proposes, from the results of earlier trials on validation images",
    "seed": "start of a random number generator: base.seed makes another base, finetune.seed another fine-tuning",
    "setting": "all keys of a run but the target and the seeds; runs of one setting differ by chance only",
    "store": "the folder of trained bases and finished results, which are never computed twice",
    "sweep": "runs of all combinations of the values of some keys, or of a search; it has a folder and a report",
    "target": "the class, or the classes, that the base is fine-tuned on",
    "task": "what runs are judged by: the target, and the data set and the classifier where they vary",
    "TOST": "two one-sided tests, which together show that a difference is smaller than the margin",
    "trial": "a job of a search",
    "tuned": "of an arm: its best learning rate lies between others that it tried, not at an end",
    "validation images": "training images that are held out to choose settings by (data.validation)",
}


def main(arguments: Sequence[str]) -> int:
    """Explain the terms of tables, reports and messages, a line each."""
    parser = argparse.ArgumentParser(prog="lora-exp glossary", description=main.__doc__)
    parser.add_argument("term", nargs="*", help="explain this term only")
    parser.add_argument("--markdown", action="store_true", help="print docs/glossary.md")
    options = parser.parse_args(arguments)
    if options.markdown:
        print(markdown(), end="")
        return 0
    asked = " ".join(options.term)
    names = {name.lower(): name for name in TERMS}
    if asked and asked.lower() not in names:
        raise LoraExpError(f"{asked}: is not in the glossary{did_you_mean(closest(asked.lower(), names))}")
    width = shutil.get_terminal_size().columns
    for name in [names[asked.lower()]] if asked else TERMS:
        print(textwrap.fill(f"{name:<19} {TERMS[name]}", max(width, 60), subsequent_indent=" " * 20))
    return 0


def markdown() -> str:
    """The glossary as a document."""
    rows = "".join(f"| {name} | {meaning} |\n" for name, meaning in TERMS.items())
    made = "`lora-exp glossary` prints them; `lora-exp glossary --markdown` made this page."
    head = f"# Glossary\n\nThe terms of tables, reports and messages. {made}\n\n| term | meaning |\n| --- | --- |\n"
    return head + rows
