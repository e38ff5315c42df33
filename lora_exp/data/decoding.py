"""Many pictures: decoded with all cores, in their order, into one array a split.

A reader hands over `Stream`s of `Encoded` pictures, in chunks. Where the config leaves size and channels open, the
first picture says them: all others must have its size, so memory is asked for before they are decoded; and if it is
grey and another has colour, all is decoded anew, in colour. A pass over all headers first would take longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from lora_exp.child import end_with
from lora_exp.data.memory import must_fit
from lora_exp.data.pictures import BadPicture, decode, quiet
from lora_exp.data.raw import Pictures, Wanted, shown
from lora_exp.errors import LoraExpError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 64  # pictures that a process reads at a time
MOST_BYTES = 400_000_000  # of one file: 8 for each pixel of the largest picture
WORTH_A_POOL = 20_000_000  # bytes of encoded pictures below which starting processes takes longer than it saves
AHEAD = 2  # chunks that wait for each process, so that none idles and few results lie in memory
CHANGED = "{}: changed while the data set was read; try again when nothing writes there"
Result = TypeVar("Result")


class Encoded(NamedTuple):
    """A picture that is not decoded yet: its content, or the file that holds it and that file's size and mtime."""

    place: str  # how messages name it; the file to read where content is None
    name: str  # hashed with the content where no split is given
    label: int
    content: bytes | None = None
    seen: tuple[int, int] | None = None  # size in bytes, mtime in ns


@dataclass(frozen=True)
class Stream:
    """The pictures of a split: how many, the size in bytes of all, and an iterator over chunks, made anew each time."""

    name: str
    count: int
    encoded_bytes: int
    chunks: Callable[[], Iterator[Sequence[Encoded]]]
    test: float | None = None  # share of the pictures that become test pictures, where the source has no split


class Decoding(NamedTuple):
    """How a chunk is decoded."""

    size: tuple[int, int]
    channels: int
    like: str | None  # the picture whose size all others must have; None: all are resized
    any_colour: bool  # whether 1 channel is a guess from the first picture
    test: float | None  # share of test pictures, where the source has no split


class ColourFound(Exception):
    """Not all pictures are grey, as was guessed."""


class Decoded(NamedTuple):
    """A decoded chunk: images [n, C, H, W], labels [n], which are test pictures [n], and what is wrong with the bad."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test: NDArray[np.bool_]
    bad: list[str]


def read_streams(streams: Sequence[Stream], wanted: Wanted, where: str) -> tuple[list[Pictures], int]:
    """Decode streams to one `Pictures` each, and count the pictures left out.

    A stream with a share of test pictures becomes two, train and test, by a hash of each picture's name and content, so
    that a picture's side never depends on the others.

    Raises LoraExpError for a bad picture (without `skip_bad`), for sizes that differ, and for more than fits into
    memory.
    """
    size, channels, like = wanted.size, wanted.channels, None
    if size is None or channels is None:
        place, first = _first(streams, wanted, where)
        like = place if size is None else None
        size, channels = size or (first.shape[1], first.shape[2]), channels or first.shape[0]
    how = Decoding(size, channels, like, wanted.channels is None, None)
    with contextlib.suppress(ColourFound):
        return _read(streams, how, wanted.skip_bad, where)
    return _read(streams, how._replace(channels=3), wanted.skip_bad, where)


def file_content(path: str, seen: tuple[int, int]) -> bytes:
    """Read a file that had `seen`, size and mtime in ns, when it was listed.

    Raises BadPicture when it can't be read or is larger than any picture, and LoraExpError when it has changed since.
    """
    if seen[0] > MOST_BYTES:
        raise BadPicture(f"has {seen[0] / 10**6:,.0f} MB; a file of at most {MOST_BYTES // 10**6} MB is read")
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # a third of the time that `open` takes
        try:
            content = os.read(file, seen[0] + 1)
            while len(content) <= seen[0] and (more := os.read(file, seen[0] + 1 - len(content))):
                content += more
            now = os.fstat(file)
        finally:
            os.close(file)
    except FileNotFoundError as error:
        raise LoraExpError(CHANGED.format(shown(path))) from error
    except OSError as error:
        raise BadPicture(f"can't be read ({error.strerror})") from error
    if seen != (now.st_size, now.st_mtime_ns) or len(content) != now.st_size:
        raise LoraExpError(CHANGED.format(shown(path)))
    return content


def _content(one: Encoded) -> bytes:
    if one.content is not None:
        return one.content
    assert one.seen is not None, "a picture has its content, or a file that was seen"
    return file_content(one.place, one.seen)


def test_side(content: bytes, name: str, share: float) -> bool:
    """Tell whether a picture is a test picture: a hash of it, as a number from 0 to 1, is below `share`."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape") + b"\0" + content).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def _first(streams: Sequence[Stream], wanted: Wanted, where: str) -> tuple[str, NDArray[np.uint8]]:
    """Return the place of the first picture that can be read, and the picture itself [C, H, W]."""
    with quiet():
        for stream in streams:
            for chunk in stream.chunks():
                for one in chunk:
                    try:
                        return one.place, decode(_content(one), None, wanted.channels)
                    except BadPicture as error:
                        if not wanted.skip_bad:
                            raise LoraExpError(_line(one, error)) from error
    raise LoraExpError(f"{where}: none of its pictures can be read")


def _read(streams: Sequence[Stream], how: Decoding, skip_bad: bool, where: str) -> tuple[list[Pictures], int]:
    count, (height, width) = sum(stream.count for stream in streams), how.size
    what = f"{count:,} images of {height} x {width} x {how.channels}"
    must_fit(count * how.channels * height * width, what, where)
    splits: list[Pictures] = []
    skipped = 0
    for stream in streams:
        parts, bad = _decoded(stream, how._replace(test=stream.test), skip_bad)
        splits += parts
        skipped += bad
    return splits, skipped


def _decoded(stream: Stream, how: Decoding, skip_bad: bool) -> tuple[list[Pictures], int]:
    """Decode a stream into one array: training pictures from its start, test pictures from its end."""
    import numpy as np

    images = np.empty((stream.count, how.channels, *how.size), np.uint8)
    labels = np.empty(stream.count, np.int64)
    start, end, skipped = 0, stream.count, 0
    # Closed whatever happens: an error that is shown later would keep its processes until then.
    with contextlib.closing(_mapped(Decode(how), stream, stream.name)) as chunks:
        for found in chunks:
            if found.bad and not skip_bad:
                raise LoraExpError(found.bad[0])
            skipped += len(found.bad)
            test = int(found.test.sum())
            stop, begin = start + len(found.labels) - test, end - test
            if test:
                images[begin:end], labels[begin:end] = found.images[found.test][::-1], found.labels[found.test][::-1]
                images[start:stop], labels[start:stop] = found.images[~found.test], found.labels[~found.test]
            else:
                images[start:stop], labels[start:stop] = found.images, found.labels
            start, end = stop, begin
    splits = [Pictures(images[:start], labels[:start])]
    if how.test is not None:  # a copy, in order, as the few test pictures are
        splits.append(Pictures(images[end:][::-1].copy(), labels[end:][::-1].copy()))
    return splits, skipped


@dataclass(frozen=True)
class Decode:
    """Decode a chunk; an object, so that it can be sent to another process."""

    how: Decoding

    def __call__(self, chunk: Sequence[Encoded]) -> Decoded:
        import numpy as np

        how = self.how
        images = np.empty((len(chunk), how.channels, *how.size), np.uint8)
        kept: list[int] = []
        sides, bad = [], []
        with quiet():
            for one in chunk:
                try:
                    content = _content(one)
                    pixels = decode(content, how.size if how.like is None else None, self.channels)
                except BadPicture as error:
                    bad.append(_line(one, error))
                    continue
                if pixels.shape[1:] != how.size:
                    height, width = pixels.shape[1:]
                    raise LoraExpError(
                        f"data.size: the pictures differ in size, {shown(how.like or '')} has {how.size[0]} x "
                        f"{how.size[1]} and {shown(one.place)} {height} x {width}; set data.size for all"
                    )
                if len(pixels) > how.channels:
                    raise ColourFound
                images[len(kept)] = pixels  # of grey, the same in each channel
                kept.append(one.label)
                sides.append(how.test is not None and test_side(content, one.name, how.test))
        return Decoded(images[: len(kept)], np.array(kept, np.int64), np.array(sides, bool), bad)

    @property
    def channels(self) -> int | None:
        """How many channels to decode; None: as a picture has, where that isn't settled by the config."""
        return None if self.how.any_colour else self.how.channels


def _line(one: Encoded, error: BadPicture) -> str:
    return f"{shown(one.place)}: {error}; replace it, or leave bad pictures out with data.skip_bad=true"


def _mapped(work: Callable[[Sequence[Encoded]], Result], stream: Stream, title: str) -> Generator[Result, None, None]:
    """Yield `work` of each chunk, in order, from as many processes as there are cores where that is worth it."""
    from tqdm import tqdm

    cores = _cores() if stream.encoded_bytes >= WORTH_A_POOL else 1
    bar = tqdm(total=stream.count, disable=None, desc=title, unit="picture")
    with bar, contextlib.closing(_on_cores(work, stream.chunks(), cores)) as results:
        for size, result in results:
            bar.update(size)
            yield result


def _on_cores(
    work: Callable[[Sequence[Encoded]], Result], chunks: Iterable[Sequence[Encoded]], cores: int
) -> Generator[tuple[int, Result], None, None]:
    """Yield the length of each chunk and its result."""
    import multiprocessing

    if cores < 2 or multiprocessing.current_process().daemon:  # which may have no children
        for chunk in chunks:
            yield len(chunk), work(chunk)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Not forks: the caller may have threads of torch, which a fork would copy in any state.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(cores, spawn, initializer=end_with, initargs=(os.getpid(),))
    waiting: deque[tuple[int, Future[Result]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((len(chunk), pool.submit(work, chunk)))
            if len(waiting) > AHEAD * cores:
                size, future = waiting.popleft()
                yield size, future.result()
        for size, future in waiting:
            yield size, future.result()
    except BrokenProcessPool as error:
        raise LoraExpError(
            "a process that decodes pictures was killed; is there enough memory? try again", 1
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
