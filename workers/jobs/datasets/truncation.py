"""JPEG and WEBP files whose compressed data end before their image does.

libjpeg and libwebp go on with zeros (grey, or colours that were never there) where a file was cut
and ended again, without a word to Pillow. A decoder that has all of its data never looks at what
follows them; so bytes put there must not change a pixel. A JPEG's scans and restart markers are
counted as well, because each begins anew.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Cut", "lengthened_jpeg", "lengthened_webp"]

#: What a decoder reads that needs more data than there are: neither zeros, nor a marker.
_MORE = bytes([0xB5, 0x6A, 0x2D, 0xD6, 0x93, 0x5B, 0xAC, 0x71]) * 8
_SOI, _EOI, _SOS, _DRI = 0xD8, 0xD9, 0xDA, 0xDD
_RESTARTS = range(0xD0, 0xD8)
#: Frames of Huffman-coded blocks; only the last of them is progressive.
_FRAMES, _PROGRESSIVE = (0xC0, 0xC1, 0xC2), 0xC2
#: Other frames: lossless, hierarchical, arithmetic.
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)


class Cut(ValueError):
    """What is lacking ("holds ...")."""


@dataclass
class _Frame:
    """Image of a JPEG: width, height; (h, v) sampling of each component; bits that lack of each
    coefficient of each component (None: all)."""

    progressive: bool
    width: int
    height: int
    sampling: dict[int, tuple[int, int]]
    lacking: dict[int, list[int | None]] = field(default_factory=dict)

    @classmethod
    def read(cls, kind: int, data: bytes) -> _Frame:
        height, width, count = struct.unpack_from(">HHB", data, 1)
        rows = [data[6 + 3 * i : 9 + 3 * i] for i in range(count)]
        sampling = {row[0]: (row[1] >> 4, row[1] & 15) for row in rows}
        lacking: dict[int, list[int | None]] = {component: [None] * 64 for component in sampling}
        return cls(kind == _PROGRESSIVE, width, height, sampling, lacking)

    def scanned(self, header: bytes) -> list[int]:
        """Note what a scan brings; its components."""
        count = header[0]
        components = [header[1 + 2 * i] for i in range(count)]
        first, last, bits = header[1 + 2 * count : 4 + 2 * count]
        if not self.progressive:
            first, last, bits = 0, 63, 0
        for component in components:
            for place in range(first, last + 1):
                self.lacking[component][place] = bits & 15
        return components

    def units(self, components: list[int]) -> int:
        """Number of coded units (MCUs) of a scan of these components."""
        across = max(h for h, _ in self.sampling.values())
        down = max(v for _, v in self.sampling.values())
        if len(components) > 1:
            return -(-self.width // (8 * across)) * -(-self.height // (8 * down))
        h, v = self.sampling[components[0]]
        columns, rows = -(-self.width * h // across), -(-self.height * v // down)
        return -(-columns // 8) * -(-rows // 8)


def lengthened_jpeg(raw: bytes) -> bytes:
    """The file with more bytes after each stretch of compressed data.

    Raises Cut where scans or restart markers lack; IndexError, KeyError, ValueError or struct.error
    for what is no JPEG.
    """
    parts: list[bytes] = []
    copied, interval = 0, 0
    frame: _Frame | None = None
    for kind, at, data in _segments(raw):
        if kind in _OTHER_FRAMES:
            raise Cut("is a JPEG of a kind that hardly any program writes (lossless or arithmetic)")
        if kind in _FRAMES:
            frame = _Frame.read(kind, data)
        elif kind == _DRI:
            (interval,) = struct.unpack(">H", data)
        elif kind == _SOS and frame is not None:
            components = frame.scanned(data)
            ends = [*_ends(raw, at + 4 + len(data))]
            expected = -(-frame.units(components) // interval) if interval else 1
            if len(ends) != expected:
                raise Cut("holds fewer pixels than it declares")
            for end in ends:
                parts += [raw[copied:end], _MORE]
                copied = end
    if frame is None or any(bits != 0 for row in frame.lacking.values() for bits in row):
        raise Cut("holds fewer pixels than it declares")
    return b"".join([*parts, raw[copied:]])


def _segments(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(marker, its place, what it holds) up to the end of the image, without compressed data."""
    at = 2
    while True:
        at = raw.index(b"\xff", at)
        kind = raw[at + 1]
        if kind == _EOI:
            return
        if kind in (0x00, 0x01, 0xFF, _SOI) or kind in _RESTARTS:
            at += 1 if kind == 0xFF else 2
            continue
        (size,) = struct.unpack_from(">H", raw, at + 2)
        yield kind, at, raw[at + 4 : at + 2 + size]
        at += 2 + size


def _ends(raw: bytes, at: int) -> Iterator[int]:
    """Where the stretches of a scan's data end: at each restart marker, and at another marker."""
    while True:
        at = raw.index(b"\xff", at)
        kind = raw[at + 1]
        if kind == 0x00:
            at += 2
        elif kind == 0xFF:
            at += 1
        else:
            yield at
            if kind not in _RESTARTS:
                return
            at += 2


def lengthened_webp(raw: bytes) -> bytes:
    """The file with more bytes at the end of its image's data. Raises struct.error, ValueError."""
    at = 12
    while True:
        kind, size = struct.unpack_from("<4sI", raw, at)
        if kind in (b"VP8 ", b"VP8L"):
            break
        at += 8 + size + size % 2
    data = raw[at + 8 : at + 8 + size] + _MORE
    padding = b"\0" * (len(data) % 2)
    (whole,) = struct.unpack_from("<I", raw, 4)
    rest = raw[at + 8 + size + size % 2 : 8 + whole]
    body = raw[8:at] + struct.pack("<4sI", kind, len(data)) + data + padding + rest
    return raw[:4] + struct.pack("<I", len(body)) + body
