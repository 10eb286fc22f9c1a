"""Which class an image of an archive or a folder tree belongs to, by its path alone.

Both the API (names in a zip's directory) and the workers (zips and trees on disk) use this module,
so that an upload with an ambiguous layout is refused at once. The rule is the public one
(torchvision's ``ImageFolder``): the first level below the common root is the class. Classes are
numbered by their place among the sorted names; where all names are numbers, by the number.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn

from service.contract.schemas.problems import InvalidInput

__all__ = ["IMAGE_SUFFIXES", "ClassFolders", "class_folders"]

#: Image files that are read.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm", ".pbm"})
#: Image files that cannot be read. They are refused: skipping them would shrink their classes.
_UNREAD_IMAGES = frozenset(
    {".avif", ".exr", ".gif", ".hdr", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".pfm", ".pnm"}
    | {".svg", ".tga", ".tif", ".tiff", ".apng", ".jfif", ".dng", ".ico"}
)
#: Files that file managers leave behind.
_LITTER = frozenset({"thumbs.db", "desktop.ini"})
#: Folders that hold a part of a data set, not a class, where nothing else lies beside them.
_SPLITS = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
)
_LAYOUT = "one folder per class, images in it: cat/1.png, dog/1.png"


@dataclass(frozen=True)
class ClassFolders:
    """Paths of the images, sorted; label of each; folder -> label; what a reader should know."""

    images: list[str]
    labels: list[int]
    classes: dict[str, int]
    warnings: list[str]


def class_folders(files: Iterable[str], folders: Iterable[str] = ()) -> ClassFolders:
    """Images and classes of the given paths ("/" between folders); ``folders``: stated ones.

    Raises InvalidInput: empty_dataset, unsupported_image, duplicate_name, invalid_dataset (an image
    in no class folder), ambiguous_split, ambiguous_classes, empty_class.
    """
    known = [(name, PurePosixPath(name)) for name in sorted(files)]
    seen = [(name, path) for name, path in known if not _hidden(path)]
    _refuse_doubles([path for _, path in seen])
    for name, path in seen:
        if path.suffix.lower() in _UNREAD_IMAGES:
            _refuse(
                f"{name!r}: images of this format are not read",
                "unsupported_image",
                f"save it as PNG; the readable formats are {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
    images = [(name, path) for name, path in seen if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        _refuse("there is no image in a class folder", "empty_dataset", _LAYOUT)
    root = _root([path for _, path in images])
    below = [path.parts[len(root) :] for _, path in images]
    for (name, _), parts in zip(images, below, strict=True):
        if len(parts) < 2:
            _refuse(f"image {name!r} lies in no class folder", "invalid_dataset", _LAYOUT)
    _refuse_splits({parts[0] for parts in below}, flat=all(len(p) == 2 for p in below))
    _refuse_depths(images, below)
    names = sorted({parts[0] for parts in below})
    all_paths = [path for _, path in seen]
    all_paths += [path / "-" for path in map(PurePosixPath, folders) if not _hidden(path / "x")]
    _refuse_empty(all_paths, root, set(names))
    labels, warnings = _numbered(names)
    others = [name for name, path in seen if path.suffix.lower() not in IMAGE_SUFFIXES]
    if others:
        warnings.append(
            f"{len(others)} files of the data set are not images and were left out: "
            f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}."
        )
    return ClassFolders(
        [name for name, _ in images], [labels[parts[0]] for parts in below], labels, warnings
    )


def _hidden(path: PurePosixPath) -> bool:
    litter = path.name.lower() in _LITTER
    return litter or any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _root(paths: list[PurePosixPath]) -> tuple[str, ...]:
    """The folders that all images share, but for the class's own where there is one class alone."""
    shared = paths[0].parts[:-1]
    for path in paths:
        same = [a == b for a, b in zip(shared, path.parts[:-1], strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    if shared and all(path.parts[:-1] == shared for path in paths):
        if len(shared) > 1:
            _refuse(
                f"all images lie in {'/'.join(shared)!r}: which of these folders is the class?",
                "ambiguous_classes",
                "put the class folders at the top of the archive, or all classes into it",
            )
        return ()
    return shared


def _refuse_doubles(paths: list[PurePosixPath]) -> None:
    seen: set[PurePosixPath] = set()
    for path in paths:
        if path in seen:
            _refuse(f"the data set holds {str(path)!r} twice", "duplicate_name", "keep one of them")
        seen.add(path)


def _refuse_splits(tops: set[str], *, flat: bool) -> None:
    """``train`` may be a class beside others (CIFAR-100 has it), not beside nested folders."""
    splits = sorted(name for name in tops if name.lower() in _SPLITS)
    alone = len(splits) == len(tops)
    if (alone and len(splits) > 1) or (splits and not flat and not alone):
        _refuse(
            f"the folders {', '.join(splits)} look like parts of a data set, not like classes",
            "ambiguous_split",
            f"send one part: the class folders that lie in {splits[0]}, for example",
        )


def _refuse_depths(images: list[tuple[str, PurePosixPath]], below: list[tuple[str, ...]]) -> None:
    """Images of all classes lie in the class's folder, or in a subfolder of one name in each."""
    first = below[0][1:-1]
    for (name, _), parts in zip(images, below, strict=True):
        if parts[1:-1] != first:
            _refuse(
                f"{images[0][0]!r} and {name!r}: it is unclear which level of folders is the class",
                "ambiguous_classes",
                "images directly in the class folders (cat/1.png), or in a subfolder of the same "
                "name in each (cat/images/1.png)",
            )


def _refuse_empty(paths: list[PurePosixPath], root: tuple[str, ...], names: set[str]) -> None:
    at = len(root)
    beside = {p.parts[at] for p in paths if p.parts[:at] == root and len(p.parts) > at + 1}
    empty = sorted(beside - names)
    if empty:
        _refuse(
            f"the folder {empty[0]!r} holds no image: with it and without it, the classes would "
            "be numbered differently",
            "empty_class",
            "remove the folder, or put the class's images into it",
        )


def _numbered(names: list[str]) -> tuple[dict[str, int], list[str]]:
    """Label of each class, by number or by position, and a warning where loaders differ."""
    alike: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold().strip()
        if key in alike:
            _refuse(
                f"the folders {alike[key]!r} and {name!r} differ by no more than case or accents: "
                "are they one class?",
                "ambiguous_classes",
                "one folder per class",
            )
        alike[key] = name
    places = {name: place for place, name in enumerate(names)}
    if not all(name.isascii() and name.isdecimal() and len(name) < 7 for name in names):
        return places, []
    numbers = {name: int(name) for name in names}
    if len(set(numbers.values())) < len(numbers):
        _refuse(
            f"two of the folders {names[:6]} are the same number",
            "ambiguous_classes",
            "one folder per class",
        )
    if numbers == places:
        return numbers, []
    name = next(name for name in names if numbers[name] != places[name])
    return numbers, [
        f"Class folders are numbers and were taken as the labels: folder {name} is class "
        f"{numbers[name]}. Loaders that sort the names as text (torchvision's ImageFolder) would "
        f"call it class {places[name]}: check dataset.classes if the network was trained with one."
    ]


def _refuse(detail: str, code: str, hint: str) -> NoReturn:
    raise InvalidInput(detail, code=code, hint=hint, field="dataset")
