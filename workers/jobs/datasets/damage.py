"""Image files that hold fewer pixels than they declare, or pixels without a meaning.

Pillow fills in what is missing (black, or the nearest value) without a word. Each such file is told
by name here; ``workers.jobs.datasets.decoding`` refuses it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from workers.jobs.datasets.truncation import Cut, lengthened_jpeg, lengthened_webp

__all__ = ["damage"]

_SIGNATURE = 8
#: Samples per pixel of a PNG, by colour type.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: (first column, first row, step of columns, step of rows) of the passes of an interlaced PNG.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_BLOCK = 1 << 16
#: The forms of PBM, PGM and PPM that spell numbers out.
_PLAIN = (b"P1", b"P2", b"P3")
_LENGTHENED = {"JPEG": lengthened_jpeg, "WEBP": lengthened_webp}


def damage(image: Image.Image, raw: bytes) -> str | None:
    """What is wrong with the pixels of a file ("holds ..."), None where each is there.

    image: opened from ``raw``, of a size that has been checked. Raises what
    ``workers.jobs.datasets.arrays.UNREADABLE`` lists.
    """
    if image.format == "PNG" and _png_is_short(raw):
        return "holds fewer pixels than it declares"
    if image.format == "PPM" and _beyond_maximum(image, raw):
        return "holds values beyond its own largest one"
    if image.format == "PPM" and raw[:2] in _PLAIN and not raw[-1:].isspace():
        return "ends with a number that may have been cut"
    if image.format in _LENGTHENED:
        return _is_cut(image, raw)
    if image.mode == "P":
        known = len(image.palette.palette) // len(image.palette.mode) if image.palette else 0
        if int(np.asarray(image).max()) >= known:
            return f"holds a colour beyond the {known} of its palette"
    return None


def _is_cut(image: Image.Image, raw: bytes) -> str | None:
    """Whether the decoder asks for more compressed data than a JPEG or WEBP holds."""
    assert image.format is not None
    try:
        longer = _LENGTHENED[image.format](raw)
        with Image.open(io.BytesIO(longer), formats=(image.format,)) as other:
            same = np.array_equal(np.asarray(image), np.asarray(other))
    except Cut as error:
        return str(error)
    return None if same else "holds fewer pixels than it declares"


def _png_is_short(raw: bytes) -> bool:
    """Whether the inflated pixel data of a PNG end too early (Pillow leaves the rest black)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", raw, 16)
    bits = depth * _SAMPLES[colour]
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    needed = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            needed += rows * (1 + -(-columns * bits // 8))
    inflater = zlib.decompressobj()
    for data in _pixel_data(raw):
        while data and not inflater.eof and needed > 0:
            needed -= len(inflater.decompress(data, _BLOCK))
            data = inflater.unconsumed_tail
    return needed > 0


def _pixel_data(raw: bytes) -> Iterator[bytes]:
    """What the IDAT chunks of a PNG hold."""
    at = _SIGNATURE
    while at + 8 <= len(raw):
        size, kind = struct.unpack_from(">I4s", raw, at)
        if kind == b"IDAT":
            yield raw[at + 8 : at + 8 + size]
        at += 12 + size


def _beyond_maximum(image: Image.Image, raw: bytes) -> bool:
    """Whether a binary PGM or PPM holds a value above its maximum (Pillow cuts it off)."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles or tiles[0][0] != "ppm" or not isinstance(tiles[0][3], tuple):
        return False
    _, _, start, (_, largest) = tiles[0]
    count = image.width * image.height * len(image.getbands())
    kind = np.dtype(np.uint8 if largest < 256 else ">u2")
    values = np.frombuffer(raw, kind, min(count, (len(raw) - start) // kind.itemsize), start)
    return bool((values > largest).any())
