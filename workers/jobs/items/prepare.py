"""The item ``prepare``: have a limited child inspect the upload, then publish what it wrote."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.contract.schemas.problems import (
    InternalError,
    InvalidInput,
    Problem,
    StorageFull,
    TooLarge,
)
from service.contract.schemas.property_spec import spec_of
from service.contract.schemas.submissions import DatasetSource, JobSubmission
from service.contract.settings import Settings
from service.contract.storage.files import storage_errors, sync_folder
from service.contract.storage.pictures import THUMBNAILS
from service.contract.storage.store import Store
from service.contract.times import now, rfc3339
from workers.jobs.hardware.memory import total_memory
from workers.jobs.inspection.sandbox import NO_ROOM, ChildEnded, ChildLimits, run_child
from workers.jobs.items.trained_model import certification_samples, model_of
from workers.jobs.items.work_budget import work_of
from workers.verification.results import POOL

__all__ = ["facts_of", "files_of", "inspect_apart", "prepare", "shards"]

logger = logging.getLogger(__name__)

#: How often a child is started that somebody kills.
TRIES = 2
#: What the child makes of an ONNX export of several files, and of a network in partial sums.
SELF_CONTAINED, REWRITTEN = "self-contained.onnx", "rewritten.onnx"
#: The last one is written last. The first is one that folders of earlier releases lack, so that
#: fetching such a folder leaves nothing of it behind.
FILES = (
    *(THUMBNAILS, "network.json", "weights.safetensors", "deployed.onnx", "data.npz"),
    "facts.json",
)


def prepare(
    store: Store,
    settings: Settings,
    submission: JobSubmission,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Write ``jobs/<id>/prepared``. Raises the Problem that is wrong with the upload.

    Does nothing where an earlier try or another worker has written it.
    """
    target = store.prepared_dir(submission.id)
    whole = store.bring(target, FILES)
    if whole:
        _remove_left(store.job_dir(submission.id))
    else:
        request = _request(store, settings, submission)
        inspect_apart(store, settings, submission.id, request, target, FILES, stop=stop)
    # An earlier try may have died between the folder and these.
    if (target / FILES[-1]).exists():
        _keep_self_contained(store, submission, target / SELF_CONTAINED)
        _keep_rewritten(store, submission, target)
    if not whole:
        for name in FILES if (target / FILES[-1]).exists() else ():
            store.share(target / name)


def _remove_left(job_dir: Path) -> None:
    """Remove the folders of children whose worker was killed."""
    for left in job_dir.glob(".inspect-*"):
        shutil.rmtree(left, ignore_errors=True)


def _keep_rewritten(store: Store, submission: JobSubmission, folder: Path) -> None:
    """Make the file that is certified in place of the uploaded one a model of the job's owner."""
    path = folder / REWRITTEN
    if not path.is_file():
        return
    made = json.loads((folder / "facts.json").read_bytes())["rewritten"]
    known = store.record("models", made["id"])
    owned = known is not None and submission.principal in known.get("owners", {})
    if owned and store.has(store.blob_path(made["id"])):
        return
    digest = _into_store(store, path)
    if digest != made["id"]:
        raise InternalError("the rewritten file is not the one that was compared", code="mixed_up")
    record = {
        "id": digest,
        "format": "onnx",
        "name": made["name"],
        "size": made["size"],
        "created_at": rfc3339(now()),
    }
    store.put_record("models", digest, record, owner=submission.principal, own=False)


def _into_store(store: Store, path: Path) -> str:
    """The digest of a file that is now a blob, too."""
    with storage_errors(), store.writer(limit=path.stat().st_size) as writer:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                writer.write(block)
        return writer.publish().digest


def _keep_self_contained(store: Store, submission: JobSubmission, path: Path) -> None:
    """Make the one file that was made of an export of several a file of the model."""
    model = submission.model
    if model is None or not path.is_file():
        return
    record = store.record("models", model.digest)
    kept = (record or {}).get("files", {}).get("onnx")
    if kept is not None and store.has(store.blob_path(kept)):
        return
    digest = _into_store(store, path)
    if record is not None:
        found = {**record, "files": {"onnx": digest}}
        owners = record.get("owners") or {submission.principal: []}
        store.put_record(
            "models", model.digest, found, owner=next(iter(owners)), own=bool(record.get("own"))
        )


def inspect_apart(
    store: Store,
    settings: Settings,
    job_id: str,
    request: dict[str, Any],
    target: Path,
    files: tuple[str, ...],
    *,
    stop: Callable[[], bool],
) -> None:
    """Have the limited child do ``request`` and publish its ``files`` as the folder ``target``.

    A child that somebody kills alone is started once more. Raises the Problem that is wrong with
    the upload, StorageFull, InternalError. Nothing is published when ``stop`` said so.
    """
    job_dir = store.job_dir(job_id)
    for tries in range(1, TRIES + 1):
        _remove_left(job_dir)
        folder = job_dir / f".inspect-{secrets.token_hex(8)}"
        ended = _inspect_once(settings, job_id, folder, request, target, files, stop=stop)
        if ended is None:
            return
        logger.warning(
            "job %s: try %d of the inspection was killed by signal %d: %s",
            *(job_id, tries, -ended.status, ended.tail),
        )
        if tries == TRIES:
            raise InternalError(
                f"the process that reads model and data set was killed {TRIES} times (signal "
                f"{-ended.status}), and none of its limits explains it",
                code="inspection_failed",
                hint="something outside the service killed it: an operator, a supervisor, or the "
                "machine for want of memory (its kernel's log says so). When that is mended retry "
                "the job, whose uploads are kept",
            )


def _inspect_once(
    settings: Settings,
    job_id: str,
    folder: Path,
    request: dict[str, Any],
    target: Path,
    files: tuple[str, ...],
    *,
    stop: Callable[[], bool],
) -> ChildEnded | None:
    """The same in ``folder``, which is removed; how the child ended if somebody killed it."""
    with storage_errors():
        folder.mkdir(mode=0o700)
    try:
        limits = ChildLimits(
            memory_bytes=settings.inspection_memory_bytes,
            cpu_s=int(settings.inspection_timeout_s * (os.cpu_count() or 1)),
            wall_s=settings.inspection_timeout_s,
            file_bytes=settings.max_inflated_bytes,
        )
        with storage_errors():
            (folder / "request.json").write_text(json.dumps(request))
            ended = run_child(
                "workers.jobs.inspection.child", [], folder=folder, limits=limits, stop=stop
            )
        if ended.stopped:
            return None
        if ended.killed:
            return ended
        _raise_problem(job_id, folder, ended, limits)
        with storage_errors():
            _publish(folder / "prepared", target, files)
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def facts_of(store: Store, job_id: str) -> dict[str, Any]:
    """What ``prepare`` found out about model and data."""
    folder = store.prepared_dir(job_id)
    if not store.bring(folder, FILES):
        raise InternalError("the prepared files are missing", code="not_prepared")
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_bytes())
    return facts


def shards(facts: dict[str, Any]) -> list[tuple[int, int]]:
    """First row and end row of every shard; fixed when the job is prepared."""
    size = int(facts["samples_per_shard"])
    samples = int(facts["samples"])
    return [(start, min(start + size, samples)) for start in range(0, samples, size)]


def _request(store: Store, settings: Settings, submission: JobSubmission) -> dict[str, Any]:
    spec = spec_of(submission)
    model = model_of(store, submission)
    assert submission.dataset is not None
    stated = submission.vnnlib
    return {
        "property": None if stated is None else files_of(store, stated)["file"],
        "model": {
            "path": _blob(store, model.file),
            "data": {name: _blob(store, digest) for name, digest in model.data.items()},
            "format": model.format,
            "architecture": spec.architecture,
            "output": spec.output,
            "binary": spec.binary,
            "source": {"id": model.digest, "format": model.format, "name": model.name},
        },
        "summation": spec.summation,
        "normalization": None if spec.normalization is None else spec.normalization.model_dump(),
        "dataset": {
            "kind": submission.dataset.kind,
            "files": files_of(store, submission.dataset),
            "split": submission.dataset.split,
        },
        "selection": certification_samples(store, submission, spec),
        "norm": spec.norm,
        "method": spec.method,
        "effort": spec.effort,
        "cost": {
            "epsilons": len(spec.epsilons),
            "attack_passes": 0.0
            if spec.attack is None
            else 3.0 * spec.attack.steps * spec.attack.restarts,
            "work": work_of(spec),
            "memory": settings.memory_fraction * total_memory(),
        },
        "clip": spec.clip,
        "input_range": spec.input_range,
        "seed": spec.seed,
        "time_budget_s": spec.time_budget_s,
        "sample_time_s": spec.sample_time_s,
        "bounds": {
            "max_bytes": settings.max_inflated_bytes,
            "max_samples": settings.max_samples,
        },
        # Never cut a pool: samples that share a work budget stay in one shard. Boxes share none.
        "samples_per_shard": 1
        if stated is not None
        else POOL * math.ceil(settings.samples_per_shard / POOL),
    }


def files_of(store: Store, source: DatasetSource) -> dict[str, str]:
    """Role -> path of a data set's files."""
    blobs = {role: _blob(store, digest) for role, digest in source.blobs.items()}
    return {**blobs, **source.paths}


def _blob(store: Store, digest: str) -> str:
    path = store.blob_path(digest)
    if not store.has(path):
        raise InternalError(f"the upload {digest} is not in the store", code="upload_missing")
    return str(path)


def _raise_problem(job_id: str, folder: Path, ended: ChildEnded, limits: ChildLimits) -> None:
    """Nothing if the child succeeded; else raises its stated problem, or one for how it ended."""
    if ended.status == 0 and not ended.timed_out:
        return
    if ended.status == NO_ROOM:
        raise StorageFull("the disk that holds the data directory is full")
    stated = folder / "problem.json"
    if ended.status == 3 and stated.is_file() and not stated.is_symlink():
        raise _stated_problem(json.loads(stated.read_text()))
    logger.warning("job %s: inspection ended with %s: %s", job_id, ended.status, ended.tail)
    if ended.out_of_memory:
        raise TooLarge(
            "the machine, or the service's container, had no more memory while model and data set "
            "were read",
            code="too_large",
            hint="send a smaller model or fewer samples, or retry the job when less runs beside "
            "it; CERTSERVE_INSPECTION_MEMORY_BYTES is more than there is",
        )
    if ended.out_of_limits:
        raise TooLarge(
            "reading model and data set took more than an inspection may take "
            f"({limits.wall_s:.0f} s, {limits.memory_bytes // 2**20} MiB)",
            code="too_large",
            hint="send a smaller model or fewer samples; the limits are "
            "CERTSERVE_INSPECTION_TIMEOUT_S and CERTSERVE_INSPECTION_MEMORY_BYTES",
        )
    end = f"signal {-ended.status}" if ended.status < 0 else f"status {ended.status}"
    said = _last_line(ended.tail)
    raise InvalidInput(
        f"the process that reads model and data set crashed on them ({end})"
        + (f": {said}" if said else ""),
        code="inspection_failed",
        hint="a damaged ONNX file can end ONNX Runtime: see whether "
        "onnx.checker.check_model(path, full_check=True) and onnxruntime take it on your machine. "
        "If they do, this is a fault of the service: send the id of this job, the two files (or "
        "their ids) and this message to its operator; running the job again will not help",
    )


def _stated_problem(stated: dict[str, Any]) -> Problem:
    kind = TooLarge if stated["code"] == "too_large" else InvalidInput
    return kind(
        str(stated["detail"]),
        code=str(stated["code"]),
        hint=stated.get("hint"),
        field=stated.get("field"),
    )


def _last_line(tail: str) -> str | None:
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1][:300] if lines else None


def _publish(folder: Path, target: Path, files: tuple[str, ...]) -> None:
    """Fsync the files, then publish them all at once under their final name."""
    for name in files:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise InternalError(f"the inspection left no {name}", code="inspection_failed")
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    try:
        folder.rename(target)
    except OSError:
        # Another worker was first; its files hold the same.
        if not (target / "facts.json").exists():
            raise
    sync_folder(target.parent)
