"""Signed reports: Ed25519 over the RFC 8785 canonical JSON of a report without its signature."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "ALGORITHM",
    "Finding",
    "UnreadableReport",
    "parse_report",
    "public_text",
    "sign",
    "verify",
]

ALGORITHM = "ed25519"
#: Of what is signed: reports, and those of cascades of networks.
SCHEMAS = ("certserve/report/1", "certserve/cascade/1")


class UnreadableReport(ValueError):
    """A text that is no JSON report, or that two readers could read differently."""


class Finding(Enum):
    """What a signature is worth to somebody who trusts certain keys."""

    VALID = "a valid signature by a trusted key"
    UNKNOWN_KEY = "a valid signature by a key that is not trusted"
    INVALID = "the signature does not belong to this report"
    UNSIGNED = "there is no signature"


def public_text(key: Ed25519PublicKey) -> str:
    """The public key as reports name it: 64 hexadecimal digits."""
    return key.public_bytes_raw().hex()


def signed_bytes(report: Mapping[str, Any]) -> bytes:
    """What is signed. Raises UnreadableReport for numbers that JSON readers may read differently
    (integers beyond 2^53, NaN)."""
    try:
        return rfc8785.dumps({name: value for name, value in report.items() if name != "signature"})
    except rfc8785.CanonicalizationError as error:
        raise UnreadableReport(f"the report has no canonical form: {error}") from error


def sign(report: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The report with its ``signature``."""
    value = key.sign(signed_bytes(report)).hex()
    public = public_text(key.public_key())
    signature = {"algorithm": ALGORITHM, "public_key": public, "value": value}
    return {**report, "signature": signature}


def parse_report(data: bytes) -> dict[str, Any]:
    """A report as it was sent. Raises UnreadableReport: what names a member twice, or holds NaN or
    an infinity, does not mean the same to everybody."""
    try:
        report = json.loads(data, object_pairs_hook=_once_each, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UnreadableReport(f"this is no JSON report: {error}") from error
    if not isinstance(report, dict) or report.get("schema") not in SCHEMAS:
        raise UnreadableReport(f'this is no report: "schema" is not {" or ".join(SCHEMAS)}')
    return report


def verify(report: Mapping[str, Any], trusted: Collection[str]) -> Finding:
    """Whether one of the ``trusted`` public keys (hexadecimal) signed just this report.

    The key inside the report decides nothing: whoever changes a report can put another one there.
    """
    signature = report.get("signature")
    if signature is None:
        return Finding.UNSIGNED
    try:
        named = str(signature["public_key"]).lower()
        value = bytes.fromhex(signature["value"])
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(named))
        if signature["algorithm"] != ALGORITHM:
            return Finding.INVALID
        key.verify(value, signed_bytes(report))
    except (InvalidSignature, KeyError, TypeError, ValueError):
        return Finding.INVALID
    return Finding.VALID if named in {one.lower() for one in trusted} else Finding.UNKNOWN_KEY


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object names a member twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")
