"""API keys: created and shown once, stored as an HMAC; and the caller that a key belongs to.

A key reads ``crt_<id>_<secret>``. The id finds the record, the secret is compared in constant time
with what is stored: ``keys/<id>.json`` holds the HMAC-SHA256 of the key under ``keys/pepper``, a
random file that only the service's user can read. Keys given in CERTSERVE_KEYS are never stored.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract.schemas.problems import InvalidInput, NotFound
from service.contract.storage.files import atomic_write, create_once, storage_errors
from service.contract.times import now, rfc3339

__all__ = ["NOBODY", "Caller", "KeyRing"]

_ID = re.compile(r"[a-z2-7]{10}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@ -]{0,99}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_MIN_SECRET = 16
#: How the tag of a stored key begins; its id follows.
_STORED = "key:"


@dataclass(frozen=True)
class Caller:
    """The caller of a request: ``name`` owns what it makes; an admin sees everything."""

    name: str
    admin: bool = False

    def sees(self, owner: str) -> bool:
        """Whether the caller may see what ``owner`` made."""
        return self.admin or owner == self.name


#: The caller while no keys are configured: anybody who reaches a loopback address.
NOBODY = Caller("", admin=True)


class KeyRing:
    """The keys in ``folder`` and in the settings; changes on disk count at once."""

    def __init__(self, folder: Path, given: Sequence[str] = ()) -> None:
        self._folder = folder
        self._given = [_given_key(text) for text in given]
        self._changed: int | None = None
        self._records: dict[str, dict[str, Any]] = {}
        self._pepper = b""

    @property
    def configured(self) -> bool:
        """Whether callers need a key. Revoked keys count too, so that revoking the last key does
        not open the service."""
        return bool(self._given) or bool(self._load())

    def find(self, token: str) -> Caller | None:
        """The caller behind a key, or None whatever is wrong with the key."""
        found = self._match(token)
        return None if found is None else found[0]

    def tag(self, token: str, secret: str) -> str | None:
        """A name for a valid key that tells nothing of it: what a session keeps in its place.

        Whoever knows the tag, but not ``secret``, cannot even try keys against it.
        """
        found = self._match(token)
        if found is None:
            return None
        caller, digest = found
        return _STORED + caller.name if digest is None else _given_tag(digest, secret)

    def holder(self, tag: str, secret: str) -> Caller | None:
        """The caller behind the key of this tag; None once the key is revoked or not given."""
        for caller, digest in self._given:
            if hmac.compare_digest(_given_tag(digest, secret), tag):
                return caller
        record = self._load().get(tag.removeprefix(_STORED))
        if record is None or record["revoked_at"] is not None:
            return None
        return Caller(record["id"], admin=record["admin"])

    def _match(self, token: str) -> tuple[Caller, bytes | None] | None:
        """The caller, and of a key from the settings its digest."""
        found: tuple[Caller, bytes | None] | None = None
        digest = hashlib.sha256(token.encode()).digest()
        for caller, known in self._given:
            if hmac.compare_digest(digest, known):
                found = caller, known
        records = self._load()
        parts = token.split("_", 2)
        record = records.get(parts[1]) if len(parts) == 3 else None
        stored = bytes.fromhex(record["hmac"]) if record is not None else bytes(32)
        same = hmac.compare_digest(self._hmac(token), stored)
        if record is not None and same and record["revoked_at"] is None:
            found = Caller(record["id"], admin=record["admin"]), None
        return found

    def create(self, name: str, *, admin: bool = False) -> tuple[str, dict[str, Any]]:
        """A new key and its record. The key is not stored and cannot be shown again. Raises
        InvalidInput."""
        if _NAME.fullmatch(name) is None:
            raise InvalidInput(
                "a key's name has 1 to 100 letters, digits, spaces and . _ @ -", code="invalid_name"
            )
        with storage_errors():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_once(self._folder / "pepper", secrets.token_bytes(32))
            (self._folder / "pepper").chmod(0o600)
        self._read_pepper()
        key_id = "".join(secrets.choice(_LETTERS) for _ in range(10))
        key = f"crt_{key_id}_{secrets.token_urlsafe(32)}"
        record = {
            "id": key_id,
            "name": name,
            "admin": admin,
            "created_at": rfc3339(now()),
            "revoked_at": None,
            "hmac": self._hmac(key).hex(),
        }
        self._write(record)
        return key, record

    def records(self) -> list[dict[str, Any]]:
        """The records of the keys, oldest first, without the HMAC."""
        found = sorted(self._load().values(), key=lambda record: str(record["created_at"]))
        return [{k: v for k, v in record.items() if k != "hmac"} for record in found]

    def revoke(self, key_id: str) -> None:
        """Revoke a key, effective at once. Raises NotFound."""
        record = self._load().get(key_id)
        if record is None:
            raise NotFound(f"there is no key {key_id[:100]!r}", code="unknown_key")
        if record["revoked_at"] is None:
            self._write({**record, "revoked_at": rfc3339(now())})

    def _write(self, record: dict[str, Any]) -> None:
        path = self._folder / f"{record['id']}.json"
        atomic_write(path, json.dumps(record).encode())
        path.chmod(0o600)
        self._changed = None

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            changed = os.stat(self._folder).st_mtime_ns
        except FileNotFoundError:
            return {}
        if changed != self._changed:
            paths = [path for path in self._folder.glob("*.json") if _ID.fullmatch(path.stem)]
            self._records = {path.stem: json.loads(path.read_bytes()) for path in paths}
            self._read_pepper()
            # Two changes within one tick of the disk's clock look alike: trust only an old time.
            self._changed = changed if now() - changed / 1e9 > 1.0 else None
        return self._records

    def _read_pepper(self) -> None:
        try:
            self._pepper = (self._folder / "pepper").read_bytes()
        except FileNotFoundError:
            self._pepper = b""

    def _hmac(self, key: str) -> bytes:
        return hmac.new(self._pepper, key.encode(), hashlib.sha256).digest()


def _given_tag(digest: bytes, secret: str) -> str:
    return "given:" + hmac.new(secret.encode(), digest, hashlib.sha256).hexdigest()


def _given_key(text: str) -> tuple[Caller, bytes]:
    """``secret`` or ``name=secret`` of the settings; the name ``admin`` means an admin."""
    name, mark, secret = text.partition("=")
    if not mark:
        name, secret = "", text
    if len(secret) < _MIN_SECRET:
        raise InvalidInput(
            f"a key in CERTSERVE_KEYS has fewer than {_MIN_SECRET} characters", code="weak_key"
        )
    digest = hashlib.sha256(secret.encode()).digest()
    return Caller(name or f"given-{digest.hex()[:8]}", admin=name == "admin"), digest
