"""The data directory: content-addressed blobs, what is known of them, and job folders.

Every file is written to a temporary name, fsynced and renamed, and its folder is fsynced. So a
reader sees all of a file or none of it, even after a crash. Paths are made of digests and job ids
only, never of a user's text.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from service.contract.ids import digest_hex, is_job_id, place_of
from service.contract.schemas.problems import NotFound
from service.contract.settings import Settings
from service.contract.storage.blobs import BlobWriter
from service.contract.storage.files import (
    atomic_write,
    create_once,
    locked,
    storage_errors,
    sync_folder,
)
from service.contract.storage.mirror import Mirror
from service.contract.storage.upload_records import Listing, read_object, with_owner
from service.contract.times import now

__all__ = ["Collection", "Store"]

Collection = Literal["models", "datasets"]

#: What a merge leaves, and the report's signed form.
_RESULTS = (
    *("report.json", "report.signed.json", "samples.jsonl"),
    *("counterexamples.npz", "counterexamples.bin", "certificate.safetensors", "failed.json"),
)


class Store:
    """The data directory of the architecture page; safe for any number of processes.

    With a ``mirror`` several hosts share what they need of each other's: uploads and what is known
    of them, prepared folders, shard results, reports, attempts, outcomes.
    """

    _FOLDERS = ("journal", "blobs/sha256", "models", "datasets", "jobs", "cache", "tmp")

    def __init__(self, data_dir: Path, mirror: Mirror | None = None) -> None:
        self.data_dir = data_dir
        self._mirror = mirror
        self._listings = {name: Listing(data_dir / name) for name in ("models", "datasets")}
        with storage_errors():
            for name in self._FOLDERS:
                (data_dir / name).mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(cls, settings: Settings) -> Store:
        """The store that the settings describe. Raises Unavailable."""
        url, data_dir = settings.store_url, settings.data_dir
        return cls(data_dir, None if url is None else Mirror(url, data_dir))

    # what other hosts have

    def share(self, path: Path) -> None:
        """Share a complete file with the other hosts. Raises Unavailable."""
        if self._mirror is not None:
            self._mirror.push(path)

    def unshare(self, path: Path) -> None:
        """Stop sharing a file with the other hosts."""
        if self._mirror is not None:
            self._mirror.remove(path)

    def has(self, path: Path) -> bool:
        """Whether the file exists on any host; if so, it is fetched to this one."""
        if self._mirror is None:
            return path.exists()
        if path.parent.name in ("shards", "training"):
            # It may have grown, or a retry of a failed job removed it where it counts.
            return self._mirror.refresh(path)
        if path.exists():
            return True
        blob = "blobs" in path.relative_to(self.data_dir).parts
        return self._mirror.fetch(path, sha256=path.name if blob else None)

    def bring(self, folder: Path, names: Sequence[str]) -> bool:
        """Whether the folder has all these files, the last of which was written last."""
        mark = folder / names[-1]
        if self._mirror is None:
            return mark.exists()
        if not self._mirror.has(mark):
            self._trash(folder)
            return False
        return mark.exists() or all(self._mirror.fetch(folder / name) for name in names)

    def create(self, path: Path, data: bytes) -> bool:
        """Create ``path`` durably unless it exists on any host; whether this call created it."""
        if self._mirror is None:
            return create_once(path, data)
        created = self._mirror.push_once(path, data)
        if created:
            atomic_write(path, data)
        else:
            self._mirror.fetch(path)
        return created

    # the top folders

    def folder(self, name: Literal["journal", "cache", "tmp"]) -> Path:
        """One of the top folders."""
        return self.data_dir / name

    # blobs

    def blob_path(self, digest: str) -> Path:
        """Where the bytes of ``sha256:<hex>`` are, or would be. Raises NotFound on a non-digest."""
        text = digest_hex(digest)
        if text is None:
            raise NotFound("this is not a digest (sha256:...)", code="invalid_id")
        return self.data_dir / "blobs" / "sha256" / text[:2] / text[2:4] / text

    def writer(self, *, limit: int) -> BlobWriter:
        """A new upload of at most ``limit`` bytes."""
        return BlobWriter(self.folder("tmp"), self.blob_path, self.share, limit=limit)

    # what is known of an upload

    def record(self, collection: Collection, identity: str) -> dict[str, Any] | None:
        """What is known of an uploaded model or data set, or None."""
        text = digest_hex(identity)
        if text is None:
            return None
        return self.read_json(self.data_dir / collection / f"{text}.json")

    def put_record(
        self,
        collection: Collection,
        identity: str,
        record: dict[str, Any],
        *,
        owner: str = "",
        own: bool = True,
    ) -> dict[str, Any]:
        """Keep ``record`` (with ``name``); an upload known already only gains owners and names.

        ``own``: it was uploaded for its own sake, and not along with a job that it may go with.
        """
        text = digest_hex(identity)
        assert text is not None, identity
        folder = self.data_dir / collection
        # Two simultaneous uploads of the same bytes must both keep their owner.
        with locked(folder / ".lock"):
            known = self.record(collection, identity)
            merged = with_owner(known, record, owner=owner, own=own)
            if merged != known:
                atomic_write(folder / f"{text}.json", _json_bytes(merged))
                self.share(folder / f"{text}.json")
            else:
                self.touch(collection, identity)
        return merged

    def touch(self, collection: Collection, identity: str) -> None:
        """Mark an upload as in use, so that retention does not remove it."""
        text = digest_hex(identity)
        with suppress(FileNotFoundError):
            os.utime(self.data_dir / collection / f"{text}.json")

    def records(self, collection: Collection) -> Iterator[dict[str, Any]]:
        """All of them, newest first; read again only when the folder has changed."""
        return iter(self._listings[collection].records())

    # job folders

    def job_dir(self, job_id: str) -> Path:
        """``jobs/<id>``, made if it is missing; ``jobs/<id>/runs/<place>`` of one training of a
        sweep, for which all paths below work alike. Raises NotFound on what is no job id."""
        folder = self._job_path(job_id)
        with storage_errors():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def prepared_dir(self, job_id: str) -> Path:
        """Where ``prepare`` leaves network, data and facts (write aside, then rename)."""
        return self._job_path(job_id) / "prepared"

    def training_dir(self, job_id: str) -> Path:
        """Where a training keeps its data, its checkpoint and its result."""
        return self._job_path(job_id) / "training"

    def failure_path(self, job_id: str) -> Path:
        """Why one training of a sweep failed, as a problem; the others go on."""
        return self._job_path(job_id) / "failed.json"

    def shards_dir(self, job_id: str) -> Path:
        """Folder of the shard results."""
        return self._job_path(job_id) / "shards"

    def shard_path(self, job_id: str, shard: int) -> Path:
        """Result of one shard."""
        return self.shards_dir(job_id) / f"{shard}.npz"

    def report_path(self, job_id: str) -> Path:
        """The report as JSON."""
        return self._job_path(job_id) / "report.json"

    def signed_report_path(self, job_id: str) -> Path:
        """The report with the signature that an API process gave it."""
        return self._job_path(job_id) / "report.signed.json"

    def samples_path(self, job_id: str) -> Path:
        """Sample rows, one JSON object per line."""
        return self._job_path(job_id) / "samples.jsonl"

    def counterexamples_path(self, job_id: str) -> Path:
        """Counterexamples, each replayed in ONNX Runtime."""
        return self._job_path(job_id) / "counterexamples.npz"

    def certificate_path(self, job_id: str) -> Path:
        """What ``certserve-check`` proves again; not every job has one."""
        return self._job_path(job_id) / "certificate.safetensors"

    def outcome_path(self, job_id: str, *, attempt: int | None = None) -> Path:
        """How the job ended: created once, never overwritten; wins over the ledger.

        Every attempt has its own; without ``attempt`` it is that of the newest.
        """
        number = self.attempt(job_id) if attempt is None else attempt
        name = "outcome.json" if number == 1 else f"outcome-{number}.json"
        return self._job_path(job_id) / name

    def attempt(self, job_id: str) -> int:
        """The number of the job's newest attempt: 1 until a retry was asked for."""
        number = 1
        while self.has(self.attempt_path(job_id, number + 1)):
            number += 1
        return number

    def attempt_path(self, job_id: str, attempt: int) -> Path:
        """The mark that makes ``attempt`` (2, 3, ...) the one that counts."""
        return self._job_path(job_id) / f"attempt-{attempt}.json"

    def clear_results(self, job_id: str, *, keep: Sequence[str] = ()) -> None:
        """Remove what an attempt left besides its outcome and the folders to ``keep``, so that the
        next one starts anew."""
        folder = self._job_path(job_id)
        with storage_errors():
            for name in {"prepared", "shards", "training"} - {*keep}:
                self.unshare(folder / name)
                self._trash(folder / name)
            for name in _RESULTS:
                self.unshare(folder / name)
                (folder / name).unlink(missing_ok=True)

    def remove_job(self, job_id: str) -> None:
        """Remove a job's folder: it is renamed away at once, then its files are deleted."""
        with storage_errors():
            self.unshare(self._job_path(job_id))
            self._trash(self._job_path(job_id))

    def _trash(self, folder: Path) -> None:
        aside = self.folder("tmp") / f"trash-{secrets.token_hex(8)}"
        try:
            folder.rename(aside)
        except FileNotFoundError:
            return
        sync_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)

    def write_json(self, path: Path, value: object) -> None:
        """Replace ``path`` atomically and durably. Raises ValueError on NaN, StorageFull."""
        atomic_write(path, _json_bytes(value))

    def create_json(self, path: Path, value: object) -> bool:
        """Create ``path`` durably unless it exists; whether this call created it."""
        return self.create(path, _json_bytes(value))

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """The object in ``path``, or None where there is no such file on any host."""
        return read_object(path) if self.has(path) else None

    def sweep(self, *, older_than_s: float = 3600.0) -> None:
        """Remove temporary files and folders of dead processes: those unchanged for so long."""
        for path in self.folder("tmp").iterdir():
            with suppress(FileNotFoundError):
                old = path.stat().st_mtime < now() - older_than_s
                if path.name.startswith("trash-") or (old and path.is_dir()):
                    shutil.rmtree(path, ignore_errors=True)
                elif old:
                    path.unlink()

    def check_writable(self) -> None:
        """Raises StorageFull or Unavailable unless a file can be written and fsynced."""
        path = self.folder("tmp") / f"probe-{secrets.token_hex(8)}"
        atomic_write(path, b"probe")
        path.unlink(missing_ok=True)
        if self._mirror is not None:
            self._mirror.has(path)

    def _job_path(self, job_id: str) -> Path:
        run = place_of(job_id)
        if run is not None:
            return self.data_dir / "jobs" / run[0] / "runs" / str(run[1])
        if not is_job_id(job_id):
            raise NotFound(f"there is no job {job_id[:64]!r}", code="unknown_job")
        return self.data_dir / "jobs" / job_id


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
