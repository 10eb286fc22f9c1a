"""The item ``train``: data by the limited child, the loop, and a model that can be certified."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.network import Network
from models.onnx_export import export_onnx
from service.contract.files import storage_errors
from service.contract.schemas import JobSubmission, ModelSource
from service.contract.settings import Settings
from service.contract.store import Store
from service.contract.times import now, rfc3339
from workers.jobs.certify import device_of
from workers.jobs.prepare import files_of, inspect_apart
from workers.jobs.trained import trained, trained_path
from workers.jobs.training_data import FILES
from workers.training.data import TrainingData
from workers.training.loop import train
from workers.training.run import Run

__all__ = ["train_model"]


def train_model(
    store: Store,
    settings: Settings,
    submission: JobSubmission,
    *,
    progress: Callable[[float, str], None],
    stop: Callable[[], bool],
    should_pause: Callable[[], bool],
) -> dict[str, Any]:
    """Train, keep the model, and say what came of it (``trained.json``).

    ``progress(epochs, message)``. Done already, by an earlier try: nothing to do. Raises
    TrainingError and Problem where the run cannot be made or went wrong, Paused.
    """
    done = trained(store, submission.id)
    if done is not None:
        return done
    plan = submission.training
    assert plan is not None
    data, facts = _data(store, settings, submission, stop=stop)
    torch.set_num_threads(settings.training_threads or len(os.sched_getaffinity(0)))
    folder = store.training_dir(submission.id)
    with storage_errors():
        network, history = train(
            Run.of_plan(plan),
            data,
            device=device_of(settings.device),
            checkpoint=folder / "checkpoint.safetensors",
            checkpoint_s=settings.checkpoint_interval_s,
            progress=progress,
            on_epoch=lambda rows: _show(store, folder / "history.json", rows),
            should_pause=should_pause,
        )
    model = _keep(store, submission, network.deployed())
    result = {
        "model": model.model_dump(mode="json"),
        "history": history,
        **facts,
        "architecture": plan["architecture"],
    }
    store.create_json(trained_path(store, submission.id), result)
    _forget(folder)
    return result


def _show(store: Store, path: Path, rows: list[dict[str, Any]]) -> None:
    """Let readers have the epochs so far."""
    store.write_json(path, {"history": rows})
    store.share(path)


def _data(
    store: Store, settings: Settings, submission: JobSubmission, *, stop: Callable[[], bool]
) -> tuple[TrainingData, dict[str, Any]]:
    """The samples, read once and kept with the job until it is trained."""
    plan, source = submission.training, submission.training_dataset
    assert plan is not None
    assert source is not None
    folder = store.training_dir(submission.id)
    if not (folder / "facts.json").exists():
        parameters = plan["hyperparameters"]
        assert isinstance(parameters, dict)
        request = {
            "training": True,
            "architecture": plan["architecture"],
            "activation": parameters["activation"],
            "held_out": plan["held_out"],
            "dataset": {
                "kind": source.kind,
                "files": files_of(store, source),
                "split": source.split,
            },
            "bounds": {
                "max_bytes": settings.max_inflated_bytes,
                "max_samples": settings.max_samples,
            },
        }
        inspect_apart(store, settings, submission.id, request, folder, FILES, stop=stop)
    facts = json.loads((folder / "facts.json").read_text())
    x = torch.from_numpy(np.load(folder / "x.npy", allow_pickle=False))
    y = torch.from_numpy(np.load(folder / "y.npy", allow_pickle=False))
    return TrainingData(x, y), facts


def _keep(store: Store, submission: JobSubmission, network: Network) -> ModelSource:
    """ONNX file (its digest is the model id) and state dict into the store, and their record."""
    onnx = _blob(store, export_onnx(network))
    with tempfile.TemporaryDirectory(dir=store.folder("tmp")) as folder:
        network.save(Path(folder))
        weights = _blob(store, (Path(folder) / "weights.safetensors").read_bytes())
    source = ModelSource(digest=onnx[0], format="onnx", name=f"{submission.id}.onnx", size=onnx[1])
    record = {
        "id": onnx[0],
        "format": "onnx",
        "name": source.name,
        "size": onnx[1],
        "created_at": rfc3339(now()),
        "files": {"weights": weights[0]},
    }
    store.put_record("models", onnx[0], record, owner=submission.principal, own=False)
    return source


def _blob(store: Store, content: bytes) -> tuple[str, int]:
    with store.writer(limit=len(content)) as writer:
        writer.write(content)
        blob = writer.publish()
    return blob.digest, blob.size


def _forget(folder: Path) -> None:
    """Remove what only the training needed."""
    for name in ("x.npy", "y.npy", "checkpoint.safetensors"):
        (folder / name).unlink(missing_ok=True)
