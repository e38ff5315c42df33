"""The names of classes, and what labels have to hold, whatever the source."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_exp.data.raw import Pictures, RawData, Wanted, shown
from lora_exp.errors import LoraExpError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST = 2  # with one class there is nothing to classify
MANY = 5  # names that a message lists


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: numbers by value before all others, the others by name."""
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if is_number(name) else (1, 0, name)))


def is_number(name: str) -> bool:
    """Tell whether a name is a whole number that can be sorted by value."""
    return name.isascii() and name.isdigit() and len(name) <= 18


def normalised(name: str, where: str) -> str:
    """Return a class name in Unicode's form NFC: two systems write "ä" differently, and mean the same class.

    Raises LoraExpError for a name that isn't text, is blank, or holds control characters.
    """
    plain = unicodedata.normalize("NFC", name)
    if not plain.strip() or not plain.isprintable():  # undecodable bytes are surrogates, which are not printable
        raise LoraExpError(f"{where}: class name {shown(name)!r} must be text in one line; rename it")
    return plain


def refuse_collisions(names: Iterable[str], where: str) -> None:
    """Raise LoraExpError for names that differ only in case: elsewhere both would be the same folder."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.get(name.lower())) is not None:
            how = "differ only in case" if other != name else "are the same"
            raise LoraExpError(f"{where}: the classes {other!r} and {name!r} {how}; rename or merge them")
        seen[name.lower()] = name


def chosen(names: Sequence[str], wanted: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """Return the wanted classes of a source, in the source's order.

    Raises LoraExpError for a name that the source doesn't have, one that is given twice, and fewer than two classes.
    """
    if wanted is None:
        kept = tuple(names)
    else:
        asked = [unicodedata.normalize("NFC", name) for name in wanted]
        for name in asked:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {listed(names)}"
                raise LoraExpError(f"data.classes: {where} has no class {shown(name)!r}; {hint}")
            if asked.count(name) > 1:
                raise LoraExpError(f"data.classes: {name!r} is named twice; name each class once")
        kept = tuple(name for name in names if name in asked)
    if len(kept) < FEWEST:
        what = f"only the class {kept[0]!r}" if kept else "no class"
        key = where if wanted is None else f"data.classes of {where}"
        raise LoraExpError(f"{key}: has {what}; at least {FEWEST} classes are needed")
    return kept


def listed(names: Collection[str]) -> str:
    """Return the first names, and how many more there are."""
    first = ", ".join(repr(name) for name in list(names)[:MANY])
    return first if len(names) <= MANY else f"{first} and {len(names) - MANY} more"


def same_in_all(found: Mapping[str, Collection[str]], where: str) -> None:
    """Raise LoraExpError where a class is in one split and not in another; `found` holds the names of each split."""
    for split, names in found.items():
        for other, others in found.items():
            missing = [name for name in names if name not in others]
            if missing:
                raise LoraExpError(
                    f"{where}: class {missing[0]!r} is in {split} and has no picture in {other}; "
                    "every split must have every class"
                )


def checked_labels(labels: NDArray[Any], images: int, where: str) -> NDArray[np.int64]:
    """Return labels [N] or [N, 1] as int64 [N]; `images` is how many there have to be.

    Raises LoraExpError for labels of another shape, type or number, and for negative ones.
    """
    import numpy as np

    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1:
        raise LoraExpError(f"{where}: labels have the shape {list(labels.shape)}; one label an image is allowed")
    if not np.issubdtype(flat.dtype, np.integer):
        raise LoraExpError(f"{where}: labels are of type {flat.dtype}; they must be integers")
    if len(flat) != images:
        raise LoraExpError(f"{where}: {len(flat)} labels for {images} images; there must be as many")
    if not len(flat):
        raise LoraExpError(f"{where}: holds no image; at least one of each class is needed")
    if flat.min() < 0:
        raise LoraExpError(f"{where}: label {flat.min()} is negative; labels must count from 0")
    if flat.max() >= 1 << 31:  # compared in the labels' own type: uint64 doesn't fit into int64
        raise LoraExpError(f"{where}: label {flat.max()} is too large; labels must count from 0")
    return flat.astype(np.int64)


def number_of_classes(labels: Mapping[str, NDArray[np.int64]], where: str) -> int:
    """Return how many classes the splits' labels have. Raises LoraExpError for a gap, and unequal splits."""
    import numpy as np

    present = {split: set(np.unique(of_split).tolist()) for split, of_split in labels.items()}
    everywhere = set.union(*present.values())
    for label in range(len(everywhere)):
        if label not in everywhere:
            raise LoraExpError(
                f"{where}: no image has label {label}, and one has label {max(everywhere)}; "
                "labels must count from 0 without a gap"
            )
    same_in_all({split: [str(label) for label in sorted(found)] for split, found in present.items()}, where)
    return len(everywhere)


def checked_names(names: Sequence[str], count: int, where: str) -> tuple[str, ...]:
    """Return the class names that a source gives for its labels 0 to `count` - 1, in its own order.

    Raises LoraExpError when there are more or fewer, or two are alike.
    """
    if len(names) != count:
        raise LoraExpError(f"{where}: {len(names)} class names for {count} classes; there must be as many")
    plain = tuple(normalised(name, where) for name in names)
    refuse_collisions(plain, where)
    return plain


def complete(
    splits: Mapping[str, Pictures], classes: tuple[str, ...], skipped: int, where: str, test: float | None = None
) -> RawData:
    """Return splits (train, test, and validation where there is one) as a data set that has every class in each.

    `test` is the share by which test pictures were drawn, where the source had no split. Raises LoraExpError when a
    class has no picture in a split.
    """
    import numpy as np

    for name, split in splits.items():
        counts = np.bincount(split.labels, minlength=len(classes))
        for label in np.flatnonzero(counts == 0):
            why = "no picture of it can be read"
            if test is not None and name in ("train", "test"):
                why = (
                    f"none was drawn for it with data.test={test}, nor for {(counts == 0).sum() - 1} others; add "
                    "pictures, choose another share, or lay out train/ and test/ yourself"
                )
            raise LoraExpError(f"{where}: class {classes[label]!r} has no picture in {name}: {why}")
    return RawData(splits["train"], splits["test"], splits.get("validation"), classes, skipped)


def refuse_share(wanted: Wanted) -> None:
    """Raise LoraExpError for a share of test pictures that leaves nothing to train or to test on."""
    if not 0 < wanted.test < 1:
        raise LoraExpError(f"data.test={wanted.test}: must be above 0 and below 1")
