"""The file: the layout of safetensors, read with bounds on everything.

Eight bytes (little endian) with the length of a JSON header, the header, then the numbers of all
tensors without gaps. No name in it is ever used as a path.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

#: Largest file, and largest header.
MAX_BYTES, MAX_HEADER = 2**26, 2**22
DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "U8": "|u1"}
Array = NDArray[np.float64]


class Unreadable(ValueError):
    """This is no certificate that this program can judge."""


class Rejected(ValueError):
    """Something that the certificate says does not hold."""


def need(condition: object, otherwise: str, error: type[ValueError] = Unreadable) -> None:
    """Raise the error unless the condition holds."""
    if not condition:
        raise error(otherwise)


def members(value: Any, *names: str) -> dict[str, Any]:
    """A JSON object with exactly these members, in this order. Raises Unreadable."""
    exact = isinstance(value, dict) and {*value} == {*names}
    need(exact, f"a part does not have exactly the members {', '.join(names)}")
    return {name: value[name] for name in names}


def whole(value: Any, most: int, least: int = 0) -> int:
    """A whole number between two others. Raises Unreadable."""
    need(type(value) is int and least <= value <= most, f"no whole number {least} to {most}")
    return int(value)


def digest_of(data: bytes | memoryview) -> str:
    """``sha256:...`` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its digest, over the canonical JSON (sorted keys, no spaces, ASCII) of all
    other members. Raises ValueError on NaN and infinities."""
    rest = {name: value for name, value in document.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**rest, "digest": digest_of(text.encode())}


def read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, NDArray[Any]], dict[str, str]]:
    """What is claimed, the tensors by name, and their digests. Raises Unreadable."""
    data = file.read(MAX_BYTES + 1)
    need(8 <= len(data) <= MAX_BYTES, f"the file has less than 8 bytes, or more than {MAX_BYTES}")
    length = int.from_bytes(data[:8], "little")
    need(length <= min(MAX_HEADER, len(data) - 8), "its header is not there, or too long")
    header, body = _json(data[8 : 8 + length]), memoryview(data)[8 + length :]
    metadata = header.pop("__metadata__", None)
    found = isinstance(metadata, dict) and [*metadata] == ["certificate"]
    need(found and isinstance(metadata["certificate"], str), "its header is no certificate's")
    tensors, digests, place = {}, {}, 0
    for start, stop, name in sorted((*_span(row), name) for name, row in header.items()):
        need(start == place and stop <= len(body), "a tensor does not follow the one before")
        numbers = np.frombuffer(body[start:stop], DTYPES[header[name]["dtype"]])
        need(numbers.dtype.kind != "f" or np.isfinite(numbers).all(), "a number is not finite")
        tensors[name] = numbers.reshape(header[name]["shape"])
        digests[name], place = digest_of(body[start:stop]), stop
    need(place == len(body), "there are bytes that belong to no tensor")
    return _json(metadata["certificate"].encode("utf-8", "replace")), tensors, digests


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"a part is no JSON: {str(error)[:200]}") from error
    need(isinstance(found, dict), "a part is no JSON object")
    return dict(found)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(dict(pairs)) == len(pairs), "a member stands there twice")
    return dict(pairs)


def _span(row: Any) -> tuple[int, int]:
    """Where a tensor's numbers lie; its type, shape and length have been checked."""
    dtype, shape, place = members(row, "dtype", "shape", "data_offsets").values()
    for sizes in (shape, place):
        need(isinstance(sizes, list) and len(sizes) <= 8, "a tensor has no shape, or no place")
        for size in sizes:
            whole(size, MAX_BYTES)
    need(dtype in [*DTYPES] and len(place) == 2, "a tensor has no known type, or no place")
    length = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    need(place[1] - place[0] == length, "a tensor's shape and length do not agree")
    return place[0], place[1]
