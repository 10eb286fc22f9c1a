"""A real service: supervisor, embedded Redis, API and workers as processes, spoken to over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.live_service import SAMPLES, LiveService, finished, submit
from tests.service.webhooks.receiver import SECRET
from tests.workers.jobs.conftest import tiny_npz, tiny_onnx


@pytest.fixture(scope="session")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny network and made-up images that it classifies right, mostly."""
    folder = tmp_path_factory.mktemp("uploads")
    model, data = tiny_onnx(folder / "tiny.onnx"), tiny_npz(folder / "tiny.npz", samples=SAMPLES)
    import onnxruntime

    with np.load(data) as arrays:
        x = arrays["x"]
    pixels = (x.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": pixels})
    np.savez(data, x=x, y=np.asarray(logits).argmax(1))
    return model, data


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., LiveService]]:
    """Makes services; whatever they started is ended afterwards."""
    made: list[LiveService] = []

    def make(name: str = "data", **environment: str) -> LiveService:
        made.append(LiveService(tmp_path / name, **environment))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture(scope="session")
def calm_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service that lives as long as the tests; every one of its parts may be killed."""
    service = LiveService(
        tmp_path_factory.mktemp("calm") / "data",
        # Trainings may be ended at any time as well.
        CERTSERVE_CHECKPOINT_INTERVAL_S="0.2",
        CERTSERVE_TRAINING_THREADS="1",
        CERTSERVE_WEBHOOK_SECRET=SECRET,
        CERTSERVE_WEBHOOK_ALLOW="127.0.0.0/8",
        CERTSERVE_WEBHOOK_PAUSE_S="1",
    )
    service.start()
    yield service
    service.close()


@pytest.fixture(scope="session")
def calm_report(calm_service: LiveService, uploads: tuple[Path, Path]) -> dict[str, Any]:
    """The report of the slow job when nobody is killed."""
    return finished(calm_service, submit(calm_service, uploads))
