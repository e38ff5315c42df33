"""All that one run gained and what it cost, from its logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_exp.measures.classification import measures
from lora_exp.measures.gains import TEST_HALF, VALIDATION_IMAGES, Choice, Gains
from lora_exp.measures.logits import Logits
from lora_exp.measures.paired import change, mcnemar
from lora_exp.measures.shift import halves, matched_shift, mean_weights


def gains(test: Logits, validation: Logits | None, target: Sequence[int]) -> Gains:
    """Measure a run by the logits of its test images, and of its validation images, if there are any."""
    classes = range(test.classes)
    others = [digit for digit in classes if digit not in target]
    own, rest, every = (mean_weights(test.labels, chosen, test.classes) for chosen in (target, others, classes))
    is_target = np.isin(test.labels, target)
    before, after = test.right_before, test.right_after
    one_group = np.zeros(len(test.labels), dtype=int)
    return Gains(
        before=measures(test.labels, test.before, target),
        after=measures(test.labels, test.after, target),
        all_images=mcnemar(before, after),
        target_images=mcnemar(before[is_target], after[is_target]),
        accuracy=change(before, after, one_group, np.ones(1)),
        balanced_accuracy=change(before, after, test.labels, every),
        # An error rises where the rate of right images falls.
        target_error=change(after, before, test.labels, own),
        forgetting=change(after, before, test.labels, rest),
        shift=matched_shift(test, validation, target),
        choice=_choice(test, validation, others),
    )


def _choice(test: Logits, validation: Logits | None, others: Sequence[int]) -> Choice:
    second = halves(test.labels)
    images, chosen, judged = TEST_HALF, test.where(~second), test.where(second)
    if validation is not None:
        images, chosen, judged = VALIDATION_IMAGES, validation, test
    numbers: list[float] = []
    for on in (chosen, judged):
        every, rest = (mean_weights(on.labels, own, on.classes) for own in (range(on.classes), others))
        numbers.append(change(on.right_before, on.right_after, on.labels, every).value)
        numbers.append(change(on.right_after, on.right_before, on.labels, rest).value)
    return Choice(images, *numbers)
