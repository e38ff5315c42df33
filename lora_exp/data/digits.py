"""The 1,797 digits of scikit-learn, of 8 x 8 pixels. Every fifth image of each class is a test image."""

from __future__ import annotations

from lora_exp.data.raw import Pictures, RawData

CLASSES = tuple("0123456789")
EVERY = 5
LARGEST = 16  # of a pixel


def read() -> RawData:
    """Read the digits, their pixels scaled from 0..16 to 0..255. They ship with scikit-learn."""
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / LARGEST)).astype(np.uint8)[:, np.newaxis]
    labels = found.target.astype(np.int64)
    test = np.zeros(len(labels), bool)
    for label in range(len(CLASSES)):
        test[np.flatnonzero(labels == label)[EVERY - 1 :: EVERY]] = True
    return RawData(Pictures(images[~test], labels[~test]), Pictures(images[test], labels[test]), None, CLASSES)
