"""Durable files: write aside, fsync, rename (or link), fsync the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.contract.schemas.problems import StorageFull, Unavailable

__all__ = [
    "atomic_write",
    "create_once",
    "locked",
    "storage_errors",
    "sync_folder",
    "try_locked",
]


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the errors of a full or read-only disk into StorageFull or Unavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the disk that holds the data directory is full") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise Unavailable(
                "the data directory cannot be written", code="store_not_writable"
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_aside(path: Path, data: bytes) -> Path:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return aside


def atomic_write(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader sees the old bytes or all of the new ones."""
    with storage_errors():
        aside = _write_aside(path, data)
        os.replace(aside, path)
        sync_folder(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` among the processes of this host; makes the file."""
    with storage_errors():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """The same without waiting: whether this process is the one that holds the lock now."""
    with storage_errors():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def create_once(path: Path, data: bytes) -> bool:
    """Create ``path`` with ``data`` unless it exists; whether this call created it.

    A hard link is the one call that publishes a complete file and fails where a name is taken.
    """
    with storage_errors():
        aside = _write_aside(path, data)
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        finally:
            aside.unlink(missing_ok=True)
            sync_folder(path.parent)
        return True
