"""Checkpoint files made by hand, good and changed member by member."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import torch


def saved(content: Any, *, legacy: bool = False) -> bytes:
    """What ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def state() -> dict[str, torch.Tensor]:
    """The weights of a dense layer, [4] to [3]."""
    return {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}


def rewritten(
    data: bytes,
    change: Callable[[str, bytes], tuple[str, bytes]] = lambda name, content: (name, content),
    *,
    compression: int = zipfile.ZIP_STORED,
    more: dict[str, bytes] | None = None,
) -> bytes:
    """The archive member by member, each changed, and ``more`` of them."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(result, "w", compression) as target,
    ):
        for member in source.infolist():
            target.writestr(*change(member.filename, source.read(member)))
        for name, content in (more or {}).items():
            target.writestr(name, content)
    return result.getvalue()
