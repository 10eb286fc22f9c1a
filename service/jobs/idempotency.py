"""Submissions that were made before: idempotency keys, and results of equal jobs.

Both live in Redis and are rebuilt from the journal (``create.lua``) and the outcomes
(``finish.lua``). The key of a re-used result has a line of its own in the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from service.contract.schemas.problems import Unavailable
from service.contract.schemas.submissions import DatasetSource, ModelSource
from service.contract.storage.journal import Binding

__all__ = ["Repeats", "fingerprint", "key_of", "result_key"]

#: A reservation whose API process died before the journal is void after this time.
_RESERVED_MS = 30_000
#: Files of one folder that are looked at, at most: Tiny ImageNet has 120,000.
_MOST_FILES = 250_000


def key_of(principal: str, header: str) -> str:
    """The Redis name of an Idempotency-Key: separate per owner, and of bounded length."""
    return hashlib.sha256(f"{principal}\n{header}".encode()).hexdigest()


def fingerprint(
    kind: str,
    spec: Mapping[str, Any],
    model: ModelSource | None,
    dataset: DatasetSource | None,
    training: Mapping[str, Any] | None = None,
    training_dataset: DatasetSource | None = None,
) -> str:
    """A digest of what a submission asks for. File names are no part of it.

    ``spec`` is ``Spec.normal()``, ``training`` a ``TrainingPlan.normal()``.
    """
    content: list[Any] = [kind, spec]
    content += [None, None] if model is None else [model.digest, model.format]
    content.append(_data(dataset))
    if training is not None:
        content += [training, _data(training_dataset)]
    return _digest(content)


def _data(dataset: DatasetSource | None) -> list[Any] | None:
    if dataset is None:
        return None
    return [dataset.kind, dataset.blobs, dataset.paths, dataset.split]


def result_key(
    principal: str, content: str, datasets: Iterable[DatasetSource | None], version: str
) -> str:
    """The key under which an equal result is found: same owner, content and program version.

    Data in folders of the host counts as equal while all its files, however deep, keep their
    names, sizes and times; empty (no result is found) where they are too many to look at.
    """
    marks: dict[str, Any] = {}
    for place, dataset in enumerate(datasets):
        if dataset is not None:
            prefix = f"{place}:" if place else ""
            marks |= {f"{prefix}{r}": _mark(Path(path)) for r, path in dataset.paths.items()}
    if None in marks.values():
        return ""
    return _digest([principal, content, marks, version])


def _mark(path: Path) -> list[int] | str | None:
    """What tells whether a file, or any file in a folder, is another one than it was."""
    if path.is_dir():
        # A folder's own time changes with its names alone, not with what the files below it hold.
        return _mark_of_folder(path)
    return _mark_of_file(path)


def _mark_of_file(path: Path) -> list[int]:
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _mark_of_folder(folder: Path) -> str | None:
    """A digest over the files in it; None where they are more than ``_MOST_FILES``."""
    found: dict[str, list[int]] = {}
    for inner, folders, names in os.walk(folder, followlinks=True):
        if len(found) + len(names) + len(folders) > _MOST_FILES:
            return None
        where = Path(inner)
        found |= {str(where / name): _mark_of_file(where / name) for name in names}
        found |= {str(where / name): [] for name in folders}
    return _digest(found)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Known:
    """The job that a key was used for."""

    job_id: str
    fingerprint: str


class Repeats:
    """``redis`` decodes responses."""

    def __init__(self, redis: Redis, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._prefix = prefix
        script = Path(__file__).with_name("lua") / "reserve.lua"
        self._reserve: Any = self._redis.register_script(script.read_text())

    def reserve(self, key: str, job_id: str, content: str) -> Known | None:
        """Reserve the key for ``job_id``: None on success, else the job that has it.

        Raises Unavailable while Redis is being filled again, RedisError.
        """
        keys = [self._key(key), f"{self._prefix}:memory", f"{self._prefix}:complete"]
        arguments = [job_id, content, _RESERVED_MS, f"{self._prefix}:job:"]
        answer = self._reserve(keys=keys, args=arguments)
        if answer[0] == "recovering":
            raise Unavailable("the jobs are being read back from the journal", code="recovering")
        return None if answer[0] == "reserved" else Known(answer[1], answer[2])

    def bind(self, binding: Binding) -> None:
        """Bind the key to an earlier job, as the journal says."""
        pipeline = self._redis.pipeline()
        mapping = {"job": binding.job_id, "fingerprint": binding.fingerprint}
        pipeline.hset(self._key(binding.key), mapping=mapping)
        pipeline.persist(self._key(binding.key))
        pipeline.execute()

    def release(self, key: str) -> None:
        """Release a reservation whose job was not accepted."""
        self._redis.delete(self._key(key))

    def result(self, key: str) -> str | None:
        """The last job that succeeded with this result key."""
        found = self._redis.get(f"{self._prefix}:result:{key}")
        return None if found is None else str(found)

    def _key(self, key: str) -> str:
        return f"{self._prefix}:idempotency:{key}"
