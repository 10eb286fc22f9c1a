"""Small PNG pictures by number in one file, written by workers, served by the API as they are.

    16 bytes  the mark
    8 bytes   count
    8 bytes each, count times      numbers, rising
    8 bytes each, count + 1 times  where each picture begins, and the last one ends
    the pictures

All numbers are little-endian and without sign. A picture has at most ``MOST_BYTES``, a file at
most ``MOST_FILE_BYTES`` of them: what does not fit is left out. Readers trust nothing of the file,
because it was written beside the parsing of an upload.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "COUNTEREXAMPLES",
    "MOST_BYTES",
    "MOST_FILE_BYTES",
    "THUMBNAILS",
    "is_picture",
    "pack_pictures",
    "read_picture",
]

#: Name of the file of the samples' pictures, in the folder that ``prepare`` leaves.
THUMBNAILS = "thumbnails.bin"
#: And of those of the counterexamples, in the job's folder: number 2 i is of sample i, 2 i + 1 its
#: difference to the sample.
COUNTEREXAMPLES = "counterexamples.bin"

MOST_BYTES = 16 * 1024
MOST_FILE_BYTES = 32 * 1024 * 1024

#: Least side of what is a picture at all.
_LEAST_SIDE = 4
_MARK = b"certserve-png-1\n"
_PNG = b"\x89PNG\r\n\x1a\n"
_WORD = struct.Struct("<Q")
_HEAD = len(_MARK) + _WORD.size


def is_picture(shape: Sequence[int]) -> bool:
    """Whether inputs of a sample's shape can be shown: [1 or 3, H, W] or [H, W, 1 or 3]."""
    return _channels_first(shape) or _channels_first((*shape[-1:], *shape[:-1]))


def _channels_first(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= _LEAST_SIDE


def pack_pictures(pictures: Iterable[tuple[int, bytes]]) -> bytes:
    """A file of the pictures (number, PNG): as many of them, in the order given, as fit."""
    kept: dict[int, bytes] = {}
    total = 0
    for number, png in pictures:
        if total + len(png) > MOST_FILE_BYTES:
            break
        if len(png) <= MOST_BYTES:
            kept[number] = png
            total += len(png)
    numbers = sorted(kept)
    places = [_HEAD + _WORD.size * (2 * len(numbers) + 1)]
    for number in numbers:
        places.append(places[-1] + len(kept[number]))
    words = (len(numbers), *numbers, *places)
    return b"".join([_MARK, *map(_WORD.pack, words), *(kept[number] for number in numbers)])


def read_picture(path: Path, number: int) -> bytes | None:
    """The picture of a number; None where there is none, or the file is not as it should be."""
    try:
        with path.open("rb") as file:
            return _find(file, number)
    except (FileNotFoundError, struct.error):
        return None


def _find(file: BinaryIO, number: int) -> bytes | None:
    if file.read(len(_MARK)) != _MARK:
        return None
    (count,) = _WORD.unpack(file.read(_WORD.size))
    if count > MOST_FILE_BYTES:
        return None
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if _word(file, middle) < number:
            low = middle + 1
        else:
            high = middle
    if low == count or _word(file, low) != number:
        return None
    begin, end = _word(file, count + low), _word(file, count + low + 1)
    if not 0 < end - begin <= MOST_BYTES:
        return None
    file.seek(begin)
    found = file.read(end - begin)
    return found if found.startswith(_PNG) and len(found) == end - begin else None


def _word(file: BinaryIO, place: int) -> int:
    file.seek(_HEAD + _WORD.size * place)
    return int(_WORD.unpack(file.read(_WORD.size))[0])
