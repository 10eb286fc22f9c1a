"""``--json``: every command that tells something tells it to programs too, alone on stdout."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.access.signing_key import SigningKeys
from service.cli.main import _parser, main
from service.reports.signing import sign

Output = pytest.CaptureFixture[str]

#: Processes that stay, and the demonstration for people.
WITHOUT = {"serve", "worker", "demo"}


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command without further ones below it, and its options."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield name, {text for action in parser._actions for text in action.option_strings}
    for action in below:
        for word, inner in action.choices.items():
            yield from commands(inner, f"{name} {word}".strip())


def test_every_command_that_answers_answers_programs_too() -> None:
    found = dict(commands(_parser()))
    assert len(found) >= 18
    assert {name for name, options in found.items() if "--json" not in options} == WITHOUT


def told(capsys: Output, *arguments: object) -> tuple[int, Any]:
    """Exit status and the JSON on stdout."""
    status = main([str(argument) for argument in arguments])
    return status, json.loads(capsys.readouterr().out)


def test_keys_are_made_listed_and_revoked(tmp_path: Path, capsys: Output) -> None:
    where = ("--json", "--data-dir", tmp_path)
    status, made = told(capsys, "keys", "create", "ann", "--admin", *where)
    assert status == 0
    assert made["key"].startswith(f"crt_{made['id']}_")
    assert (made["name"], made["admin"], made["revoked_at"]) == ("ann", True, None)
    _, (listed,) = told(capsys, "keys", "list", *where)
    assert listed == {name: value for name, value in made.items() if name != "key"}
    status, revoked = told(capsys, "keys", "revoke", made["id"], *where)
    assert status == 0
    assert revoked["revoked_at"] is not None
    assert revoked == {**listed, "revoked_at": revoked["revoked_at"]}
    assert main(["keys", "revoke", "nobody", "--json", "--data-dir", str(tmp_path)]) == 2
    assert not capsys.readouterr().out


def test_signing_keys_are_told_as_the_service_tells_them(tmp_path: Path, capsys: Output) -> None:
    where = ("--json", "--data-dir", tmp_path)
    _, first = told(capsys, "keys", "signing", *where)
    assert first == {"algorithm": "ed25519", "public_key": first["public_key"], "former": []}
    _, second = told(capsys, "keys", "signing", "--rotate", *where)
    assert second["former"] == [first["public_key"]]
    assert second["public_key"] != first["public_key"]


REPORT = {"schema": "certserve/report/1", "job_id": "j", "model": {"id": "sha256:aa"}}


def test_a_verdict_on_a_report_says_what_it_rests_on(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CERTSERVE_SIGNING_KEY_FILE", raising=False)
    keys, path = SigningKeys(tmp_path / "data" / "signing"), tmp_path / "report.json"
    signed = sign(REPORT, keys.private())
    path.write_text(json.dumps(signed))

    def judged(*options: object) -> tuple[int, Any]:
        return told(capsys, "verify-report", path, "--json", *options)

    ours = ("--data-dir", tmp_path / "data")
    valid = {
        "verdict": "valid", "signature": "a valid signature by a trusted key",
        "public_key": keys.public(), "faults": [], "rows": None, "error": None,
    }  # fmt: skip
    assert judged(*ours) == (0, valid)
    # The key may come from a secret instead of the data directory.
    monkeypatch.setenv("CERTSERVE_SIGNING_KEY_FILE", str(tmp_path / "data" / "signing" / "key.pem"))
    assert judged("--data-dir", tmp_path / "other") == (0, valid)
    monkeypatch.delenv("CERTSERVE_SIGNING_KEY_FILE")

    status, about = judged(*ours, "--model", path)
    assert (status, about["verdict"]) == (1, "not_valid")
    assert "another model" in about["faults"][0]
    status, unknown = judged("--data-dir", tmp_path / "other")
    assert (status, unknown["verdict"]) == (3, "unknown_key")
    assert unknown["public_key"] == keys.public()
    status, unchecked = judged(*ours, "--recheck", 1)
    assert (status, unchecked["verdict"]) == (2, "no_answer")
    assert "--model" in unchecked["error"]

    path.write_text(json.dumps({**signed, "job_id": "k"}))
    status, changed = judged(*ours)
    assert (status, changed["verdict"], changed["public_key"]) == (1, "not_valid", None)
    path.write_text("{")
    status, broken = judged(*ours)
    assert (status, broken["verdict"]) == (2, "no_answer")
    assert broken["error"].startswith("unreadable: ")
