"""Reading data sets of images: zips and trees of class folders. Everything is bounded.

Only the samples asked for are decoded; zip directory and image sizes are checked before anything
is inflated.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.jobs.data import (
    UNREADABLE,
    Bounds,
    DataError,
    DataSet,
    Selection,
    choose,
    read_exactly,
)

__all__ = ["read_class_folders", "read_image_folder", "read_images"]

#: Most pixels of one image.
MAX_PIXELS = 4096 * 4096
#: Image files that are read.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")


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
    except UNREADABLE as error:
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
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DataError("invalid_dataset", f"{name} is no readable image") from error
