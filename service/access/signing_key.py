"""The key that this service signs reports with, and the public keys that it signed with before.

``signing/key.pem`` in the data directory (PKCS 8, readable by the service's user alone) is made
when the first report is signed, or CERTSERVE_SIGNING_KEY_FILE names a secret. Who has a copy of
that file, in a backup too, can sign in this service's name. ``rotate`` makes a new one; the public
half of the old one goes to ``signing/former.json``, so that reports signed with it still verify.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from service.contract.schemas.problems import InternalError, InvalidInput
from service.contract.storage.files import atomic_write, locked, storage_errors

__all__ = ["SigningKeys"]


class SigningKeys:
    """The keys in ``folder``; with ``secret`` the private one is in that file, and never made."""

    def __init__(self, folder: Path, secret: Path | None = None) -> None:
        self._folder = folder
        self._secret = secret

    def private(self) -> Ed25519PrivateKey:
        """The key to sign with, made if there is none. Raises InternalError, StorageFull."""
        if self._secret is not None:
            return _read(self._secret)
        path = self._folder / "key.pem"
        if not path.exists():
            with storage_errors():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self._folder / ".lock"):
                if not path.exists():
                    self._make(path)
        return _read(path)

    def exists(self) -> bool:
        """Whether there is a key already."""
        return (self._secret or self._folder / "key.pem").exists()

    def public(self) -> str:
        """The public key, in hexadecimal."""
        return self.private().public_key().public_bytes_raw().hex()

    def former(self) -> list[str]:
        """Public keys of before, newest first."""
        try:
            found: list[str] = json.loads((self._folder / "former.json").read_bytes())
        except FileNotFoundError:
            return []
        return found

    def rotate(self) -> str:
        """Make a new key; returns its public half. Raises InvalidInput where a secret is given."""
        if self._secret is not None:
            raise InvalidInput(
                f"the key comes from {self._secret}, which this service does not write",
                code="signing_key_given",
                hint="put a new key there, and name the old public key to those who verify",
            )
        old = self.public()
        with locked(self._folder / ".lock"):
            # Known as former before it is replaced: a crash in between loses nothing.
            former = [old, *(key for key in self.former() if key != old)]
            atomic_write(self._folder / "former.json", json.dumps(former).encode())
            self._make(self._folder / "key.pem")
        return self.public()

    def _make(self, path: Path) -> None:
        key = Ed25519PrivateKey.generate()
        data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        aside = path.with_name(".key.new")
        with storage_errors():
            aside.unlink(missing_ok=True)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InternalError(
            f"the signing key cannot be read: {error}", code="signing_key"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InternalError("the signing key is no Ed25519 key", code="signing_key")
    return key
