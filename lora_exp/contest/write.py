"""Write what a contest found: its verdict and the report of its runs, and the verdict beside the runs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_exp.contest.page import write_contest
from lora_exp.contest.protocol import CONTEST
from lora_exp.contest.verdict import Verdict, verdict_of
from lora_exp.contest.words import sentences
from lora_exp.report.write import write_report
from lora_exp.storage.sweep_file import VERDICT, write_whole
from lora_exp.storage.sweep_folder import Sweep


def write_with_verdict(sweep: Sweep, out: Path, pictures: NDArray[np.uint8], labels: NDArray[Any]) -> Verdict:
    """Write a contest's verdict and the report of its runs into `out`, and the verdict in sentences beside the runs.

    The other arguments are those of `write_report`. Raises LoraExpError when `out` holds something else, or the
    protocol can't be read.
    """
    verdict = verdict_of(sweep)
    write_report(sweep, out, pictures, labels, beside=functools.partial(write_contest, verdict))
    text = "\n\n".join([*sentences(verdict), f"SHA-256 of the protocol, `{CONTEST}`: `{verdict.protocol.sha256}`"])
    write_whole(sweep.folder / VERDICT, f"{text}\n".encode())
    return verdict
