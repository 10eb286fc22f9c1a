"""The items ``shard:k`` and ``merge`` of a property: one box each, then the report."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from models.network import Network
from models.onnx.deployed import DeployedNetwork
from service.contract.schemas.problems import InternalError
from service.contract.schemas.property_spec import spec_of
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.files import atomic_write, storage_errors
from service.contract.storage.store import Store
from service.contract.times import now, seconds
from workers.jobs.hardware.barrier_waits import watch_barriers
from workers.jobs.hardware.device import device_name, device_of
from workers.jobs.items.merge import digest_of
from workers.jobs.items.prepare import facts_of, shards
from workers.jobs.items.shard import allowance, memory_limit, work_limit
from workers.jobs.items.trained_model import model_of
from workers.jobs.report.property_report import build_property_report
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.properties.attack import Counterexample
from workers.verification.properties.lowering import Property
from workers.verification.properties.results import BoxResult, PropertyRequest
from workers.verification.properties.verify import verify_box

__all__ = ["merge_boxes", "verify_shard"]


def verify_shard(
    store: Store,
    settings: Settings,
    submission: JobSubmission,
    shard: int,
    *,
    progress: Callable[[int, str], None],
) -> int:
    """Write ``shards/<k>.npz``, the result of the property's box k, and return 1.

    progress(done, message) is called repeatedly, and may raise to abort. Where an earlier box has a
    counterexample already, this one is left out: the report is of the first such box.
    """
    facts = facts_of(store, submission.id)
    path = store.shard_path(submission.id, shard)
    if store.has(path):
        return 1
    began = time.monotonic()
    left = None
    if submission.spec.get("time_budget_s") is not None:
        left = allowance(store, submission, facts, shard)
    if _settled(store, submission, shard) or (left is not None and left <= 0):
        spent = left is not None and left <= 0
        result = BoxResult("unknown", "undecided", notes={"budget_spent": True} if spent else {})
    else:
        result = _verified(store, settings, submission, shard, began, left, progress)
    with storage_errors():
        path.parent.mkdir(exist_ok=True)
    atomic_write(path, result.to_bytes())
    store.share(path)
    return 1


def _verified(
    store: Store,
    settings: Settings,
    submission: JobSubmission,
    shard: int,
    began: float,
    left: float | None,
    progress: Callable[[int, str], None],
) -> BoxResult:
    spec = spec_of(submission)
    torch.set_num_threads(settings.worker_threads)
    watch_barriers(settings.worker_threads)
    device = device_of(settings.device)
    network, deployed, stated, compiled = _load(
        store.prepared_dir(submission.id), store.folder("cache")
    )
    of_each = submission.spec.get("sample_time_s")
    clocks = [limit for limit in (left, of_each) if isinstance(limit, int | float)]
    request = PropertyRequest(
        method=spec.method,
        soundness=spec.soundness,
        seed=spec.seed,
        work=None if clocks else work_limit(spec, len(stated.boxes)),
        memory=memory_limit(settings.memory_fraction, device),
        time_s=min(clocks) if clocks else None,
    )
    message = "reading the property"

    def say(what: str) -> None:
        nonlocal message
        message = f"{what}: box {shard + 1} of {len(stated.boxes)}"
        progress(0, message)

    result = verify_box(
        network,
        compiled,
        stated.boxes[shard],
        request,
        deployed=deployed,
        device=device,
        deadline=began + min(clocks) if clocks else None,
        report=lambda: progress(0, message),
        say=say,
    )
    result.notes["device"] = device_name(device)
    return result


def _settled(store: Store, submission: JobSubmission, shard: int) -> bool:
    """Whether a box before this one is known to have a counterexample."""
    paths = [store.shard_path(submission.id, earlier) for earlier in range(shard)]
    return any(store.has(path) and BoxResult.load(path).verdict == "violated" for path in paths)


@lru_cache(maxsize=1)
def _load(folder: Path, cache: Path) -> tuple[Network, DeployedNetwork, Property, CompiledNetwork]:
    """The prepared files; the folder never changes once it is there."""
    facts = json.loads((folder / "facts.json").read_text())
    network = Network.load(folder)
    onnx = (folder / "deployed.onnx").read_bytes()
    outside = facts["normalization_outside"]
    deployed = DeployedNetwork(onnx, network.input_shape, outside, largest=network.largest)
    if facts.get("batch") == 1:
        deployed.one_by_one()
    compiled = CompiledNetwork.compile(network, cache_dir=cache)
    return network, deployed, _property(folder), compiled


def _property(folder: Path) -> Property:
    with np.load(folder / "data.npz", allow_pickle=False) as data:
        return Property.from_json(json.loads(data["property"].tobytes()))


def merge_boxes(store: Store, submission: JobSubmission, *, started_at: str | None) -> int:
    """Write report, an empty list of samples and the counterexample; the number of boxes.

    Each file is created once, so a merge that runs twice changes nothing.
    """
    facts = facts_of(store, submission.id)
    results: list[BoxResult] = []
    for shard, _ in enumerate(shards(facts)):
        path = store.shard_path(submission.id, shard)
        if not store.has(path):
            raise InternalError(f"the result of shard {shard} is missing", code="shard_missing")
        results.append(BoxResult.load(path))
        # Whether later boxes were left out depends on when this one was known.
        if results[-1].verdict == "violated":
            break
    wall_s = 0.0 if started_at is None else max(0.0, now() - seconds(started_at))
    submission = submission.model_copy(update={"model": model_of(store, submission)})
    point = results[-1].counterexample
    held = None if point is None else _npz(point)
    digests = {"samples_digest": digest_of(b"")}
    if held is not None:
        digests["counterexamples_digest"] = digest_of(held)
    asked = _property(store.prepared_dir(submission.id))
    report = build_property_report(
        submission, facts, results, asked, wall_s=wall_s, digests=digests
    )
    store.create(store.samples_path(submission.id), b"")
    if held is not None:
        store.create(store.counterexamples_path(submission.id), held)
    store.create_json(store.report_path(submission.id), report)
    return len(shards(facts))


def _npz(point: Counterexample) -> bytes:
    """x float32 [1, *shape] and y [1, outputs]."""
    file = io.BytesIO()
    np.savez_compressed(file, x=point.x[None], y=point.y[None])
    return file.getvalue()
