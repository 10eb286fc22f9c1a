"""What a worker owns: what the settings say, else one GPU or every processor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.contract.settings import Settings
from workers.jobs.hardware.owned_devices import VISIBLE, hide_other_gpus, owned_devices


def test_a_worker_owns_what_is_named_else_one_gpu_or_every_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    processors = len(os.sched_getaffinity(0))
    named = Settings(device="cpu", devices="0, 3,1")  # type: ignore[arg-type]
    assert named.devices == (0, 3, 1)
    assert owned_devices(named, tmp_path) == 3
    for device in ("cpu", "auto"):
        assert owned_devices(Settings(device=device), tmp_path) == processors  # type: ignore[arg-type]
    assert owned_devices(Settings(device="cuda"), tmp_path) == 1
    (tmp_path / "nvidia0").touch()
    assert owned_devices(Settings(device="auto"), tmp_path) == 1
    assert owned_devices(Settings(device="cpu"), tmp_path) == processors
    monkeypatch.setenv(VISIBLE, "")
    assert owned_devices(Settings(device="auto"), tmp_path) == processors


@pytest.mark.parametrize("devices", ["0,0", "-1", "a"])
def test_devices_are_different_numbers(devices: str) -> None:
    with pytest.raises(ValidationError):
        Settings(devices=devices)  # type: ignore[arg-type]


def test_a_worker_sees_its_own_gpus_alone() -> None:
    two = Settings(device="cuda", devices=(2, 0))
    for before, after in ((None, "2,0"), ("5,GPU-ab,7", "7,5")):
        environment = {} if before is None else {VISIBLE: before}
        hide_other_gpus(two, environment)
        assert environment == {VISIBLE: after}
    with pytest.raises(ValueError, match="names GPU 2, but CUDA_VISIBLE_DEVICES has 2"):
        hide_other_gpus(two, {VISIBLE: "0,1"})
    for settings in (Settings(device="cuda"), Settings(device="cpu", devices=(0, 1))):
        environment = {}
        hide_other_gpus(settings, environment)
        assert not environment
    # Where all are hidden, a worker that may compute on the processor does.
    hide_other_gpus(Settings(device="auto", devices=(0, 1)), hidden := {VISIBLE: ""})
    assert hidden == {VISIBLE: ""}
