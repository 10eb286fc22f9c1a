"""Reading data sets of arrays: npz and idx. Nothing is unpickled, everything is bounded.

Only the samples asked for are converted; what is declared (array headers, sizes) is checked before
anything is inflated. Images are in ``workers.jobs.datasets.images``.
"""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = [
    "UNREADABLE",
    "Bounds",
    "DataError",
    "DataSet",
    "Selection",
    "check_labels",
    "choose",
    "read_exactly",
    "read_idx",
    "read_npz",
]

#: What the readers of archives, arrays and images raise on invalid bytes.
UNREADABLE = (
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

#: First samples, all of them, or positions in the data set.
Selection = int | str | list[int]


class DataError(ValueError):
    """A data set that cannot be used; ``code`` names why, ``hint`` says what to do."""

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.field = "dataset"


@dataclass(frozen=True)
class Bounds:
    """Limits on a data set: bytes in memory once inflated, and samples."""

    max_bytes: int = 2 * 2**30
    max_samples: int = 1_000_000

    def check(self, what: str, size: int, samples: int = 0) -> None:
        """Raise DataError ``too_large`` beyond them."""
        if size > self.max_bytes or samples > self.max_samples:
            raise DataError("too_large", f"{what} is too large")


@dataclass(frozen=True)
class DataSet:
    """The samples asked for: x [N, ...] as stored, y int64 [N] or None, indices int64 [N], size.

    ``classes``: label of each class folder, where labels come from folders; ``warnings``: sentences
    for the person who relies on the report.
    """

    x: NDArray[Any]
    y: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    size: int
    classes: Mapping[str, int] | None = None
    warnings: tuple[str, ...] = ()


def read_npz(path: Path, selection: Selection, bounds: Bounds) -> DataSet:
    """Arrays ``x`` [N, ...] (uint8 or float) and, if there is one, ``y`` [N] of an npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
            if "x" not in names:
                raise DataError(
                    "missing_array",
                    f"the npz file holds {sorted(names)[:10]} but no array 'x'",
                    hint="np.savez(file, x=images, y=labels)",
                )
            with archive.open("x.npy") as stream:
                header = _Header.read(stream, bounds)
                if not header.shape:
                    raise DataError("bad_shape", "array 'x' has no axis of samples")
                indices = choose(selection, header.shape[0])
                x = header.rows(stream, int(indices.max()) + 1)[indices]
            y = None
            if "y" in names:
                with archive.open("y.npy") as stream:
                    labels = _Header.read(stream, bounds)
                    y = _labels(labels.rows(stream, None), header.shape[0])[indices]
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError("invalid_dataset", f"the npz file cannot be read: {error}") from error
    return DataSet(x, y, indices, header.shape[0], warnings=_unread(names))


def _unread(names: set[str]) -> tuple[str, ...]:
    """A warning of arrays beside x and y: they may be labels under another name."""
    others = sorted(names - {"x", "y"})
    if not others:
        return ()
    said = f"The npz also holds {', '.join(map(repr, others[:5]))}, which was not read"
    if "y" not in names:
        return (said + ": labels are read from an array named 'y' only, and there is none.",)
    return (said + ".",)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @classmethod
    def read(cls, stream: IO[bytes], bounds: Bounds) -> _Header:
        version = npy.read_magic(stream)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if reader is None:
            raise DataError("invalid_dataset", f"array format {version} is not supported")
        shape, fortran, dtype = reader(stream)
        header = cls(tuple(shape), fortran, dtype)
        if dtype.hasobject or dtype.kind not in "buif":
            raise DataError(
                "unsupported_dtype",
                f"arrays of type {dtype} are not read",
                hint="x: uint8, or floats in [0, 1]; y: whole numbers",
            )
        if len(shape) > 5 or any(size < 0 for size in shape):
            raise DataError("bad_shape", f"an array of shape {shape} is not a data set")
        bounds.check(f"an array of shape {shape}", header.size, shape[0] if shape else 0)
        return header

    @property
    def size(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def rows(self, stream: IO[bytes], stop: int | None) -> NDArray[Any]:
        """The first ``stop`` rows (all, if None or stored column by column)."""
        shape = self.shape if stop is None or self.fortran else (stop, *self.shape[1:])
        wanted = _Header(shape, self.fortran, self.dtype).size
        raw = read_exactly(stream, wanted)
        array = np.frombuffer(raw, dtype=self.dtype)
        return array.reshape(shape, order="F" if self.fortran else "C")


def read_exactly(stream: IO[bytes], size: int) -> bytearray:
    raw = bytearray()
    while len(raw) < size:
        block = stream.read(min(2**20, size - len(raw)))
        if not block:
            raise DataError("invalid_dataset", f"the data end after {len(raw)} of {size} bytes")
        raw += block
    return raw


def read_idx(images: Path, labels: Path | None, selection: Selection, bounds: Bounds) -> DataSet:
    """An idx file of unsigned bytes [N, H, W] (gzipped or not) and the one of its labels."""
    size, read = _open_idx(images, bounds)
    indices = choose(selection, size)
    x = read(int(indices.max()) + 1)[indices]
    y = None
    if labels is not None:
        count, read_labels = _open_idx(labels, bounds)
        y = _labels(read_labels(count), size)[indices]
    return DataSet(x, y, indices, size)


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


def check_labels(data: DataSet, classes: int, *, of: str) -> None:
    """Raise DataError where a label is not a class of the network or architecture (``of``)."""
    if data.y is None:
        return
    wrong = (data.y < 0) | (data.y >= classes)
    if bool(wrong.any()):
        place = int(np.flatnonzero(wrong)[0])
        raise DataError(
            "label_out_of_range",
            f"sample {int(data.indices[place])} has label {int(data.y[place])}; the {of} has "
            f"classes 0 to {classes - 1}",
            hint=f"send a data set with the classes of the {of}, numbered from 0",
        )


def choose(selection: Selection, size: int) -> NDArray[np.int64]:
    """Positions [N] asked for, in the order asked for. Raises DataError."""
    if size == 0:
        raise DataError("empty_dataset", "the data set holds no sample")
    if isinstance(selection, list):
        indices = np.array(selection, dtype=np.int64)
        if indices.size == 0 or indices.min() < 0 or indices.max() >= size:
            raise DataError("index_out_of_range", f"indices must lie in [0, {size})")
        return indices
    return np.arange(size if selection == "all" else min(int(selection), size), dtype=np.int64)


def _labels(y: NDArray[Any], size: int) -> NDArray[np.int64]:
    y = y.reshape(-1) if y.ndim == 2 and 1 in y.shape else y
    if y.shape != (size,):
        raise DataError(
            "label_mismatch",
            f"{size} samples but labels of shape {y.shape}",
            hint="one class number per sample; one-hot rows: y.argmax(1)",
        )
    if y.dtype.kind == "f" and not bool((np.isfinite(y) & (y == np.floor(y))).all()):
        raise DataError("label_not_integral", "labels must be whole numbers")
    if bool((np.abs(y.astype(np.float64)) > 2**31).any()):
        raise DataError("label_out_of_range", "a label is beyond any number of classes")
    return y.astype(np.int64)
