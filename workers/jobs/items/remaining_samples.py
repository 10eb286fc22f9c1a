"""What a stage of a cascade is trained on: the samples that no stage before it certifies.

A sample is left out once a stage is certified for its own prediction of it, right or wrong, since
that stage will answer it (Wong, Schmidt, Metzen, Kolter 2018). Who is certified is kept beside the
stage's model and grows as it is found out, so that a killed worker loses a few samples' work.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.onnx.deployed import DeployedNetwork
from models.onnx.importer import read_onnx_bytes
from service.contract.catalogue.methods import METHODS
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.files import storage_errors, sync_folder
from service.contract.storage.store import Store
from workers.jobs.hardware.barrier_waits import watch_barriers
from workers.jobs.hardware.device import device_of
from workers.jobs.inspection.training_data import save_array
from workers.jobs.items.shard import memory_limit
from workers.jobs.items.trained_model import model_of, trained
from workers.jobs.items.training_run import config_of, samples_in
from workers.training.data import TrainingData, pixels
from workers.training.loop import Paused, Report
from workers.verification.answers import answers
from workers.verification.cascade.run import BLOCK, certify_samples
from workers.verification.results import CertificationRequest

__all__ = ["leave_out_certified"]

#: Samples that are certified at a time: what a pause may lose.
PART = 4 * BLOCK


def leave_out_certified(
    store: Store,
    settings: Settings,
    runs: Sequence[JobSubmission],
    shared: Path,
    *,
    progress: Report,
    of: int,
    on_checkpoint: Callable[[], None],
    should_pause: Callable[[], bool],
) -> Path:
    """The folder of the samples for the last one of ``runs``, written if it is not there.

    ``runs``: the stages so far, all trained but the last; ``of``: how many there are to be;
    ``shared``: the folder of all samples. Raises InvalidInput (cascade_ended) where too few are
    left, Paused.
    """
    *earlier, run = runs
    folder = store.training_dir(run.id) / "data"
    if trained(store, run.id) is not None or (folder / "facts.json").exists():
        return folder
    data, facts = samples_in(shared)
    rows = np.arange(len(data.x))
    for number, stage in enumerate(earlier, 1):
        plan: dict[str, Any] = stage.training or {}
        steps = config_of(plan).epochs * data.steps(config_of(plan).batch_size)

        def say(done: int, total: int, number: int = number, steps: int = steps) -> None:
            message = f"stage {number} of {of}: certifying the training samples, {done} of {total}"
            progress(number * steps, of * steps, message)
            if should_pause():
                raise Paused

        certified = _certified(store, settings, stage, data, rows, say, on_checkpoint)
        rows = np.setdiff1d(rows, certified)
    _check_enough(run, len(rows), len(data.x))
    store.job_dir(run.id)
    with storage_errors():
        folder.parent.mkdir(exist_ok=True)
        fresh = folder.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        save_array(fresh / "x.npy", data.x.numpy()[rows])
        save_array(fresh / "y.npy", data.y.numpy()[rows])
        (fresh / "facts.json").write_text(json.dumps({**facts, "samples": len(rows)}))
        fresh.rename(folder)
        sync_folder(folder.parent)
    return folder


def _check_enough(run: JobSubmission, left: int, samples: int) -> None:
    config = config_of(run.training or {})
    if left >= config.batch_size + config.validation_samples:
        return
    raise InvalidInput(
        f"the cascade ended: of {samples} training samples {left} are left that no stage before "
        f"certifies, fewer than a batch of {config.batch_size} and {config.validation_samples} "
        "validation samples",
        code="cascade_ended",
        hint="what there is of it is complete; a smaller batch_size or fewer validation_samples "
        "would train one more stage",
        field="recipe.options.cascade_stages",
    )


def _certified(
    store: Store,
    settings: Settings,
    stage: JobSubmission,
    data: TrainingData,
    rows: NDArray[np.int64],
    say: Callable[[int, int], None],
    on_checkpoint: Callable[[], None],
) -> NDArray[np.int64]:
    """Those of ``rows`` for which the stage is certified for its own prediction."""
    path = store.training_dir(stage.id) / "certified.json"
    found = store.read_json(path) or {"done": 0, "rows": []}

    def keep() -> None:
        store.write_json(path, found)
        store.share(path)
        on_checkpoint()

    if found["done"] < len(rows):
        certify, kept = _certifier(store, settings, stage), time.monotonic()

        def told(more: int) -> None:
            say(found["done"] + more, len(rows))

        try:
            while found["done"] < len(rows):
                part = rows[found["done"] : found["done"] + PART]
                x = pixels(data.x[torch.from_numpy(part)]).numpy()
                proved = part[certify(x, part, told)].tolist()
                found = {"done": found["done"] + len(part), "rows": [*found["rows"], *proved]}
                if time.monotonic() - kept > settings.checkpoint_interval_s:
                    keep()
                    kept = time.monotonic()
        finally:
            keep()
    return np.array(found["rows"], dtype=np.int64)


#: (x [n, *shape] in [0, 1], their places, progress(done)) -> certified bool [n].
_Certify = Callable[
    [NDArray[np.float32], NDArray[np.int64], Callable[[int], None]], NDArray[np.bool_]
]


def _certifier(store: Store, settings: Settings, stage: JobSubmission) -> _Certify:
    """Certifies a stage's own predictions at the training's epsilon, soundly."""
    digest = model_of(store, stage).digest
    path = store.blob_path(digest)
    store.has(path)
    # A file of our own making: no limited child has to read it.
    onnx = path.read_bytes()
    device = device_of(settings.device)
    network = read_onnx_bytes(onnx).network.to(device)
    deployed = DeployedNetwork(onnx, network.input_shape, None, largest=network.largest)
    threads = settings.training_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    watch_barriers(threads)
    plan: dict[str, Any] = stage.training or {}
    request = CertificationRequest(
        norm=plan["norm"],
        epsilons=(Fraction(plan["epsilon"]),),
        method=_method(stage.spec),
        clip=bool(stage.spec.get("clip", True)),
        radius=False,
        attack=None,
    )

    def certify(
        x: NDArray[np.float32], places: NDArray[np.int64], told: Callable[[int], None]
    ) -> NDArray[np.bool_]:
        logits = deployed(x)
        # Without an answer any label will do: none is certified.
        predicted = answers(torch.from_numpy(logits)).clamp(min=0).numpy()
        results = certify_samples(
            *(network, x, predicted, places, request),
            deployed=deployed,
            deployed_logits=logits,
            device=device,
            cache_dir=store.folder("cache"),
            progress=lambda done, _: told(done or 0),
            memory=memory_limit(settings.memory_fraction, device),
        )
        return results.certified[:, 0]

    return certify


def _method(spec: Mapping[str, Any]) -> str:
    """The certification's own method where it costs no more than CAP's dual, else that: there are
    many more training samples than test samples."""
    dual = METHODS["cap"]
    asked = METHODS.get(str(spec.get("method")), dual)
    cost, most = asked.expected_passes, dual.expected_passes or 0.0
    return dual.name if cost is None or cost > most else asked.name
