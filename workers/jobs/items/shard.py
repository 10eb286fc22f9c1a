"""The items ``shard:k``: certify a slice of the prepared samples and leave the rows on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Network
from models.onnx.deployed import DeployedNetwork
from service.contract.schemas.submissions import JobSubmission, Spec
from service.contract.settings import Settings
from service.contract.storage.files import atomic_write, storage_errors
from service.contract.storage.store import Store
from service.contract.sweeps import stage_of
from workers.jobs.hardware.barrier_waits import watch_barriers
from workers.jobs.hardware.device import device_name, device_of
from workers.jobs.hardware.memory import total_memory
from workers.jobs.inspection.valid_inputs import ValidInputs
from workers.jobs.items.prepare import facts_of, shards
from workers.jobs.items.work_budget import work_of
from workers.verification.answers import NO_ANSWER, answers
from workers.verification.cascade.run import certify_samples, deployed_answers
from workers.verification.results import AttackSettings, CertificationRequest, SampleResults
from workers.verification.rounding import answer_gap

__all__ = [
    "allowance",
    "certification_request",
    "certify_shard",
    "memory_limit",
    "work_limit",
]


@dataclass(frozen=True)
class PreparedSamples:
    """The prepared files, loaded; reused from shard to shard."""

    network: Network
    deployed: DeployedNetwork
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    index: NDArray[np.int64]
    logits: NDArray[np.float32]


def certify_shard(
    store: Store,
    settings: Settings,
    submission: JobSubmission,
    shard: int,
    *,
    progress: Callable[[int | None, str], None],
) -> int:
    """Write ``shards/<k>.npz`` and return its number of samples.

    progress(done, message) is called repeatedly, and may raise to abort; done is None before the
    first bound.

    A result that is there already is kept: same input, same seed, same answer.
    """
    facts = facts_of(store, submission.id)
    start, stop = shards(facts)[shard]
    path = store.shard_path(submission.id, shard)
    if store.has(path):
        return stop - start
    spec = Spec.model_validate(submission.spec)
    began = time.monotonic()
    prepared = _load(store.prepared_dir(submission.id))
    # A stage of a cascade answers with what it predicts, right or wrong, if that is certified.
    labels = prepared.y if stage_of(submission) is None else _predictions(prepared)
    rows = slice(start, stop)
    allowed_s = None if spec.time_budget_s is None else allowance(store, submission, facts, shard)
    if allowed_s is not None and allowed_s <= 0:
        results = _undecided(prepared, rows, spec)
    else:
        torch.set_num_threads(settings.worker_threads)
        watch_barriers(settings.worker_threads)
        device = device_of(settings.device)
        results = certify_samples(
            prepared.network.to(device),
            prepared.x[rows],
            labels[rows],
            prepared.index[rows],
            certification_request(spec, ValidInputs.of_facts(facts, clip=spec.clip)),
            deployed=prepared.deployed,
            deployed_logits=prepared.logits[rows],
            device=device,
            cache_dir=store.folder("cache"),
            progress=progress,
            deadline=None if allowed_s is None else began + allowed_s,
            memory=memory_limit(settings.memory_fraction, device),
            work=work_limit(spec, len(prepared.x)),
        )
        results.notes["device"] = device_name(device)
    with storage_errors():
        path.parent.mkdir(exist_ok=True)
    atomic_write(path, results.to_bytes())
    store.share(path)
    return stop - start


def memory_limit(fraction: float, device: torch.device) -> float:
    """Bytes that one bound may take: a share of the GPU's memory, or of the container's or host's.

    Whatever is in use, so that the same job gives the same report.
    """
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(fraction, device.index)
        return fraction * float(torch.cuda.get_device_properties(device).total_memory)
    return fraction * float(total_memory())


def work_limit(spec: Spec, samples: int) -> float | None:
    """The work of the job per sample, pooled by samples that are always in one shard: however the
    job is cut into shards."""
    work = work_of(spec)
    return None if work is None else work / samples


def certification_request(spec: Spec, inputs: ValidInputs) -> CertificationRequest:
    """The spec, and which inputs are valid, as the verifier's configuration."""
    attack = None if spec.attack is None else AttackSettings(**spec.attack.model_dump())
    return CertificationRequest(
        norm=spec.norm,
        epsilons=tuple(spec.epsilons),
        method=spec.method,
        effort=spec.effort,
        soundness=spec.soundness,
        deterministic=spec.deterministic,
        clip=inputs.clip,
        unit=inputs.unit,
        radius=spec.radius,
        attack=attack,
        seed=spec.seed,
        sample_time_s=spec.sample_time_s,
    )


def _predictions(prepared: PreparedSamples) -> NDArray[np.int64]:
    """What the deployed network answers, [samples]; the label where it answers with no class."""
    logits = torch.from_numpy(prepared.logits)
    found = answers(logits, gap=answer_gap(prepared.network.dropped_output)).numpy()
    return np.where(found == NO_ANSWER, prepared.y, found)


@lru_cache(maxsize=1)
def _load(folder: Path) -> PreparedSamples:
    """Network, deployed network and samples; the folder never changes once it is there."""
    facts = json.loads((folder / "facts.json").read_text())
    network = Network.load(folder)
    deployed = DeployedNetwork(
        (folder / "deployed.onnx").read_bytes(),
        network.input_shape,
        facts["normalization_outside"],
        largest=network.largest,
    )
    if facts.get("batch") == 1:
        deployed.one_by_one()
    with np.load(folder / "data.npz", allow_pickle=False) as data:
        return PreparedSamples(
            network, deployed, data["x"], data["y"], data["index"], data["logits"]
        )


def allowance(store: Store, submission: JobSubmission, facts: dict[str, Any], shard: int) -> float:
    """Seconds that a shard may take of the job's time budget, of which ``prepare`` took its part.

    The unspent time of finished shards is divided among all others by their samples, those in
    progress included. The share per sample never shrinks from one shard to the next, so shards that
    run at the same time cannot spend more than the budget together.
    """
    budget = submission.spec["time_budget_s"]
    assert isinstance(budget, int | float)
    left, open_samples = float(budget) - float(facts.get("prepare_s", 0.0)), 0
    for number, (start, stop) in enumerate(shards(facts)):
        path = store.shard_path(submission.id, number)
        if number != shard and store.has(path):
            left -= _seconds_of(path)
        else:
            open_samples += stop - start
    start, stop = shards(facts)[shard]
    return max(0.0, left) * (stop - start) / open_samples


@lru_cache(maxsize=20_000)
def _seconds_of(path: Path) -> float:
    """Worker seconds of a shard that is done; its file never changes."""
    with np.load(path, allow_pickle=False) as stored:
        texts = json.loads(stored["texts"].tobytes())
    return float(sum(texts["seconds"].values()))


def _undecided(prepared: PreparedSamples, rows: slice, spec: Spec) -> SampleResults:
    """Rows of the samples for which no time was left."""
    label = prepared.y[rows]
    count = len(label)
    gap = answer_gap(prepared.network.dropped_output)
    prediction, margin, correct = deployed_answers(prepared.logits[rows], label, gap)
    verdicts = ["undecided" if ok else "misclassified" for ok in correct.tolist()]
    nothing: NDArray[np.bool_] = np.zeros((count, len(spec.epsilons)), dtype=bool)
    notes: dict[str, Any] = {"budget_spent": True}
    return SampleResults(
        index=prepared.index[rows],
        label=label,
        prediction=prediction,
        margin=margin.numpy(),
        radius=np.full(count, 0.0 if spec.radius else np.nan),
        certified=nothing,
        falsified=nothing.copy(),
        method=verdicts,
        decided_by=[[verdict] * len(spec.epsilons) for verdict in verdicts],
        counterexamples={},
        seconds={},
        notes=notes,
    )
