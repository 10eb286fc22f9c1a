"""Reading data sets: npz, idx, zips of class folders. Nothing is unpickled, everything is bounded.

Only the samples asked for are converted; what is declared (array headers, zip directory, image
sizes) is checked before anything is inflated.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "Bounds",
    "DataError",
    "DataSet",
    "Selection",
    "choose",
    "read_class_folders",
    "read_exactly",
    "read_idx",
    "read_image_folder",
    "read_images",
    "read_npz",
]

#: Most pixels of one image.
MAX_PIXELS = 4096 * 4096
#: Image files that are read.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")

#: What the readers of archives, arrays and pictures raise on bytes that are none.
_UNREADABLE = (
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
    """What a data set may take: bytes in memory once inflated, and samples."""

    max_bytes: int = 2 * 2**30
    max_samples: int = 1_000_000

    def check(self, what: str, size: int, samples: int = 0) -> None:
        """Raise DataError ``too_large`` beyond them."""
        if size > self.max_bytes or samples > self.max_samples:
            raise DataError("too_large", f"{what} is too large")


@dataclass(frozen=True)
class DataSet:
    """The samples asked for: x [N, ...] as stored, y int64 [N] or None, indices int64 [N], size."""

    x: NDArray[Any]
    y: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    size: int


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
    except _UNREADABLE as error:
        raise DataError("invalid_dataset", f"the npz file cannot be read: {error}") from error
    return DataSet(x, y, indices, header.shape[0])


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
            raise DataError("unsupported_dtype", f"arrays of type {dtype} are not read")
        if len(shape) > 5 or any(size < 0 for size in shape):
            raise DataError("bad_shape", f"an array of shape {shape} is no data set")
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
        try:
            with stream() as file:
                shape = (stop, *header(file)[1:])
                raw = read_exactly(file, int(np.prod(shape, dtype=object)))
                return np.frombuffer(raw, dtype=np.uint8).reshape(shape)
        except DataError:
            raise
        except _UNREADABLE as error:
            raise DataError("invalid_dataset", f"the idx file cannot be read: {error}") from error

    try:
        with stream() as file:
            shape = header(file)
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError("invalid_dataset", f"the idx file cannot be read: {error}") from error
    bounds.check(f"an idx file of shape {shape}", int(np.prod(shape, dtype=object)), shape[0])
    return shape[0], rows


def read_class_folders(path: Path, selection: Selection, bounds: Bounds) -> DataSet:
    """A zip of ``CLASS/IMAGE`` files in the order of their names; x uint8 [N, H, W(, 3)].

    Labels: the number that a folder is named by if all are numbers, else its place among the sorted
    names. All images must have one size; they are grey if the first one is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {i.filename: i.file_size for i in archive.infolist() if not i.is_dir()}

            def read(name: str) -> bytes:
                bounds.check(name, sizes[name])
                with archive.open(name) as stream:
                    return bytes(read_exactly(stream, sizes[name]))

            return _read_images(list(sizes), read, selection, bounds)
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError("invalid_dataset", f"the zip file cannot be read: {error}") from error


def read_image_folder(folder: Path, selection: Selection, bounds: Bounds) -> DataSet:
    """The same layout as a tree on disk."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return _read_images(names, lambda name: (folder / name).read_bytes(), selection, bounds)


def _read_images(
    names: list[str], read: Callable[[str], bytes], selection: Selection, bounds: Bounds
) -> DataSet:
    names = sorted(name for name in names if _is_class_image(PurePosixPath(name)))
    if not names:
        raise DataError(
            "empty_dataset",
            "there is no image in a class folder",
            hint="one folder per class, images in it: cat/1.png, dog/1.png",
        )
    labels = _folder_labels([PurePosixPath(name).parent.name for name in names])
    return read_images(names, labels, read, selection, bounds)


def read_images(
    names: list[str],
    labels: NDArray[np.int64],
    read: Callable[[str], bytes],
    selection: Selection,
    bounds: Bounds,
    *,
    mode: str = "",
) -> DataSet:
    """Image files of one size, x uint8 [N, H, W(, 3)]; ``mode`` L or RGB, empty: the first one's.

    Raises DataError (too_large, image_sizes_differ, invalid_dataset).
    """
    bounds.check("the data set", 0, len(names))
    indices = choose(selection, len(names))
    images: list[NDArray[np.uint8]] = []
    for index in indices:
        image, mode = _decode(names[index], read(names[index]), mode)
        if images and image.shape != images[0].shape:
            raise DataError(
                "image_sizes_differ",
                f"{names[index]} is {list(image.shape)}, others are {list(images[0].shape)}",
                hint="resize the images to the network's input first",
            )
        images.append(image)
        bounds.check("the data set", len(images) * image.nbytes)
    return DataSet(np.stack(images), labels[indices], indices, len(names))


def _is_class_image(name: PurePosixPath) -> bool:
    hidden = name.name.startswith(".") or "__MACOSX" in name.parts
    return not hidden and name.suffix.lower() in IMAGE_SUFFIXES and bool(name.parent.name)


def _folder_labels(names: list[str]) -> NDArray[np.int64]:
    classes = sorted(set(names))
    if all(name.isdecimal() and len(name) < 7 for name in classes):
        return np.array([int(name) for name in names], dtype=np.int64)
    place = {name: position for position, name in enumerate(classes)}
    return np.array([place[name] for name in names], dtype=np.int64)


def _decode(name: str, raw: bytes, mode: str) -> tuple[NDArray[np.uint8], str]:
    """The pixels of one image file, in ``mode`` (grey or colour; empty: its own)."""
    try:
        with Image.open(io.BytesIO(raw), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError("too_large", f"{name} has {image.width} x {image.height} pixels")
            mode = mode or ("L" if image.mode in ("1", "L") else "RGB")
            return np.asarray(image.convert(mode), dtype=np.uint8), mode
    except DataError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise DataError("invalid_dataset", f"{name} is no readable image") from error


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
        raise DataError("label_mismatch", f"{size} samples but labels of shape {y.shape}")
    if y.dtype.kind == "f" and not bool((np.isfinite(y) & (y == np.floor(y))).all()):
        raise DataError("label_not_integral", "labels must be whole numbers")
    if bool((np.abs(y.astype(np.float64)) > 2**31).any()):
        raise DataError("label_out_of_range", "a label is beyond any number of classes")
    return y.astype(np.int64)
