"""pytest tests/test_data_digits.py"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from lora_exp.data import digits


def test_all_digits_are_there_once_and_every_fifth_of_each_class_is_a_test_image() -> None:
    found = digits.read()
    assert found.train.images.shape[1:] == found.test.images.shape[1:] == (1, 8, 8)
    assert (found.train.images.dtype, found.train.labels.dtype) == (np.uint8, np.int64)
    assert len(found.train.labels) + len(found.test.labels) == 1797
    source = load_digits()
    for label in range(10):
        mine = source.images[source.target == label]
        assert (found.test.labels == label).sum() == len(mine) // 5
        assert (found.test.images[found.test.labels == label][:, 0] == np.rint(mine[4::5] * 15.9375)).all()
    assert (found.validation, found.classes) == (None, tuple("0123456789"))


def test_pixels_reach_from_0_to_255() -> None:
    found = digits.read()
    assert (found.train.images.min(), found.train.images.max()) == (0, 255)
    assert len(np.unique(found.train.images)) == 17
