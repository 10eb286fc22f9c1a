"""The files that hosts share, in an S3-compatible store, by their paths under the data directory.

All code reads and writes the data directory; the mirror makes a file that one host wrote appear on
the others. An object exists as a whole or not at all, and ``push_once`` is a conditional put
(``If-None-Match: *``), so that a file that must be created once is created once among all hosts.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from service.contract.schemas.problems import InternalError, Unavailable
from service.contract.storage.files import storage_errors, sync_folder

__all__ = ["Mirror"]

#: How long "no such object" is remembered, so that not every look at a running job asks the store.
_MISSING_S = 1.0
_CHUNK = 1024 * 1024


class Mirror:
    """``url`` is ``s3://bucket/prefix``; credentials, region and endpoint come from the usual AWS
    environment variables. Every method raises Unavailable while the store is away."""

    def __init__(self, url: str, root: Path) -> None:
        # Imported here, because only installations with an object store need fsspec and s3fs.
        from fsspec.core import url_to_fs

        self._root = root
        self._missing: dict[Path, float] = {}
        with _remote_errors():
            found: tuple[Any, str] = url_to_fs(url, use_listings_cache=False)
        self._fs, self._base = found

    def push(self, path: Path) -> None:
        """Write the file to the object."""
        with _remote_errors():
            self._fs.put_file(str(path), self._key(path))
        self._missing.pop(path, None)

    def push_once(self, path: Path, data: bytes) -> bool:
        """Create the object with ``data`` unless it exists; whether this call created it."""
        with _remote_errors():
            try:
                self._fs.pipe_file(self._key(path), data, mode="create")
            except FileExistsError:
                return False
        self._missing.pop(path, None)
        return True

    def has(self, path: Path) -> bool:
        """Whether there is such an object."""
        return self._size(path) is not None

    def fetch(self, path: Path, *, sha256: str | None = None) -> bool:
        """Write the object to the file; False where there is none. Checks the digest."""
        missed = self._missing.get(path)
        if missed is not None and time.monotonic() - missed < _MISSING_S:
            return False
        aside = self._root / "tmp" / f"{secrets.token_hex(16)}.fetch"
        try:
            with _remote_errors():
                self._fs.get_file(self._key(path), str(aside))
            if sha256 is not None and _digest(aside) != sha256:
                raise InternalError("a stored object is damaged", code="damaged_blob")
            with storage_errors():
                with aside.open("rb") as file:
                    os.fsync(file.fileno())
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside, path)
                sync_folder(path.parent)
        except FileNotFoundError:
            if len(self._missing) > 10_000:
                self._missing.clear()
            self._missing[path] = time.monotonic()
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def refresh(self, path: Path) -> bool:
        """The same where the file may be outdated: it is removed if the object does not exist."""
        size = self._size(path)
        if size is None:
            path.unlink(missing_ok=True)
            return False
        return (path.is_file() and path.stat().st_size == size) or self.fetch(path)

    def remove(self, path: Path) -> None:
        """Remove the object, or all below that folder."""
        with suppress(FileNotFoundError), _remote_errors():
            self._fs.rm(self._key(path), recursive=True)

    def _size(self, path: Path) -> int | None:
        try:
            with _remote_errors():
                return int(self._fs.info(self._key(path))["size"])
        except FileNotFoundError:
            return None

    def _key(self, path: Path) -> str:
        return f"{self._base}/{path.relative_to(self._root)}"


@contextmanager
def _remote_errors() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        # botocore's, aiohttp's and s3fs' exceptions have nothing in common.
        raise Unavailable(
            f"the object store does not answer as it should ({type(error).__name__})",
            code="store_unavailable",
        ) from error


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            found.update(block)
    return found.hexdigest()
