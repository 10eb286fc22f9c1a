"""Removes expired jobs, uploads that no job needs, and the journal lines of deleted jobs.

Runs now and then in the reconciler's thread, and only once every accepted job is in the ledger:
before that it is unknown which uploads are needed. What an active job needs is never removed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from service.contract.ids import digest_hex, is_job_id
from service.contract.ledger.ledger import JobState, Ledger
from service.contract.outcomes import erase, rewritten_model, trained_models
from service.contract.schemas.submissions import TERMINAL
from service.contract.settings import Settings
from service.contract.storage.compaction import compact
from service.contract.storage.journal import Journal
from service.contract.storage.store import Collection, Store
from service.contract.sweeps import sweep_of
from service.contract.times import now, seconds

__all__ = ["Retention"]

_log = logging.getLogger(__name__)

_DAY_S = 86_400.0
_BATCH = 500


class Retention:
    """``run`` is one sweep."""

    def __init__(self, settings: Settings, store: Store, ledger: Ledger, journal: Journal) -> None:
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._journal = journal

    def run(self) -> None:
        """Raises RedisError, StorageFull; what is done by then is done."""
        if not self._ledger.memory.complete():
            return
        known: set[str] = set()
        needed: set[str] = set()
        for state in self._jobs():
            if self._expired(state):
                self._journal.delete(state.submission.id).result()
                erase(self._store, self._ledger, state.submission.id)
                _log.info("job %s is past its retention time and was deleted", state.submission.id)
                continue
            known.add(state.submission.id)
            needed |= _uploads(state) | self._trained(state) | self._rewritten(state)
        self._remove_folders(known)
        collections: tuple[Collection, ...] = ("models", "datasets")
        kept: set[str] = set()
        for collection in collections:
            kept |= self._remove_records(collection, needed)
        self._remove_blobs(kept | needed)
        compact(self._store)

    def _jobs(self) -> Iterator[JobState]:
        before: str | None = None
        while True:
            ids = self._ledger.index.ids(before=before, limit=_BATCH)
            if not ids:
                return
            yield from self._ledger.index.get_many(ids)
            before = ids[-1]

    def _expired(self, state: JobState) -> bool:
        days = self._settings.retention_days
        if days is None or state.status not in TERMINAL or state.finished_at is None:
            return False
        return seconds(state.finished_at) < now() - days * _DAY_S

    def _trained(self, state: JobState) -> set[str]:
        """Models that a job does not name: of a sweep, and of a training whose certification still
        runs."""
        if state.status in TERMINAL and sweep_of(state.submission) is None:
            return set()
        return {model for model in trained_models(self._store, state.submission) if model}

    def _rewritten(self, state: JobState) -> set[str]:
        """The model that a job certifies in place of the uploaded one."""
        if state.submission.spec.get("summation") != "partial-sums":
            return set()
        return {rewritten_model(self._store, state.submission.id) or ""}

    def _remove_folders(self, known: set[str]) -> None:
        """Remove folders of unknown jobs: a worker may write into one after its deletion."""
        for folder in (self._store.data_dir / "jobs").iterdir():
            if is_job_id(folder.name) and folder.name not in known and self._is_old(folder):
                self._store.remove_job(folder.name)
                _log.info("job %s is unknown; its folder was removed", folder.name)

    def _remove_records(self, collection: Collection, needed: set[str]) -> set[str]:
        """Remove uploads that no job needs; the digests of those that stay."""
        kept: set[str] = set()
        days = self._settings.retention_days
        for record in list(self._store.records(collection)):
            digests = _digests(record)
            path = self._store.data_dir / collection / f"{digest_hex(record['id'])}.json"
            # An upload that came with a job goes with it; one made on its own has a retention time.
            own = record.get("own", True)
            age_s = self._settings.upload_grace_s if not own else (days or 0) * _DAY_S
            lasting = own and days is None
            if lasting or digests & needed or not self._is_old(path, age_s):
                kept |= digests
                continue
            with suppress(FileNotFoundError):
                path.unlink()
                self._store.unshare(path)
            _log.info("upload %s is no longer needed and was removed", record["id"])
        return kept

    def _remove_blobs(self, kept: set[str]) -> None:
        blobs = self._store.data_dir / "blobs" / "sha256"
        found = (path for path in blobs.glob("*/*/*") if f"sha256:{path.name}" not in kept)
        while batch := list(islice(found, _BATCH)):
            for path in batch:
                # An upload becomes a blob before it becomes a record, and a record before a job.
                if self._is_old(path):
                    self._remove_blob(path)

    def _remove_blob(self, path: Path) -> None:
        """Aside first: the same bytes may be uploaded again at this very moment."""
        aside = self._store.folder("tmp") / f"old-{path.name}"
        with suppress(FileNotFoundError):
            path.rename(aside)
            if self._is_old(aside):
                aside.unlink()
                self._store.unshare(path)
            elif not path.exists():
                aside.rename(path)

    def _is_old(self, path: Path, age_s: float | None = None) -> bool:
        grace = self._settings.upload_grace_s
        try:
            return path.stat().st_mtime < now() - max(grace, age_s or 0.0)
        except FileNotFoundError:
            return False


def _uploads(state: JobState) -> set[str]:
    """Digests that a job names: its model, its data, what it trained."""
    submission = state.submission
    model = submission.model
    found = {model.digest, *model.blobs.values()} if model else set()
    for dataset in (submission.dataset, submission.training_dataset):
        if dataset is not None:
            found |= {*dataset.blobs.values(), dataset.id or ""}
    return found | {state.model_id or ""}


def _digests(record: dict[str, Any]) -> set[str]:
    """The upload's id and those of its files."""
    return {record["id"], *record.get("blobs", {}).values(), *record.get("files", {}).values()}
