"""Data set files as far as headers tell: npz, npy and idx pairs, zips of class folders."""

from __future__ import annotations

import gzip
import math
import struct
import threading
import zipfile
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy

from service.contract.array_names import UnknownArrays, arrays_of
from service.contract.class_folders import class_folders
from service.contract.schemas.problems import InvalidInput
from service.contract.settings import Settings
from service.uploads.archives import DAMAGED, zip_directory
from service.uploads.damage import EMPTY_FILE, other_file
from service.uploads.suffixes import format_of

__all__ = ["DATASET_SUFFIXES", "DatasetFacts", "DatasetFormat", "dataset_format", "inspect_dataset"]

DatasetFormat = Literal["npz", "npy", "images_zip", "idx"]

#: Format by suffix of the file's name.
DATASET_SUFFIXES: dict[str, DatasetFormat] = {
    ".npz": "npz",
    ".npy": "npy",
    ".zip": "images_zip",
    ".gz": "idx",
}

_X_TYPES = frozenset({"u1", "f2", "f4", "f8"})
#: Type and shape of an array.
_Header = tuple[np.dtype[Any], tuple[int, ...]]
#: What to do about samples and labels that are not as many.
_AS_MANY = "one label for each sample, in the same order: was one of them filtered, or split?"
#: What to do about labels that are no class numbers.
_CLASS_NUMBERS = (
    "whole numbers: y.astype(numpy.int64); a regression has no classes: state what its output must "
    "keep to as a property (field property)"
)
#: What to do about arrays of Python objects (pandas gives them), by what they hold.
_NO_OBJECTS = {
    "samples": "store numbers: x.astype(numpy.float32), of a table table.to_numpy(numpy.float32); "
    "rows of different lengths have to be made equally long first",
    "labels": "store numbers: y.astype(numpy.int64), or names of classes: y.astype(str)",
}
_ROWS = (
    "one row for each sample: numpy.stack(samples), of a single one x[None], of single numbers "
    "x[:, None]"
)
_EMPTY = "look at x.shape before it is saved: was everything filtered out, or another split meant?"
_DAMAGED: dict[DatasetFormat, str] = {
    "npz": DAMAGED,
    "images_zip": DAMAGED,
    "npy": "see whether `python -c 'import numpy; numpy.load(\"x.npy\")'` reads it on your "
    "machine, and send it again",
    "idx": "see whether `gzip -t FILE` reads it on your machine, and send it again",
}
_MAX_NPY_HEADER = 10_000
_CHUNK = 1024 * 1024
#: Large files are checked one at a time: the directory of a zip may take a hundred MB.
_LARGE = threading.Lock()
#: What NumPy, and Python's parser below it, raise on an invalid header.
_UNREADABLE_HEADER = (
    ArithmeticError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class DatasetFacts:
    """What the headers say; ``samples`` is None where only the worker can count."""

    format: DatasetFormat
    samples: int | None
    shape: list[int] | None
    labels: bool


def dataset_format(filename: str) -> DatasetFormat:
    """The format that the file's suffix names. Raises Unsupported."""
    return format_of(filename, DATASET_SUFFIXES, noun="data set", field="dataset")


def inspect_dataset(
    path: Path, filename: str, settings: Settings, *, labels: Path | None = None
) -> DatasetFacts:
    """Format, number of samples and shape. Raises InvalidInput where the bytes cannot be right.

    ``labels`` is the second file of an idx or npy pair.
    """
    kind = dataset_format(filename)
    if path.stat().st_size == 0 or (labels is not None and labels.stat().st_size == 0):
        raise InvalidInput(
            "the data set file is empty", code="empty_file", hint=EMPTY_FILE, field="dataset"
        )
    if labels is not None and kind not in ("idx", "npy"):
        raise InvalidInput(
            "dataset_labels belongs to a pair of idx (.gz) or .npy files only",
            field="dataset_labels",
        )
    alone = _LARGE if path.stat().st_size > _CHUNK else nullcontext()
    try:
        with alone:
            if kind == "npz":
                return _inspect_npz(path, settings)
            if kind == "npy":
                return _inspect_npy(path, labels, settings)
            if kind == "idx":
                return _inspect_idx(path, labels, settings)
            return _inspect_images(path, settings)
    except InvalidInput as problem:
        problem.field = problem.field or "dataset"
        if problem.code in ("invalid_npz", "invalid_zip", "invalid_idx"):
            problem.hint = other_file(path) or problem.hint or _DAMAGED[kind]
        raise


def _invalid(
    detail: str, *, code: str = "invalid_dataset", hint: str | None = None
) -> InvalidInput:
    return InvalidInput(detail, code=code, hint=hint)


def _check_count(samples: int, settings: Settings) -> None:
    if samples < 1:
        raise _invalid("the data set holds no sample", code="empty_dataset", hint=_EMPTY)
    if samples > settings.max_samples:
        raise _invalid(f"the data set holds {samples} samples, more than {settings.max_samples}")


def _inspect_npz(path: Path, settings: Settings) -> DatasetFacts:
    members = {m.filename: m for m in zip_directory(path, settings, code="invalid_npz")}
    try:
        x, y = arrays_of({name.removesuffix(".npy") for name in members if name.endswith(".npy")})
    except UnknownArrays as error:
        raise _invalid(str(error), hint=error.hint) from error
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open(members[f"{x}.npy"]) as file:
                header = _npy_header(file, members[f"{x}.npy"].file_size, x, "samples")
            if y is not None:
                with archive.open(members[f"{y}.npy"]) as file:
                    labels = _npy_header(file, members[f"{y}.npy"].file_size, y, "labels")
                _refuse_exchanged(header, labels, (x, y))
            shape = _check_samples(*header, x, settings)
            if y is not None:
                with archive.open(members[f"{y}.npy"]) as file:
                    _check_labels(file, members[f"{y}.npy"].file_size, y, shape[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise _invalid(f"the npz is damaged: {error}", code="invalid_npz", hint=DAMAGED) from error
    return DatasetFacts("npz", shape[0], list(shape[1:]), y is not None)


def _inspect_npy(path: Path, labels: Path | None, settings: Settings) -> DatasetFacts:
    """One array of samples, and one of labels in a file of its own, if there is one."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size > settings.max_inflated_bytes:
            raise _invalid("the array has too many bytes", code="decompression_bomb")
        header = _npy_header(file, size, "x", "samples")
    if labels is not None:
        with labels.open("rb") as file:
            _refuse_exchanged(
                header,
                _npy_header(file, labels.stat().st_size, "y", "labels"),
                ("dataset", "dataset_labels"),
            )
    shape = _check_samples(*header, "x", settings)
    if labels is not None:
        with labels.open("rb") as file:
            _check_labels(file, labels.stat().st_size, "y", shape[0])
    return DatasetFacts("npy", shape[0], list(shape[1:]), labels is not None)


def _refuse_exchanged(x: _Header, y: _Header, names: tuple[str, str]) -> None:
    """Raise InvalidInput where the first is labels, one number each, and the second samples."""
    if len(x[1]) == 1 < len(y[1]) and x[1] == y[1][:1] and math.prod(y[1][1:]) > 1:
        raise _invalid(
            f"{names[0]} has shape {x[1]} and {names[1]} {y[1]}: they look exchanged",
            hint=f"{names[0]} holds the samples, {names[1]} one class number for each",
        )


def _check_samples(
    dtype: np.dtype[Any], shape: tuple[int, ...], name: str, settings: Settings
) -> tuple[int, ...]:
    """The shape of an array of samples with this header."""
    if dtype.str[1:] not in _X_TYPES or dtype.names is not None:
        raise _invalid(
            f"{name} has type {dtype}; uint8 or float in [0,1] is needed",
            hint="bytes: x.astype(numpy.uint8); features: x.astype(numpy.float32); uint16: "
            "(x / 65535).astype(numpy.float32)",
        )
    if not 2 <= len(shape) <= 5 or 0 in shape[1:]:
        raise _invalid(f"{name} has shape {shape}; [N,D], NHWC or NCHW is needed", hint=_ROWS)
    _check_count(shape[0], settings)
    return shape


def _npy_header(
    file: IO[bytes], size: int, name: str, what: Literal["samples", "labels"]
) -> _Header:
    """Type and shape of an array; its bytes must be as many as it claims."""
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file, max_header_size=_MAX_NPY_HEADER)
    except _UNREADABLE_HEADER as error:
        raise _invalid(f"array {name} has no readable header", code="invalid_npz") from error
    if dtype.hasobject:
        raise _invalid(
            f"array {name} holds Python objects, which are pickles",
            code="pickle_refused",
            hint=_NO_OBJECTS[what],
        )
    if any(size < 0 for size in shape) or (math.prod(shape) * dtype.itemsize != size - file.tell()):
        raise _invalid(f"array {name} claims {shape} of {dtype}, which is not what the file holds")
    return dtype, tuple(int(size) for size in shape)


def _check_labels(file: IO[bytes], size: int, name: str, samples: int) -> None:
    """One class number per sample; or a name of its class or a one-hot row, which the worker
    checks."""
    dtype, shape = _npy_header(file, size, name, "labels")
    rows = len(shape) == 2 and shape[1] > 1
    if len(shape) not in (1, 2) or 0 in shape[1:]:
        raise _invalid(
            f"{name} has shape {shape}; one class number or one-hot row per sample is needed",
            hint=f"an array of {samples}: {_AS_MANY}",
        )
    if dtype.kind not in ("biuf" if rows else "biufUS") or dtype.names is not None:
        raise _invalid(
            f"{name} has type {dtype}; class numbers are needed",
            hint=_CLASS_NUMBERS,
        )
    if shape[0] != samples:
        raise _invalid(
            f"there are {samples} samples and {name} holds {shape[0]} labels",
            code="length_mismatch",
            hint=_AS_MANY,
        )
    if rows or dtype.kind in "bUS":
        return
    while chunk := file.read(_CHUNK - _CHUNK % dtype.itemsize):
        numbers = np.frombuffer(chunk, dtype=dtype)
        if dtype.kind == "f" and not bool(
            (np.isfinite(numbers) & (numbers == np.floor(numbers))).all()
        ):
            raise _invalid(
                f"{name} holds numbers that are not whole; class numbers are needed",
                hint=_CLASS_NUMBERS,
            )
        if numbers.min() < 0:
            raise _invalid(
                f"{name} holds a negative label",
                code="invalid_labels",
                hint="number the classes from 0, in the order of the network's outputs",
            )


def _inspect_idx(path: Path, labels: Path | None, settings: Settings) -> DatasetFacts:
    if labels is None:
        raise InvalidInput(
            "an idx data set is a pair: send the labels as dataset_labels",
            code="missing_field",
            field="dataset_labels",
        )
    samples, *shape = _idx_header(path, (3, 4), "dataset")
    (count,) = _idx_header(labels, (1,), "dataset_labels")
    if samples != count:
        raise _invalid(
            f"there are {samples} images and {count} labels", code="length_mismatch", hint=_AS_MANY
        )
    _check_count(samples, settings)
    if 0 in shape:
        raise _invalid(f"the images have shape {shape}")
    if samples * math.prod(shape) > settings.max_inflated_bytes:
        raise _invalid("the images inflate to too many bytes", code="decompression_bomb")
    return DatasetFacts("idx", samples, shape, True)


def _idx_header(path: Path, ranks: tuple[int, ...], field: str) -> list[int]:
    """Sizes of an idx array of bytes; only its first bytes are inflated."""
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
            rank = magic[3] if len(magic) == 4 and magic[:3] == b"\0\0\x08" else 0
            sizes = file.read(4 * rank)
            if rank not in ranks or len(sizes) != 4 * rank:
                raise InvalidInput(
                    f"{field} is not an idx file of bytes with {' or '.join(map(str, ranks))} axes",
                    code="invalid_idx",
                    field=field,
                    hint="are images (dataset) and labels (dataset_labels) exchanged?"
                    if rank in (1, 3, 4)
                    else None,
                )
            return list(struct.unpack(f">{rank}I", sizes))
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(
            f"{field} is not a gzip file: {error}", code="invalid_idx", field=field
        ) from error


def _inspect_images(path: Path, settings: Settings) -> DatasetFacts:
    found = class_folders(m.filename for m in zip_directory(path, settings, code="invalid_zip"))
    _check_count(len(found.images), settings)
    return DatasetFacts("images_zip", len(found.images), None, True)
