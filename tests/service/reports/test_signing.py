"""A report that was signed and then changed anywhere is not valid."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from service.reports.signing import Finding, UnreadableReport, parse_report, sign, verify

KEY = Ed25519PrivateKey.generate()
TRUSTED = KEY.public_key().public_bytes_raw().hex()
REPORT: dict[str, Any] = {
    "schema": "certserve/report/1",
    "job_id": "j",
    "results": [{"epsilon": 36 / 255, "certified": 3}, {"epsilon": 1e-7, "certified": 2}],
    "model": {"id": "sha256:aa", "name": "ü\u2028 \"'"},
    "clean_accuracy": 1.0,
    "signature": None,
}


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all leaves."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        place
        for name, part in inner
        for place in (paths(part, (*at, name)) if isinstance(part, dict | list) else [(*at, name)])
    ]


def test_a_signed_report_is_valid_however_it_is_laid_out() -> None:
    signed = sign(REPORT, KEY)
    for text in (
        json.dumps(signed),
        json.dumps(signed, indent=2, sort_keys=True),
        json.dumps(dict(reversed(signed.items())), ensure_ascii=False),
        json.dumps(signed).replace("1.0,", "1,"),
    ):
        assert verify(parse_report(text.encode()), {TRUSTED}) is Finding.VALID
    assert verify(signed, {TRUSTED.upper()}) is Finding.VALID


@pytest.mark.parametrize("place", paths(sign(REPORT, KEY)), ids=str)
def test_a_change_anywhere_is_found(place: tuple[Any, ...]) -> None:
    changed = copy.deepcopy(sign(REPORT, KEY))
    inner: Any = changed
    for name in place[:-1]:
        inner = inner[name]
    old = inner[place[-1]]
    inner[place[-1]] = old + 1e-9 if isinstance(old, float) else f"{old}0"
    assert verify(changed, {TRUSTED}) is Finding.INVALID
    del inner[place[-1]]
    assert verify(changed, {TRUSTED}) is not Finding.VALID


def test_the_key_inside_decides_nothing() -> None:
    """Somebody changes a report and signs it anew, with a key of their own or under ours."""
    theirs = Ed25519PrivateKey.generate()
    forged = sign({**REPORT, "clean_accuracy": 0.5}, theirs)
    assert verify(forged, {TRUSTED}) is Finding.UNKNOWN_KEY
    forged["signature"]["public_key"] = TRUSTED
    assert verify(forged, {TRUSTED}) is Finding.INVALID
    assert verify(REPORT, {TRUSTED}) is Finding.UNSIGNED
    assert verify(sign(REPORT, KEY), set()) is Finding.UNKNOWN_KEY


@pytest.mark.parametrize(
    "signature",
    [{}, [], "x", 1, {"algorithm": "none", "public_key": TRUSTED, "value": ""},
     {"algorithm": "ed25519", "public_key": TRUSTED[:-2], "value": "00" * 64},
     {"algorithm": "ed25519", "public_key": TRUSTED, "value": "zz"},
     {**sign(REPORT, KEY)["signature"], "algorithm": "ed448"}],
)  # fmt: skip
def test_broken_signatures_are_invalid(signature: Any) -> None:
    assert verify({**REPORT, "signature": signature}, {TRUSTED}) is Finding.INVALID


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"schema": "certserve/report/1", "schema": "certserve/report/1"}',
     '{"schema": "certserve/report/1", "a": {"b": 1, "b": 2}}',
     '{"schema": "certserve/report/1", "a": NaN}', "[" * 100_000, b"\xff\xfe".decode("latin-1")],
)  # fmt: skip
def test_what_readers_may_read_differently_is_unreadable(text: str) -> None:
    with pytest.raises(UnreadableReport):
        parse_report(text.encode())


def test_numbers_that_readers_round_have_no_canonical_form() -> None:
    with pytest.raises(UnreadableReport, match="canonical"):
        sign({**REPORT, "seed": 2**60}, KEY)
    assert verify({**sign(REPORT, KEY), "seed": 2**60}, {TRUSTED}) is Finding.INVALID


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)  # fmt: skip
def test_every_json_value_survives_the_way_through_a_file(value: Any) -> None:
    signed = sign({**REPORT, "notes": value}, KEY)
    sent = json.dumps(signed).encode("utf-8", "surrogatepass")
    assert verify(parse_report(sent), {TRUSTED}) is Finding.VALID
