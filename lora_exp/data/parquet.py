"""Parquet files with a column of encoded pictures and one of labels, as Hugging Face has them.

A file, or a folder with files or folders named for the splits. Without a test split, the training pictures are split by
a hash of each one's content and path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.data.classes import (
    checked_labels,
    checked_names,
    chosen,
    complete,
    normalised,
    number_of_classes,
    ordered,
    refuse_collisions,
    refuse_share,
    same_in_all,
)
from lora_exp.data.decoding import CHUNK, Encoded, Stream, read_streams
from lora_exp.data.memory import must_fit
from lora_exp.data.parquet_columns import class_names, columns, files_of_splits, is_label, is_picture
from lora_exp.data.raw import RawData, Wanted, shown
from lora_exp.errors import LoraExpError, in_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read(path: Path, wanted: Wanted) -> RawData:
    """Read the pictures of a file or folder.

    Raises LoraExpError, in one line, when there is no file or column of a kind that is needed, labels or pictures can't
    be used, all don't fit into memory, or a file is damaged or changes meanwhile. With `wanted.skip_bad`, bad pictures
    are left out and counted.
    """
    where = shown(path)
    with _readable(where):
        files = files_of_splits(path)
        before = _seen(files)
        schema = _schema(files["train"][0])
    image, label = columns(schema, where)
    values = {split: _values(found, image, label) for split, found in files.items()}
    names, labels = _labels(values, class_names(schema, label), where)
    classes = chosen(names, wanted.classes, where)
    share = None
    if "test" not in files:
        refuse_share(wanted)
        share = wanted.test
    streams = [
        _stream(
            split, files[split], image, _positions(labels[split], names, classes), share if split == "train" else None
        )
        for split in files
    ]
    pictures, skipped = read_streams(streams, wanted, where)
    with _readable(where):
        if _seen(files) != before:
            raise LoraExpError(f"{where}: changed while it was read; try again when nothing writes there")
    order = ["train", *(["test"] if share is not None else []), *(split for split in files if split != "train")]
    return complete(dict(zip(order, pictures, strict=True)), classes, skipped, where, share)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Say in one line what is wrong with a file."""
    from pyarrow import ArrowException

    try:
        yield
    except OSError as error:  # Arrow raises it for damaged content too, without a number
        why = f"can't be read ({error.strerror})" if error.strerror else f"is damaged ({in_words(error)}); replace it"
        raise LoraExpError(f"{shown(error.filename or where)}: {why}") from error
    except ArrowException as error:
        raise LoraExpError(f"{where}: is no whole parquet file ({in_words(error)}); replace it") from error


def _seen(files: Mapping[str, list[Path]]) -> list[tuple[int, int]]:
    every = [file.stat() for found in files.values() for file in found]
    return [(status.st_size, status.st_mtime_ns) for status in every]


def _schema(file: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    with _readable(shown(file)), ParquetFile(file) as parquet:
        return parquet.schema_arrow


def _values(files: list[Path], image: str, label: str) -> NDArray[Any]:
    """Return the label of each row of a split: integers, or text as an array of objects."""
    import numpy as np
    from pyarrow import types
    from pyarrow.parquet import ParquetFile

    found = []
    for file in files:
        where = shown(file)
        with _readable(where), ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            for name, fits in ((image, is_picture), (label, is_label)):
                if name not in schema.names or not fits(schema.field(name).type):
                    raise LoraExpError(f"{where}: has no column {name!r} as the first file has it")
            groups = [parquet.metadata.row_group(at) for at in range(parquet.num_row_groups)]
            must_fit(max((group.total_byte_size for group in groups), default=0), "the rows of a group", where)
            column = parquet.read(columns=[label]).column(0).combine_chunks()
        if column.null_count:
            raise LoraExpError(f"{where}: {label} is missing in {column.null_count} rows; every picture needs a label")
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        found.append(column.to_numpy(zero_copy_only=False))
    if len({values.dtype.kind == "O" for values in found if len(values)}) > 1:
        raise LoraExpError(f"{shown(files[0])}: {label} is text in some files and numbers in others")
    return np.concatenate(found)


def _labels(
    values: Mapping[str, NDArray[Any]], given: list[str] | None, where: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Return the names of the classes, and the labels of each split as positions in them."""
    import numpy as np

    if all(of_split.dtype.kind in "iu" for of_split in values.values()):
        labels = {split: checked_labels(found, len(found), f"{where}: {split}") for split, found in values.items()}
        count = number_of_classes(labels, where)
        numbers = tuple(str(label) for label in range(count))
        return (checked_names(given, count, where) if given else numbers), labels
    if any(of_split.dtype.kind in "iu" for of_split in values.values()):
        raise LoraExpError(f"{where}: labels are text in some splits and numbers in others")
    texts = {split: [normalised(str(one), where) for one in found.tolist()] for split, found in values.items()}
    for split, found in texts.items():
        if not found:
            raise LoraExpError(f"{where}: {split} holds no image; at least one of each class is needed")
    names = ordered({name for found in texts.values() for name in found})
    refuse_collisions(names, where)
    same_in_all({split: set(found) for split, found in texts.items()}, where)
    at = {name: position for position, name in enumerate(names)}
    return names, {split: np.array([at[name] for name in found], np.int64) for split, found in texts.items()}


def _positions(labels: NDArray[np.int64], names: tuple[str, ...], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return labels as positions in the wanted classes, -1 for others."""
    import numpy as np

    table = np.array([classes.index(name) if name in classes else -1 for name in names], np.int64)
    return table[labels]


def _stream(split: str, files: list[Path], image: str, labels: NDArray[np.int64], share: float | None) -> Stream:
    def chunks() -> Iterator[list[Encoded]]:
        start = 0
        for file in files:
            count = 0
            for first, names, contents in _rows(file, image):
                of_batch = labels[start + first : start + first + len(contents)].tolist()
                if len(of_batch) != len(contents):
                    raise LoraExpError(f"{shown(file)}: changed while it was read; try again when nothing writes there")
                chunk = [
                    Encoded(f"{file}: row {first + at}", names[at] or "", label, contents[at] or b"")
                    for at, label in enumerate(of_batch)
                    if label >= 0
                ]
                if chunk:
                    yield chunk
                count = first + len(contents)
            start += count

    return Stream(split, int((labels >= 0).sum()), sum(file.stat().st_size for file in files), chunks, share)


def _rows(file: Path, image: str) -> Iterator[tuple[int, list[str | None], list[bytes | None]]]:
    """Yield the number of the first row of each batch, and the rows' paths and contents."""
    from pyarrow import types
    from pyarrow.parquet import ParquetFile

    first = 0
    with _readable(shown(file)), ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=CHUNK, columns=[image]):
            column = batch.column(0)
            names: list[str | None] = [None] * len(column)
            if types.is_struct(column.type):
                fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
                if "path" in fields and types.is_string(fields["path"].type):
                    names = fields["path"].to_pylist()
                column = fields["bytes"]
            yield first, names, column.to_pylist()
            first += len(column)
