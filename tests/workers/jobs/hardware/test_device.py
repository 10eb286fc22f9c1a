"""Which device a worker takes, and that it takes no job where that one does not work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.workers.jobs.conftest import Corridor
from workers.jobs.hardware.device import DeviceMissing, device_name, device_of
from workers.jobs.hardware.device_check import out_of_order
from workers.jobs.runtime.worker import CertificationWorker, rq_connection

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")


def test_a_gpu_is_named_with_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    # What torch.cuda.set_per_process_memory_fraction does not do without.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert device_of("auto") == device_of("cuda") == torch.device("cuda", 0)
    assert device_of("auto").index == 0
    assert device_of("cpu") == torch.device("cpu")


@without_gpu
def test_auto_is_a_cpu_where_there_is_no_gpu_and_cuda_an_error() -> None:
    assert device_name(device_of("auto")) == "cpu"
    with pytest.raises(DeviceMissing, match="torch sees no GPU"):
        device_of("cuda")


@without_gpu
def test_a_worker_whose_gpu_is_missing_takes_no_job() -> None:
    assert out_of_order("auto") is out_of_order("cpu") is None
    reason = out_of_order("cuda")
    assert reason is not None
    assert reason.startswith("CERTSERVE_DEVICE is cuda, but torch sees no GPU")
    worker = subprocess.run(
        [sys.executable, "-m", "workers.jobs.runtime.worker"],
        env={**os.environ, "CERTSERVE_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert worker.returncode == 1
    assert reason in worker.stderr
    assert "Traceback" not in worker.stderr


@without_gpu
def test_a_worker_stops_when_its_gpu_has_failed(corridor: Corridor) -> None:
    settings = corridor.settings
    worker = CertificationWorker(
        [settings.queue_name], connection=rq_connection(settings), prepare_for_work=False
    )
    worker.look_at_device()
    assert worker._stop_requested
