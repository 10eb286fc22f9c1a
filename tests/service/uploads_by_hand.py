"""Small uploads in every format, made without torch or onnx, and ways to spoil them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from typing import Any

import numpy as np

__all__ = [
    "checkpoint",
    "idx_pair",
    "images_zip",
    "npz",
    "onnx_model",
    "safetensors",
    "zipped",
]


def onnx_model() -> bytes:
    """A ModelProto as far as its outermost fields go: ir_version, opset_import, an empty graph."""
    return bytes([0x08, 8]) + bytes([0x42, 2, 0x10, 17]) + bytes([0x3A, 3, 0x12, 1, 0x67])


def npz(**arrays: Any) -> bytes:
    """An npz of ``arrays``; by default five grey 4x4 images with labels."""
    if not arrays:
        arrays = {"x": np.zeros((5, 1, 4, 4), np.uint8), "y": np.arange(5)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def safetensors(header: Any = None, data: bytes = b"\0" * 8) -> bytes:
    """One tensor of two float32, or a header of one's own."""
    if header is None:
        header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def zipped(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of ``members``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def checkpoint(pickled: bytes | None = None, **members: bytes) -> bytes:
    """A PyTorch zip with an empty ordered dictionary, or a pickle of one's own."""
    pickled = pickled or b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01."
    found = {"a/data.pkl": pickled, "a/version": b"3\n", "a/data/0": b"\0" * 8, **members}
    return zipped(found)


def images_zip() -> bytes:
    """Two classes; the images are only looked at by a worker."""
    return zipped({"cat/1.png": b"x", "dog/1.png": b"y", "dog/2.PNG": b"z", "readme.txt": b""})


def idx_pair(images: int = 3, labels: int = 3) -> tuple[bytes, bytes]:
    """MNIST's format, 2x2 pixels."""
    pixels = b"\0\0\x08\x03" + struct.pack(">III", images, 2, 2) + b"\0" * (4 * images)
    classes = b"\0\0\x08\x01" + struct.pack(">I", labels) + b"\0" * labels
    return gzip.compress(pixels), gzip.compress(classes)


def npy_claim(shape: str, kind: str = "<f4") -> bytes:
    """The header of an array file that claims this shape and type."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def labels_npy(count: int = 5, kind: Any = np.int64) -> bytes:
    """An array file of zeros."""
    file = io.BytesIO()
    np.save(file, np.zeros(count, kind))
    return file.getvalue()


def npz_bomb(size: int = 200_000_000) -> bytes:
    """A small npz of so many zero bytes."""
    members = {"x.npy": npy_claim(f"({size // 4}, 1)") + bytes(size), "y.npy": labels_npy(1)}
    return zipped(members, compression=zipfile.ZIP_DEFLATED)


def zip_with_link() -> bytes:
    """A zip whose image is a link out of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        member = zipfile.ZipInfo("cat/1.png")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    return file.getvalue()
