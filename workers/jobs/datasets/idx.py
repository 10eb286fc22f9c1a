"""Reading idx files, the form of MNIST: bytes with a header, gzipped or not."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from workers.jobs.datasets.arrays import (
    UNREADABLE,
    Bounds,
    DataError,
    DataSet,
    Selection,
    choose,
    labels_of,
    read_exactly,
)

__all__ = ["read_idx"]


def read_idx(images: Path, labels: Path | None, selection: Selection, bounds: Bounds) -> DataSet:
    """An idx file of unsigned bytes [N, H, W] (gzipped or not) and the one of its labels."""
    size, read = _open_idx(images, bounds)
    indices = choose(selection, size)
    x = read(int(indices.max()) + 1)[indices]
    y, wide = None, None
    if labels is not None:
        count, read_labels = _open_idx(labels, bounds)
        y, wide = labels_of(read_labels(count), size)
        y = y[indices]
    return DataSet(x, y, indices, size, one_hot=wide)


def _open_idx(path: Path, bounds: Bounds) -> tuple[int, Callable[[int], NDArray[np.uint8]]]:
    """Number of rows, and a reader of the first ones."""

    def stream() -> IO[bytes]:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path)) if gzipped else path.open("rb")

    def header(file: IO[bytes]) -> tuple[int, ...]:
        magic = bytes(read_exactly(file, 4))
        if magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
            raise DataError("invalid_dataset", "an idx file of unsigned bytes was expected")
        sizes = np.frombuffer(read_exactly(file, 4 * magic[3]), dtype=">u4")
        return tuple(int(size) for size in sizes)

    def rows(stop: int) -> NDArray[np.uint8]:
        size = shape[0]
        try:
            with stream() as file:
                wanted = (stop, *header(file)[1:])
                raw = read_exactly(file, int(np.prod(wanted, dtype=object)))
                # At the end gzip compares its checksum too.
                if stop == size and file.read(1):
                    raise DataError(
                        "invalid_dataset", f"the idx file goes on after the {size} rows it declares"
                    )
                return np.frombuffer(raw, dtype=np.uint8).reshape(wanted)
        except DataError:
            raise
        except UNREADABLE as error:
            raise DataError("invalid_dataset", f"the idx file cannot be read: {error}") from error

    try:
        with stream() as file:
            shape = header(file)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError("invalid_dataset", f"the idx file cannot be read: {error}") from error
    bounds.check(f"an idx file of shape {shape}", int(np.prod(shape, dtype=object)), shape[0])
    return shape[0], rows
