"""Accepted submissions, retries and deletions as append-only JSON lines on disk.

Every process appends to its own files, so several API processes need no lock. One thread per
journal writes: all waiting lines are written and fsynced together (group commit) before their
callers are answered. The reader takes every file of the folder and skips a torn last line, because
its submission was never acknowledged.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from service.contract.ids import is_job_id
from service.contract.schemas.problems import Problem, Unavailable
from service.contract.schemas.submissions import JobSubmission
from service.contract.storage.files import storage_errors, sync_folder
from service.contract.times import now

__all__ = ["Binding", "Journal", "JournalReader"]

_log = logging.getLogger(__name__)

#: A new file is begun beyond this size.
_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Binding:
    """An idempotency key (``repeats.key_of``) that means an earlier job of equal content."""

    key: str
    job_id: str
    fingerprint: str


_Entry = tuple[bytes, "Future[None]"]


class Journal:
    """The writing end; one per process. ``folder`` is the data directory's ``journal``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._file: int | None = None
        self._size = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def append(
        self, submission: JobSubmission, *, op: Literal["submit", "retry"] = "submit"
    ) -> Future[None]:
        """Queue ``submission``; the future is done once it is on disk.

        It fails with StorageFull or Unavailable; then the submission was not accepted. ``retry``
        lines carry the submission with its new ``attempt``.
        """
        # Built as text around pydantic's JSON, because this runs for every submission.
        return self._append(f'{{"op":"{op}","job":{submission.model_dump_json()}}}'.encode())

    def delete(self, job_id: str) -> Future[None]:
        """Queue the line that a job is deleted, so that a rebuilt Redis does not run it again."""
        return self._append(_dump({"op": "delete", "id": job_id}))

    def bind(self, binding: Binding) -> Future[None]:
        """Queue the line that binds an idempotency key to the earlier job that answers it."""
        return self._append(_dump({"op": "bind", **asdict(binding)}))

    def _append(self, line: bytes) -> Future[None]:
        future: Future[None] = Future()
        if self._closed:
            future.set_exception(Unavailable("the service is stopping", code="stopping"))
            return future
        self._queue.put((line + b"\n", future))
        return future

    def close(self) -> None:
        """Write what waits and stop."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        stop = False
        while not stop:
            entries: list[_Entry] = []
            entry = self._queue.get()
            while True:
                if entry is None:
                    stop = True
                else:
                    entries.append(entry)
                try:
                    entry = self._queue.get_nowait()
                except queue.Empty:
                    break
            if entries:
                self._commit(entries)
        self._close_file()

    def _commit(self, entries: list[_Entry]) -> None:
        try:
            with storage_errors():
                self._write(b"".join(line for line, _ in entries))
        except Exception as error:  # noqa: BLE001 - every waiting caller must get the error
            _log.exception("the journal could not be written")
            # After a failed write or fsync the file's content is unknown: begin a new file.
            # A complete line that did reach the disk only means that a refused job runs.
            self._close_file()
            failure = (
                error
                if isinstance(error, Problem)
                else Unavailable("the journal cannot be written", code="store_not_writable")
            )
            for _, future in entries:
                future.set_exception(failure)
        else:
            for _, future in entries:
                future.set_result(None)

    def _write(self, data: bytes) -> None:
        if self._file is None or self._size > _FILE_BYTES:
            self._open_file()
        assert self._file is not None
        view = memoryview(data)
        while len(view):
            view = view[os.write(self._file, view) :]
        os.fdatasync(self._file)
        if os.fstat(self._file).st_nlink == 0:
            raise Unavailable("the journal's file was removed", code="store_not_writable")
        self._size += len(data)

    def _open_file(self) -> None:
        self._close_file()
        # Names sort by time; the random part keeps processes (and hosts) apart.
        name = f"{int(now() * 1000):015d}-{secrets.token_hex(8)}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._folder / name, flags, 0o600)
        with suppress(OSError):  # a file system without locks: then nothing is compacted either
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._size = 0
        sync_folder(self._folder)

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class JournalReader:
    """The reading end: remembers how far it read each file, so that a look costs what is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}
        self._deleted: set[str] = set()
        self._deletions: list[str] = []
        self._bindings: list[Binding] = []

    def rewind(self) -> None:
        """Read everything again next time (after Redis lost its data)."""
        self._offsets.clear()
        self._bindings.clear()

    def read(self) -> Iterator[JobSubmission]:
        """Submissions and retries not read before, oldest file first, without deleted jobs."""
        files = self._new_files()
        # Deletions first, wherever they stand: a deleted job must not come to life for a moment.
        for path, offset in files:
            self._deleted.update(_deletions(path, offset))
        for path, offset in files:
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # torn, or being written: look again next time
                    self._offsets[path.name] = offset = offset + len(line)
                    if line.startswith(_DELETE):
                        self._note_deletion(line)
                        continue
                    if line.startswith(_BIND):
                        self._note_binding(line, path)
                        continue
                    submission = _parse(line, path)
                    if submission is not None and submission.id not in self._deleted:
                        yield submission

    def take_deletions(self) -> list[str]:
        """Ids of deleted jobs read since the last call; what is left of them can go."""
        taken, self._deletions = self._deletions, []
        return taken

    def take_bindings(self) -> list[Binding]:
        """Keys of re-used results read since the last call, without those of deleted jobs."""
        taken, self._bindings = self._bindings, []
        return [binding for binding in taken if binding.job_id not in self._deleted]

    def _new_files(self) -> list[tuple[Path, int]]:
        found = [
            (path, self._offsets.get(path.name, 0)) for path in sorted(self._folder.glob("*.jsonl"))
        ]
        return [(path, offset) for path, offset in found if path.stat().st_size > offset]

    def _note_deletion(self, line: bytes) -> None:
        job_id = _deleted_id(line)
        if job_id is not None:
            self._deleted.add(job_id)
            self._deletions.append(job_id)

    def _note_binding(self, line: bytes, path: Path) -> None:
        try:
            entry = json.loads(line)
            self._bindings.append(Binding(entry["key"], entry["job_id"], entry["fingerprint"]))
        except (ValueError, KeyError):
            _log.error("%s holds a line that is not a binding", path.name)


def _dump(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()


#: How the writing end begins the lines that are no submissions: no JSON is parsed to find them.
_DELETE = b'{"op":"delete",'
_BIND = b'{"op":"bind",'


def _deletions(path: Path, offset: int) -> Iterator[str]:
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if line.startswith(_DELETE) and (job_id := _deleted_id(line)) is not None:
                yield job_id


def _deleted_id(line: bytes) -> str | None:
    try:
        job_id = json.loads(line)["id"]
    except (ValueError, KeyError):
        return None
    return job_id if isinstance(job_id, str) and is_job_id(job_id) else None


def _parse(line: bytes, path: Path) -> JobSubmission | None:
    try:
        entry: dict[str, Any] = json.loads(line)
        known = entry["op"] in ("submit", "retry")
        return JobSubmission.model_validate(entry["job"]) if known else None
    except (ValueError, KeyError, TypeError):
        # A line damaged after the fact must not hide the ones behind it.
        _log.error("%s holds a line that is not a submission", path.name)
        return None
