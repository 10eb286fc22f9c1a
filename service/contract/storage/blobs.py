"""Uploads on their way into the store."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from service.contract.schemas.problems import TooLarge
from service.contract.storage.files import storage_errors, sync_folder

__all__ = ["Blob", "BlobWriter"]


@dataclass(frozen=True)
class Blob:
    """Stored bytes: ``digest`` is ``sha256:...``."""

    digest: str
    size: int


class BlobWriter:
    """Bytes on their way into the store, hashed as they come, refused beyond ``limit``.

    ``write`` as often as needed, then ``close`` (all is on disk, under ``path``, still invisible),
    then ``publish``, which puts it where ``place`` says and lets other hosts have it (``share``).
    Leaving the ``with`` block without ``publish`` removes the file. Raises TooLarge, StorageFull.
    """

    def __init__(
        self,
        folder: Path,
        place: Callable[[str], Path],
        share: Callable[[Path], None],
        *,
        limit: int,
    ) -> None:
        self.path = folder / f"{secrets.token_hex(16)}.upload"
        self.size = 0
        self._place = place
        self._share = share
        self._limit = limit
        self._hash = hashlib.sha256()
        #: Keeps a cancelled request from closing the file while a thread writes to it.
        self._lock = threading.Lock()
        with storage_errors():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file: int | None = os.open(self.path, flags, 0o600)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    @property
    def digest(self) -> str:
        """``sha256:...`` of what was written so far."""
        return "sha256:" + self._hash.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``; one system call, one hash update."""
        with self._lock:
            self._write(data)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        assert self._file is not None, "the writer is closed"
        self.size += len(data)
        if self.size > self._limit:
            raise TooLarge(
                f"the upload is larger than the limit of {self._limit} bytes",
                code="upload_too_large",
                hint="the limits are CERTSERVE_MAX_MODEL_BYTES and CERTSERVE_MAX_DATASET_BYTES",
            )
        self._hash.update(data)
        view = memoryview(data)
        with storage_errors():
            while len(view):
                view = view[os.write(self._file, view) :]

    def close(self) -> None:
        """Write all bytes to disk (fsync)."""
        with self._lock:  # not while the bytes go to the disk: the event loop may discard
            file, self._file = self._file, None
        if file is None:
            return
        with storage_errors():
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def publish(self) -> Blob:
        """Rename into place; the same content twice is one blob."""
        self.close()
        target = self._place(self.digest)
        with storage_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            # Also over the same content: a fresh file is not removed as unused
            # (``service.jobs.retention``).
            os.replace(self.path, target)
            sync_folder(target.parent)
            sync_folder(target.parent.parent)
        self._share(target)
        return Blob(self.digest, self.size)

    def discard(self) -> None:
        """Remove the file unless it was published."""
        with self._lock:
            if self._file is not None:
                file, self._file = self._file, None
                os.close(file)
        self.path.unlink(missing_ok=True)
