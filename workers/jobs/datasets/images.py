"""Reading data sets of images: zips and trees of class folders. Everything is bounded.

Only the samples asked for are decoded; zip directory and image sizes are checked before anything
is inflated. ``service.contract.class_folders`` says which class an image has, and
``workers.jobs.datasets.decoding`` what its pixels are.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.class_folders import class_folders
from service.contract.schemas.problems import InvalidInput
from workers.jobs.datasets.arrays import (
    UNREADABLE,
    Bounds,
    DataError,
    DataSet,
    Selection,
    choose,
    read_exactly,
)
from workers.jobs.datasets.decoding import LOSSY, decode_image, decoder
from workers.jobs.datasets.layout import to_pixels

__all__ = ["read_class_folders", "read_image_folder", "read_images"]


def read_class_folders(path: Path, selection: Selection, bounds: Bounds) -> DataSet:
    """A zip of ``CLASS/IMAGE`` files in the order of their names; x [N, H, W(, 3)].

    uint8, or float32 in [0, 1] where an image has 16 bits; colour if one of them has colour.
    All images must have one size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [i for i in archive.infolist() if not i.is_dir()]
            sizes = {i.filename: i.file_size for i in members}

            def read(name: str) -> bytes:
                bounds.check(name, sizes[name])
                with archive.open(name) as stream:
                    return bytes(read_exactly(stream, sizes[name]))

            folders = [i.filename for i in archive.infolist() if i.is_dir()]
            return _read([i.filename for i in members], folders, read, selection, bounds)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError("invalid_dataset", f"the zip file cannot be read: {error}") from error


def read_image_folder(folder: Path, selection: Selection, bounds: Bounds) -> DataSet:
    """The same layout as a tree on disk."""
    found = sorted(folder.rglob("*"))
    names = [path.relative_to(folder).as_posix() for path in found if path.is_file()]
    folders = [path.relative_to(folder).as_posix() for path in found if path.is_dir()]
    return _read(names, folders, lambda name: (folder / name).read_bytes(), selection, bounds)


def _read(
    names: list[str],
    folders: list[str],
    read: Callable[[str], bytes],
    selection: Selection,
    bounds: Bounds,
) -> DataSet:
    try:
        found = class_folders(names, folders)
    except InvalidInput as error:
        raise DataError(error.code, error.detail, hint=error.hint) from error
    labels = np.array(found.labels, dtype=np.int64)
    return read_images(
        found.images,
        labels,
        read,
        selection,
        bounds,
        classes=found.classes,
        warnings=tuple(found.warnings),
    )


def read_images(
    names: list[str],
    labels: NDArray[np.int64],
    read: Callable[[str], bytes],
    selection: Selection,
    bounds: Bounds,
    *,
    colour: bool = False,
    classes: Mapping[str, int] | None = None,
    warnings: tuple[str, ...] = (),
) -> DataSet:
    """Image files of one size, x [N, H, W], or [N, H, W, 3] if one has colour or ``colour``.

    Raises DataError (too_large, image_sizes_differ, unsupported_image, invalid_dataset).
    """
    bounds.check("the data set", 0, len(names))
    indices = choose(selection, len(names))
    images: list[NDArray[Any]] = []
    formats: Counter[str] = Counter()
    size = 0
    for index in indices:
        image, kind = decode_image(names[index], read(names[index]))
        if images and image.shape[:2] != images[0].shape[:2]:
            raise DataError(
                "image_sizes_differ",
                f"{names[index]} is {list(image.shape[:2])}, others are "
                f"{list(images[0].shape[:2])}",
                hint="resize the images to the network's input first",
            )
        images.append(image)
        formats[kind] += 1
        size += image.nbytes
        bounds.check("the data set", size)
    lossy = sorted(LOSSY & formats.keys())
    if lossy:
        warnings += (
            f"{sum(formats[kind] for kind in lossy)} images are {' or '.join(lossy)}: their pixels "
            f"depend on the decoder, here {decoder()}; another one may differ by a few of 255.",
        )
    x = _one_array(images, colour=colour, bounds=bounds)
    return DataSet(x, labels[indices], indices, len(names), classes, warnings)


def _one_array(images: list[NDArray[Any]], *, colour: bool, bounds: Bounds) -> NDArray[Any]:
    """All in the same form: grey becomes three equal channels, bytes become k / 255, exactly."""
    colour = colour or any(image.ndim == 3 for image in images)
    deep = any(image.dtype != np.uint8 for image in images)
    pixels = len(images) * images[0].shape[0] * images[0].shape[1]
    bounds.check("the data set", pixels * (3 if colour else 1) * (4 if deep else 1))
    if deep:
        images = [to_pixels(image, clip=True) for image in images]
    if colour:
        images = [i if i.ndim == 3 else np.repeat(i[:, :, None], 3, axis=2) for i in images]
    return np.stack(images)
