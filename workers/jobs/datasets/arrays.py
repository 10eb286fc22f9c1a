"""Reading data sets of arrays: npz and npy. Nothing is unpickled, everything is bounded.

Only the samples asked for are converted; what is declared (array headers, sizes) is checked before
anything is inflated. Images are in ``workers.jobs.datasets.images``.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.contract.array_names import ARRAY_NAMES, UnknownArrays, arrays_of
from service.contract.near_names import did_you_mean

__all__ = [
    "UNREADABLE",
    "Bounds",
    "DataError",
    "DataSet",
    "Selection",
    "check_labels",
    "choose",
    "labels_of",
    "numbered",
    "read_exactly",
    "read_npy",
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

#: Names of classes that a message lists.
_LISTED = 6

#: Kinds of types that are read, and what to do about others.
_SAMPLES, _LABELS = "buif", "buifUS"
_KINDS = {
    _SAMPLES: "uint8, or floats: x.astype(numpy.float32), of a table table.to_numpy(numpy.float32)",
    _LABELS: "whole numbers: y.astype(numpy.int64), or names of classes: y.astype(str)",
}

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

    ``classes``: label of each class folder, where labels come from folders; ``one_hot``: classes of
    the rows that labels came as; ``warnings``: sentences for the person who relies on the report.
    """

    x: NDArray[Any]
    y: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    size: int
    classes: Mapping[str, int] | None = None
    warnings: tuple[str, ...] = ()
    one_hot: int | None = None


def read_npz(
    path: Path, selection: Selection, bounds: Bounds, *, names: Sequence[str] = ()
) -> DataSet:
    """Samples [N, ...] (uint8 or float) and, if there are any, labels [N] of an npz file.

    Arrays ``x`` and ``y``, or under other usual names (``service.contract.array_names``);
    ``names``: of the classes, which labels may be as well.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename.removesuffix(".npy") for info in archive.infolist()}
            x_name, y_name = arrays_of(held)
            with archive.open(f"{x_name}.npy") as stream:
                x, indices, size = _samples(stream, selection, bounds)
            y, wide = None, None
            if y_name is not None:
                with archive.open(f"{y_name}.npy") as stream:
                    y, wide = _labels(stream, size, bounds, names)
                y = y[indices]
    except UnknownArrays as error:
        raise DataError("missing_array", str(error), hint=error.hint) from error
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError("invalid_dataset", f"the npz file cannot be read: {error}") from error
    return DataSet(x, y, indices, size, warnings=_unread(held, x_name, y_name), one_hot=wide)


def read_npy(
    path: Path,
    labels: Path | None,
    selection: Selection,
    bounds: Bounds,
    *,
    names: Sequence[str] = (),
) -> DataSet:
    """Samples [N, ...] of an npy file and, if there is one, the labels [N] of another; ``names``:
    of the classes, which labels may be as well."""
    try:
        with path.open("rb") as stream:
            x, indices, size = _samples(stream, selection, bounds)
        y, wide = None, None
        if labels is not None:
            with labels.open("rb") as stream:
                y, wide = _labels(stream, size, bounds, names)
            y = y[indices]
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError("invalid_dataset", f"the npy file cannot be read: {error}") from error
    return DataSet(x, y, indices, size, one_hot=wide)


def _samples(
    stream: IO[bytes], selection: Selection, bounds: Bounds
) -> tuple[NDArray[Any], NDArray[np.int64], int]:
    """The samples asked for, their positions, and how many there are."""
    header = _Header.read(stream, bounds)
    if not header.shape:
        raise DataError(
            "bad_shape",
            "the array of samples has no axis of samples",
            hint="one row for each sample: numpy.stack(samples), of a single one x[None]",
        )
    indices = choose(selection, header.shape[0])
    return header.rows(stream, int(indices.max()) + 1)[indices], indices, header.shape[0]


def _labels(
    stream: IO[bytes], size: int, bounds: Bounds, names: Sequence[str]
) -> tuple[NDArray[np.int64], int | None]:
    """All labels [size] of an array of class numbers, one-hot rows, or names of classes; the width
    of one-hot rows."""
    array = _Header.read(stream, bounds, kinds=_LABELS).rows(stream, None)
    return labels_of(numbered(array, names) if array.dtype.kind in "US" else array, size)


def numbered(labels: NDArray[Any], names: Sequence[str]) -> NDArray[np.int64]:
    """Labels that are names (arrays of text) as the places of ``names``. Raises DataError."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError("label_mismatch", f"labels of shape {labels.shape} are not one name each")
    array = np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels
    found, places = np.unique(array, return_inverse=True)
    said = [str(name) for name in found]
    if names and set(said) <= set(names):
        numbers = np.array([names.index(name) for name in said], np.int64)
        return numbers[places.reshape(array.shape)]
    if names:
        other = next(name for name in said if name not in names)
        message = f"the label {other[:40]!a} is none of the classes that the file names"
        message += did_you_mean(other[:40], names)
        hint = f"labels are the model's names of its classes, or their places: {_places(names)}"
    else:
        message = f"labels are text ({labels.dtype}), and the model does not name its classes"
        hint = (
            "number the classes in the order of the network's scores; "
            "y = numpy.unique(y, return_inverse=True)[1] takes the sorted names: " + _places(said)
        )
    raise DataError("unknown_label", message, hint=hint)


def _places(names: Sequence[str]) -> str:
    order = ", ".join(f"{place} is {name[:40]!a}" for place, name in enumerate(names[:_LISTED]))
    return order + (", ..." if len(names) > _LISTED else "")


def _unread(names: set[str], x: str, y: str | None) -> tuple[str, ...]:
    """A warning of other arrays: they may be labels under another name."""
    others = sorted(names - {x, y})
    if not others:
        return ()
    said = f"The npz also holds {', '.join(map(repr, others[:5]))}, which was not read"
    if y is None:
        wanted = " or ".join(map(repr, ARRAY_NAMES[x]))
        return (
            f"{said}: labels beside {x!r} are read from an array named {wanted} only, and there is "
            "none.",
        )
    return (said + ".",)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @classmethod
    def read(cls, stream: IO[bytes], bounds: Bounds, kinds: str = _SAMPLES) -> _Header:
        version = npy.read_magic(stream)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if reader is None:
            raise DataError("invalid_dataset", f"array format {version} is not supported")
        shape, fortran, dtype = reader(stream)
        header = cls(tuple(shape), fortran, dtype)
        if dtype.hasobject or dtype.kind not in kinds:
            raise DataError(
                "unsupported_dtype",
                f"arrays of type {dtype} are not read",
                hint=_KINDS[kinds],
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


def check_labels(data: DataSet, classes: int, *, of: str) -> None:
    """Raise DataError where a label is not a class of the network or architecture (``of``)."""
    if data.y is None:
        return
    wrong = (data.y < 0) | (data.y >= classes)
    if bool(wrong.any()):
        place = int(np.flatnonzero(wrong)[0])
        from_one = data.y.min() >= 1 and data.y.max() == classes
        raise DataError(
            "label_out_of_range",
            f"sample {int(data.indices[place])} has label {int(data.y[place])}; the {of} has "
            f"classes 0 to {classes - 1}",
            hint="the labels count from 1: y - 1, if that is all"
            if from_one
            else f"send a data set with the classes of the {of}, numbered from 0",
        )


def choose(selection: Selection, size: int) -> NDArray[np.int64]:
    """Positions [N] asked for, in the order asked for. Raises DataError."""
    if size == 0:
        raise DataError(
            "empty_dataset",
            "the data set holds no sample",
            hint="look at x.shape before it is saved: was everything filtered out?",
        )
    if isinstance(selection, list):
        indices = np.array(selection, dtype=np.int64)
        if indices.size == 0 or indices.min() < 0 or indices.max() >= size:
            raise DataError("index_out_of_range", f"indices must lie in [0, {size})")
        return indices
    return np.arange(size if selection == "all" else min(int(selection), size), dtype=np.int64)


def _of_rows(y: NDArray[Any]) -> NDArray[np.int64]:
    """The class numbers of one-hot rows: a 1 in each, and else zeros."""
    ones = y == 1
    if not bool(((ones.sum(1) == 1) & (ones | (y == 0)).all(1)).all()):
        raise DataError(
            "label_mismatch",
            f"labels of shape {y.shape} are not one-hot rows",
            hint="one class number, or one one-hot row, per sample",
        )
    return ones.argmax(1).astype(np.int64)


def labels_of(y: NDArray[Any], size: int) -> tuple[NDArray[np.int64], int | None]:
    """(labels int64 [N], classes of one-hot rows) from an array of class numbers (then None) or of
    such rows. Raises DataError."""
    wide = y.shape[1] if y.ndim == 2 and y.shape[1] > 1 and len(y) == size else None
    y = y if wide is None else _of_rows(y)
    y = y.reshape(-1) if y.ndim == 2 and 1 in y.shape else y
    if y.shape != (size,):
        raise DataError(
            "label_mismatch",
            f"{size} samples but labels of shape {y.shape}",
            hint="one class number, or one one-hot row, per sample",
        )
    if y.dtype.kind == "f" and not bool((np.isfinite(y) & (y == np.floor(y))).all()):
        raise DataError(
            "label_not_integral",
            "labels must be whole numbers: the numbers of classes",
            hint="a regression has no classes: state what its output must keep to as a property "
            "(field property)",
        )
    if bool((np.abs(y.astype(np.float64)) > 2**31).any()):
        raise DataError("label_out_of_range", "a label is beyond any number of classes")
    return y.astype(np.int64), wide
