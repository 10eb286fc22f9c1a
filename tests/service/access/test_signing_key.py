"""The key that signs reports: made once, readable by its owner alone, replaced without a gap."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service.access.signing_key import SigningKeys
from service.contract.schemas.problems import InternalError, InvalidInput


def test_many_who_start_at_once_use_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: SigningKeys(tmp_path / "s").public(), range(32)))
    assert len(found) == 1
    path = tmp_path / "s" / "key.pem"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


def test_a_replaced_key_stays_known(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    assert not keys.exists()
    first = keys.public()
    assert keys.exists()
    assert keys.former() == []
    second = keys.rotate()
    third = keys.rotate()
    assert len({first, second, third}) == 3
    assert keys.former() == [second, first]
    assert SigningKeys(tmp_path).public() == third
    assert stat.S_IMODE(os.stat(tmp_path / "key.pem").st_mode) == 0o600


def test_a_secret_is_read_and_never_written(tmp_path: Path) -> None:
    SigningKeys(tmp_path / "a").public()
    secret = tmp_path / "a" / "key.pem"
    given = SigningKeys(tmp_path / "b", secret)
    assert given.public() == SigningKeys(tmp_path / "a").public()
    with pytest.raises(InvalidInput) as caught:
        given.rotate()
    assert caught.value.code == "signing_key_given"
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("content", [None, b"", b"no key", b"rsa"])
def test_a_file_that_is_no_key_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key"
    if content == b"rsa":
        key = generate_private_key(65537, 2048)
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InternalError) as caught:
        SigningKeys(tmp_path, path).public()
    assert caught.value.code == "signing_key"
