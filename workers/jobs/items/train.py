"""The item ``train``: data by the limited child, the loop, and a model that can be certified."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.checkpoints.state_dict import weights_of
from models.network import Network
from models.onnx.exporter.export import export_onnx
from service.contract.schemas.problems import TooLarge
from service.contract.schemas.submissions import JobSubmission, ModelSource, Spec
from service.contract.settings import Settings
from service.contract.storage.files import storage_errors
from service.contract.storage.store import Store
from service.contract.times import now, rfc3339
from workers.jobs.hardware.allocator import keep_freed_memory
from workers.jobs.hardware.barrier_waits import watch_barriers
from workers.jobs.hardware.device import device_of
from workers.jobs.inspection.training_data import FILES
from workers.jobs.items.prepare import files_of, inspect_apart
from workers.jobs.items.trained_model import held_samples, trained, trained_path
from workers.jobs.items.training_run import config_of, samples_in
from workers.jobs.parallel.launch import FOLDERS, Request, train_on_devices, trained_by
from workers.jobs.runtime.lease_renewer import ItemStopped
from workers.training.config import TrainingError
from workers.training.data import TrainingData
from workers.training.loop import History, Report, train

__all__ = ["check_length", "read_samples", "train_model"]

logger = logging.getLogger(__name__)

#: Seconds between two writes of the curve.
SHOWN_EVERY_S = 1.0

#: Folders of the compilers' caches, relative to the job's folder, unless the operator set them.
_COMPILED = {
    name: place
    for name, place in (
        ("TORCHINDUCTOR_CACHE_DIR", "compiled"),
        ("TRITON_CACHE_DIR", "compiled/triton"),
    )
    if name not in os.environ
}


def train_model(
    store: Store,
    settings: Settings,
    submission: JobSubmission,
    *,
    progress: Report,
    on_checkpoint: Callable[[], None] = lambda: None,
    stop: Callable[[], bool],
    should_pause: Callable[[], bool],
    data_folder: Path | None = None,
) -> dict[str, Any]:
    """Train, store the model, and write ``trained.json``.

    data_folder: where the samples are that several trainings share, or shall be; it is kept.

    ``progress(steps done, steps in all, message)``; ``on_checkpoint()`` is called after each
    checkpoint. Does nothing where an earlier try has finished. Raises TrainingError and Problem
    where the run is impossible or failed, Paused where it was stopped.
    """
    done = trained(store, submission.id)
    folder = store.training_dir(submission.id)
    if done is not None:
        # Its worker may have been killed before it had tidied up.
        _forget(folder)
        return done
    plan = submission.training
    assert plan is not None
    read = data_folder or folder / "data"
    data, facts = read_samples(store, settings, submission, read, stop=stop)
    _check(settings, submission, facts)
    config = config_of(plan)
    device = device_of(settings.device)
    threads = settings.training_threads or len(os.sched_getaffinity(0))
    checkpoint = folder / "checkpoint.safetensors"

    curve = _Curve(store, folder / "history.json")

    def run() -> tuple[Network, History]:
        if config.devices > 1:
            return run_on_devices()
        torch.set_num_threads(threads)
        watch_barriers(threads)
        keep_freed_memory()
        return train(
            config,
            data,
            device=device,
            checkpoint=checkpoint,
            checkpoint_s=settings.checkpoint_interval_s,
            progress=progress,
            on_epoch=curve.show,
            on_checkpoint=on_checkpoint,
            should_pause=should_pause,
        )

    def run_on_devices() -> tuple[Network, History]:
        _check_devices(config.devices, device)
        train_on_devices(
            Request(
                plan=plan,
                data=str(read),
                checkpoint=str(checkpoint),
                checkpoint_s=settings.checkpoint_interval_s,
                device=device.type,
                threads=max(1, threads // config.devices),
                limit_s=settings.rank_timeout_s,
                log_format=settings.log_format,
            ),
            devices=config.devices,
            folder=folder,
            progress=progress,
            on_epoch=curve.show,
            on_checkpoint=on_checkpoint,
            should_pause=should_pause,
        )
        return trained_by(checkpoint, config, len(data.x))

    _compile_in(folder)
    with storage_errors():
        try:
            network, history = run()
        except TrainingError as error:
            if error.code != "bad_checkpoint":
                raise
            # A checkpoint of a damaged disk or of another release: start the run over.
            logger.warning("job %s starts over: %s", submission.id, error)
            checkpoint.unlink()
            network, history = run()
        curve.write(history)
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


def _check_devices(wanted: int, device: torch.device) -> None:
    """Refuse where the settings promise more GPUs than torch sees."""
    seen = torch.cuda.device_count() if device.type == "cuda" else wanted
    if seen < wanted:
        raise TrainingError(
            "too_few_devices",
            f"{wanted} GPUs were asked for and this worker sees {seen}, although CERTSERVE_DEVICES "
            "names as many",
            hint="fewer devices; or ask the operator to correct CERTSERVE_DEVICES",
            field="devices",
        )


def _compile_in(folder: Path) -> None:
    """Keep the machine code of a compiled step in the job's own folder. The compiler's default is
    in /tmp under a name that anybody can guess; and one process may train several jobs, which must
    not load each other's code."""
    for name, place in _COMPILED.items():
        os.environ[name] = str(folder / place)


def _check(settings: Settings, submission: JobSubmission, facts: dict[str, Any]) -> None:
    """Refuse before the training what would fail after it or would take too long."""
    plan = submission.training
    assert plan is not None
    check_length(settings, config_of(plan).epochs, facts["samples"])
    if plan["held_out"] and submission.spec:
        held_samples(facts["held"], Spec.model_validate(submission.spec))


def check_length(settings: Settings, epochs: int, samples: int) -> None:
    """Raises TooLarge where a job would see more samples than one may."""
    if epochs * samples > settings.max_training_samples:
        raise TooLarge(
            f"{epochs} epochs of {samples} samples are more than a training may take "
            f"({settings.max_training_samples} samples in all)",
            code="training_too_long",
            hint="train fewer epochs; the limit is CERTSERVE_MAX_TRAINING_SAMPLES",
            field="epochs",
        )


class _Curve:
    """Writes the epochs so far, at most once a second: the file is written as a whole and
    durably."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store, self._path = store, path
        self._due = 0.0

    def show(self, rows: History) -> None:
        """Add a row; of many rows in a short time only the first is written at once, the others by
        ``write`` at the end."""
        if time.monotonic() >= self._due:
            self.write(rows)

    def write(self, rows: History) -> None:
        """Now."""
        self._store.write_json(self._path, {"history": rows})
        self._store.share(self._path)
        self._due = time.monotonic() + SHOWN_EVERY_S


def read_samples(
    store: Store,
    settings: Settings,
    submission: JobSubmission,
    folder: Path,
    *,
    stop: Callable[[], bool],
) -> tuple[TrainingData, dict[str, Any]]:
    """The samples, read once and kept in ``folder`` until the job is trained."""
    plan, source = submission.training, submission.training_dataset
    assert plan is not None
    assert source is not None
    store.job_dir(submission.id)
    with storage_errors():
        store.training_dir(submission.id).mkdir(exist_ok=True)
    if not (folder / "facts.json").exists():
        with storage_errors():
            folder.parent.mkdir(parents=True, exist_ok=True)
        parameters = plan["hyperparameters"]
        assert isinstance(parameters, dict)
        request = {
            "training": True,
            "architecture": plan["architecture"],
            "activation": parameters["activation"],
            "held_out": plan["held_out"],
            "report": _report_of(store, submission),
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
        if not (folder / "facts.json").exists():
            # The worker was asked to stop: this does not count as a try.
            raise ItemStopped("the worker stops while the data set is read")
    return samples_in(folder)


def _report_of(store: Store, submission: JobSubmission) -> dict[str, Any] | None:
    """The request of the certification that follows the training."""
    plan = submission.training
    assert plan is not None
    if submission.spec is None or not plan["certify"]:
        return None
    spec, test = Spec.model_validate(submission.spec), submission.dataset
    held_out = plan["held_out"] or test is None
    return {
        "normalization": None if spec.normalization is None else spec.normalization.model_dump(),
        "dataset": None
        if held_out or test is None
        else {"kind": test.kind, "files": files_of(store, test), "split": test.split},
        "selection": spec.samples if spec.indices is None else spec.indices,
        "clip": spec.clip,
        "field": "dataset" if test is None or test.id is None else "test_dataset",
    }


def _keep(store: Store, submission: JobSubmission, network: Network) -> ModelSource:
    """ONNX file (its digest is the model id) and state dict into the store, and their record."""
    onnx = _blob(store, export_onnx(network))
    weights = _blob(store, weights_of(network))
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
    """Remove what only the training needed, and the temporary files of killed processes."""
    for path in (folder / "data", folder / "compiled", *folder.glob(f"{FOLDERS}*")):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("*checkpoint.safetensors*"):
        path.unlink(missing_ok=True)
