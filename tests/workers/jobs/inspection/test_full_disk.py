"""A disk that fills while an upload is inspected is nobody's fault: the job waits until there is
room. The disk is a real one: a small tmpfs over the job's folder, in a mount namespace that only
the worker sees."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from tests.workers.jobs.conftest import Corridor, tiny_npz
from workers.jobs.inspection.sandbox import found_no_room
from workers.jobs.inspection.training_data import save_array
from workers.jobs.work_loop import WorkLoop

pytestmark = pytest.mark.usefixtures("forked_inspections")

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def in_small_disk(size: str, folder: Path, *command: str) -> list[str]:
    """The command line that runs ``command`` with a tmpfs of that size on ``folder``."""
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh"] + [
        size,
        str(folder),
        *command,
    ]


@pytest.fixture
def namespaces(tmp_path: Path) -> None:
    """Skips where the kernel or the container lets nobody make a mount namespace."""
    (tmp_path / "disk").mkdir()
    try:
        probe = in_small_disk("16k", tmp_path / "disk", "true")
        ended = subprocess.run(probe, capture_output=True, check=False, timeout=150)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if ended.returncode:
        pytest.skip(f"no mount namespace: {ended.stderr.decode()[:200]}")


@pytest.mark.usefixtures("namespaces")
def test_a_job_waits_for_room_and_then_goes_on(corridor: Corridor) -> None:
    data = tiny_npz(corridor.folder / "more.npz", samples=300)
    # 43 KB of pixels; most of the work is not what this is about.
    job = corridor.submit(data=data, samples=300, method="lipschitz", radius=False, attack=None)
    settings = corridor.settings.model_copy(update={"max_attempts": 1, "samples_per_shard": 300})
    program = f"from workers.jobs.work_loop import run; run({job.id!r})"
    ended = subprocess.run(
        in_small_disk("40k", corridor.store.job_dir(job.id), sys.executable, "-c", program),
        env={
            **os.environ,
            "CERTSERVE_DATA_DIR": str(settings.data_dir),
            "CERTSERVE_REDIS_URL": str(settings.redis_url),
            "CERTSERVE_SAMPLES_PER_SHARD": "300",
        },
        capture_output=True,
        check=False,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"storage_full" in ended.stderr
    state = corridor.ledger.get(job.id)
    assert state is not None
    assert state.status == "running"
    assert state.progress.message == "waiting: the disk that holds the data directory is full"
    # A worker with room takes it, once the pause is over.
    corridor.redis.zadd(f"certserve:job:{job.id}:free", {"prepare": 0})
    WorkLoop(settings, corridor.store, corridor.ledger, job.id).work()
    assert corridor.outcome(job, 0)["status"] == "succeeded"


def test_what_a_full_disk_is_known_by() -> None:
    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    assert found_no_room(caught.value)
    outer = RuntimeError("not written")
    outer.__cause__ = caught.value
    assert found_no_room(outer)
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert found_no_room(SafetensorError(full))
    assert not found_no_room(KeyError("a layer that somebody named (os error 28)"))
    assert not found_no_room(OSError(errno.EFBIG, "File too large"))


def test_an_array_says_why_it_was_not_written(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(12_000).reshape(3, 4_000))
    save_array(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            save_array(tmp_path / "b.npy", array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG


def test_a_file_beyond_the_limit_is_too_large(corridor: Corridor) -> None:
    # As bytes 10,800, as float32 four times that.
    job = corridor.submit(data=tiny_npz(corridor.folder / "more.npz", samples=300), samples=300)
    settings = corridor.settings.model_copy(update={"max_inflated_bytes": 20_000})
    WorkLoop(settings, corridor.store, corridor.ledger, job.id).work()
    outcome = corridor.outcome(job, 0)
    assert (outcome["status"], outcome["error"]["code"]) == ("failed", "too_large")
    assert "CERTSERVE_MAX_INFLATED_BYTES" in outcome["error"]["hint"]
