"""Data sets: bombs, lying headers, pickles, links, pictures that unfold."""

from __future__ import annotations

import gzip
import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from tests.e2e.hostile.case import SPEC, Case, Part
from tests.service.uploads_by_hand import (
    idx_pair,
    images_zip,
    npy_claim,
    npz,
    npz_bomb,
    zip_with_link,
    zipped,
)

__all__ = ["samples"]

X = np.zeros((5, 6, 6, 1), np.uint8)
Y = np.arange(5) % 3


def samples() -> Iterator[Case]:
    """One case per file."""
    for name, codes, filename, data in [*_npz(), *_images()]:
        part = Part(b"dataset", data, filename.encode())
        yield Case(f"data {name}", codes, dataset=part, deep=name in _DEEP)
    corrupt = Part(b"dataset", _corrupt(), b"a.npz")
    whole = json.dumps({**SPEC, "samples": "all"}).encode()
    yield Case("data corrupt stream", {"invalid_dataset"}, dataset=corrupt, spec=whole)
    for name, codes, images, labels in _idx():
        yield Case(
            f"data idx {name}",
            codes,
            dataset=Part(b"dataset", images, b"a.gz"),
            labels=Part(b"dataset_labels", labels, b"b.gz"),
        )


_DEEP = {
    "npz with a false size",
    "pixel inf",
    "picture of 20000 x 20000",
    "pixel -1.0",
    "label 2^62",
    "picture of 2^31 x 2^31",
    "pictures that are scripts",
}
Row = tuple[str, set[str], str, bytes]


def _npz() -> Iterator[Row]:
    bomb, broken, wrong = {"decompression_bomb"}, {"invalid_npz"}, {"invalid_dataset"}
    yield "npz bomb", bomb, "a.npz", npz_bomb()
    claim = npy_claim("(1000000, 1000000)")
    yield "npz of 4 TB", wrong, "a.npz", zipped({"x.npy": claim})
    yield "npz in an npz", wrong, "a.npz", zipped({"a.npz": npz(x=X, y=Y)})
    yield "npz of a negative shape", wrong, "a.npz", zipped({"x.npy": npy_claim("(-1, 4)")})
    code = npy_claim("__import__('os').mkdir('certserve-was-here')")
    yield "npz with code for a shape", broken, "a.npz", zipped({"x.npy": code})
    deep = npy_claim("(" * 5000)
    yield "npz with a nested header", broken, "a.npz", zipped({"x.npy": deep})
    objects = npz(x=np.array([[print]], dtype=object))
    yield "npz of objects", {"pickle_refused"}, "a.npz", objects
    yield "npz upwards", broken, "a.npz", zipped({"x.npy": b"", "../y.npy": b""})
    yield "npz with x twice", broken, "a.npz", _twice()
    yield "npz cut off", broken, "a.npz", npz(x=X, y=Y)[:-10]
    yield "npz with a false size", {"shape_mismatch", *wrong}, "a.npz", _false_size()
    yield "empty", {"empty_file"}, "a.npz", b""
    yield "no known suffix", {"unsupported_format"}, "a.mat", npz(x=X, y=Y)
    yield "npz named npy", {"invalid_npz"}, "a.npy", npz(x=X, y=Y)
    for value in (np.nan, np.inf, -1.0):
        bad = X.astype(np.float32)
        bad[2, 1, 1] = value
        codes = {"sample_out_of_range"} if np.isfinite(value) else {"non_finite_samples"}
        yield f"pixel {value}", codes, "a.npz", npz(x=bad, y=Y)
    yield "label 2^62", {"label_out_of_range"}, "a.npz", npz(x=X, y=Y + 2**62)


def _twice() -> bytes:
    file = io.BytesIO(npz(x=X, y=Y))
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", b"other")
    return file.getvalue()


def _corrupt() -> bytes:
    """Deflated noise whose header is right and whose middle is not."""
    noise = np.random.default_rng(0).integers(0, 9, (3000, 6, 6, 1), np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, x=noise, y=np.zeros(3000, np.int64))
    data = bytearray(file.getvalue())
    data[300:1200] = b"\xff" * 900
    return bytes(data)


def _false_size() -> bytes:
    """The directory says 4 KB of zeros, the stream goes on for 16 MB."""
    claim = npy_claim("(1024, 4)", "|u1")
    data = zipped({"x.npy": claim + bytes(16_000_000)}, compression=zipfile.ZIP_DEFLATED)
    real, lie = (struct.pack("<I", len(claim) + count) for count in (16_000_000, 4096))
    return data.replace(real, lie)


def _images() -> Iterator[Row]:
    wrong = {"invalid_dataset"}
    yield (
        "zip of a hundred thousand bytes each",
        {"decompression_bomb"},
        "a.zip",
        zipped(
            {f"a/{n}.png": bytes(40_000_000) for n in range(2)}, compression=zipfile.ZIP_DEFLATED
        ),
    )
    yield (
        "zip of too many",
        {"decompression_bomb"},
        "a.zip",
        zipped({f"a/{n}.png": b"" for n in range(301)}),
    )
    yield "zip with a link", {"invalid_zip"}, "a.zip", zip_with_link()
    yield "zip upwards", {"invalid_zip"}, "a.zip", zipped({"a/../../1.png": b""})
    yield "zip to /etc", {"invalid_zip"}, "a.zip", zipped({"/etc/1.png": b""})
    yield "zip by backslashes", {"invalid_zip"}, "a.zip", zipped({"a\\..\\1.png": b""})
    split = {"train/a/1.png": b"", "test/a/1.png": b""}
    yield "zip of train and test", {"ambiguous_split"}, "a.zip", zipped(split)
    yield "zip of other images", {"unsupported_image"}, "a.zip", zipped({"a/1.tif": b""})
    yield (
        "zip of classes by case",
        {"ambiguous_classes"},
        "a.zip",
        zipped({"a/1.png": b"", "A/1.png": b""}),
    )
    yield "zip in a zip", {"empty_dataset"}, "a.zip", zipped({"a/b.zip": images_zip()})
    yield "zip that is none", {"invalid_zip"}, "a.zip", b"PK\x05\x06" + b"\xff" * 18
    yield "picture of 2^31 x 2^31", wrong, "a.zip", zipped({"a/1.png": _png(2**31 - 1, 2**31 - 1)})
    yield (
        "picture of 20000 x 20000",
        {"too_large", *wrong},
        "a.zip",
        zipped({"a/1.png": _png(20_000, 20_000)}),
    )
    text = zlib.compress(b"a" * 100_000_000)
    yield "picture with a text bomb", wrong, "a.zip", zipped({"a/1.png": _png(6, 6, text)})
    yield "pictures that are scripts", wrong, "a.zip", zipped({"a/1.png": b"%!PS-Adobe EPSF\n"})


def _png(width: int, height: int, text: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    words = chunk(b"zTXt", b"key\0\0" + text) if text else b""
    pixels = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + head + words + pixels + chunk(b"IEND", b"")


def _idx() -> Iterator[tuple[str, set[str], bytes, bytes]]:
    images, labels = idx_pair()
    broken = {"invalid_idx"}
    yield "text", broken, gzip.compress(b"text"), labels
    yield "no gzip", broken, b"text", labels
    yield "cut off", broken, images[:12], labels
    yield "swapped", broken, labels, images
    yield "counts differ", {"length_mismatch"}, idx_pair(images=4)[0], labels

    def claiming(*sizes: int, data: bytes = b"") -> bytes:
        head = b"\0\0\x08" + bytes([len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
        return gzip.compress(head + data, 1)

    most = 2**32 - 1
    bomb = {"decompression_bomb", "invalid_dataset"}
    yield "of 2^96 bytes", bomb, claiming(most, most, most), claiming(most)
    yield "bomb", bomb, claiming(900_000, 28, 28, data=bytes(300_000_000)), claiming(900_000)
    yield (
        "shorter than it says",
        {"invalid_dataset"},
        claiming(100, 6, 6, data=bytes(36)),
        claiming(100, data=bytes(100)),
    )
