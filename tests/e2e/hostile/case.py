"""One hostile submission, and the codes it may be answered with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

__all__ = ["SPEC", "Case", "Part", "encoded"]

SPEC = {"norm": "linf", "epsilons": [0.01], "samples": 4, "radius": False, "attack": None}
_BOUNDARY = b"hostile-boundary"


@dataclass(frozen=True)
class Part:
    """A field of a form: with a file name, if it is one, in raw bytes."""

    name: bytes
    data: bytes
    filename: bytes | None = None


@dataclass(frozen=True)
class Case:
    """What is sent to ``path``; a part left out is the good model, data or spec.

    ``codes`` are what a problem or the failed job's error may say. ``body`` and ``content_type``
    stand for the whole request where the form itself is hostile.
    """

    name: str
    codes: set[str]
    model: Part | None = None
    dataset: Part | None = None
    labels: Part | None = None
    spec: bytes = json.dumps(SPEC).encode()
    body: bytes | None = None
    content_type: str = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
    more: tuple[Part, ...] = field(default=())
    #: Takes a worker seconds, and unit tests refuse it too: sent only when all are asked for.
    deep: bool = False

    def request(self, model: bytes, dataset: bytes) -> bytes:
        """The body, with the good ``model`` and ``dataset`` where the case brings none."""
        if self.body is not None:
            return self.body
        parts = [
            Part(b"spec", self.spec),
            self.model or Part(b"model", model, b"good.onnx"),
            self.dataset or Part(b"dataset", dataset, b"good.npz"),
            *([self.labels] if self.labels else []),
            *self.more,
        ]
        return encoded(parts)


def encoded(parts: list[Part]) -> bytes:
    """A multipart body, whose names may hold what no honest client would send."""
    lines: list[bytes] = []
    for part in parts:
        place = b'form-data; name="' + part.name + b'"'
        if part.filename is not None:
            place += b'; filename="' + part.filename + b'"'
        lines += [b"--" + _BOUNDARY, b"Content-Disposition: " + place, b"", part.data]
    return b"\r\n".join([*lines, b"--" + _BOUNDARY + b"--", b""])
