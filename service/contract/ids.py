"""Names of things: time-sortable job ids and content digests, and what they must look like."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence

from service.contract.times import now

__all__ = [
    "digest_hex",
    "export_id",
    "is_job_id",
    "new_job_id",
    "pair_id",
    "place_of",
    "run_id",
]

#: Crockford's base 32: ascending in ASCII, so that ids sort by the time they were made.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_JOB_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
_RUN_ID = re.compile(rf"({_JOB_ID.pattern})\.(0|[1-9]\d?)", re.ASCII)
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


def new_job_id() -> str:
    """26 characters: 48 bits of milliseconds, then 80 random ones (a ULID)."""
    value = (int(now() * 1000) << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def is_job_id(text: str) -> bool:
    """Whether ``text`` could be a job id; only such texts become part of a path or a Redis key."""
    return _JOB_ID.fullmatch(text) is not None


def run_id(job_id: str, place: int) -> str:
    """The id of one training of a sweep: the job's, a dot and its place."""
    return f"{job_id}.{place}"


def place_of(text: str) -> tuple[str, int] | None:
    """Job id and place of a sweep's training, or None where ``text`` is no such id."""
    match = _RUN_ID.fullmatch(text)
    return None if match is None else (match.group(1), int(match.group(2)))


def digest_hex(text: str) -> str | None:
    """The 64 hex digits of ``sha256:...``, or None where ``text`` is no digest."""
    match = _DIGEST.fullmatch(text)
    return match.group(1) if match else None


def export_id(model: tuple[str, str], data: Sequence[tuple[str, str]]) -> str:
    """The id of an ONNX export of several files, each (name, digest): the model first, the others
    in the order of their names."""
    listed = [list(file) for file in (model, *sorted(data))]
    content = json.dumps(listed, ensure_ascii=False, separators=(",", ":")).encode()
    return "sha256:" + hashlib.sha256(content).hexdigest()


def pair_id(samples: str, labels: str) -> str:
    """The id of a data set of two files, of their digests."""
    return "sha256:" + hashlib.sha256(f"{samples}\n{labels}\n".encode()).hexdigest()
