"""TinyImageNet in its public folder layout (tiny-imagenet-200).

``wnids.txt`` names the 200 classes; ``train/WNID/images/*.JPEG`` are the training images;
``val/images/*.JPEG`` with ``val/val_annotations.txt`` (file, wnid, box) are the labelled test
images. Folder ``test`` has no labels and is not read. Labels follow the sorted wnids.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workers.jobs.datasets.arrays import Bounds, DataError, DataSet, Selection
from workers.jobs.datasets.images import read_images

__all__ = ["read_tiny_imagenet"]

#: Longest text file of the layout that is read.
MAX_TEXT_BYTES = 16 * 2**20


def read_tiny_imagenet(folder: Path, split: str, selection: Selection, bounds: Bounds) -> DataSet:
    """x uint8 [N, 64, 64, 3] (grey images become colour) and y. Raises DataError."""
    classes = {wnid: place for place, wnid in enumerate(sorted(_lines(folder / "wnids.txt")))}
    if len(classes) < 2:
        raise DataError("invalid_dataset", "wnids.txt names fewer than two classes")
    files = _training(folder, classes) if split == "train" else _validation(folder, classes)
    if not files:
        raise DataError("missing_data", f"the {split} split holds no image")
    names = [name for name, _ in files]
    labels = np.array([label for _, label in files], dtype=np.int64)

    def read(name: str) -> bytes:
        bounds.check(name, (folder / name).stat().st_size)
        return (folder / name).read_bytes()

    return read_images(names, labels, read, selection, bounds, colour=True, classes=classes)


def _training(folder: Path, classes: dict[str, int]) -> list[tuple[str, int]]:
    """(path, label) of every image of a known class, in the order of classes and names."""
    files = []
    for wnid, label in classes.items():
        images = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        if not images:
            raise DataError("missing_data", f"class {wnid[:40]} has no training image")
        files += [(str(path.relative_to(folder)), label) for path in images]
    return files


def _validation(folder: Path, classes: dict[str, int]) -> list[tuple[str, int]]:
    """(path, label) in the order of the annotations."""
    files = []
    for line in _lines(folder / "val" / "val_annotations.txt"):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in classes or "/" in name or name.startswith("."):
            raise DataError(
                "invalid_dataset", f"val_annotations.txt: unreadable line {line[:80]!r}"
            )
        files.append((f"val/images/{name}", classes[wnid]))
    return files


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise DataError("too_large", f"{path.name} is too large")
        return [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("missing_data", f"{path.name} cannot be read") from error
