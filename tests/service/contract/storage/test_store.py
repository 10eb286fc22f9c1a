"""The store shows all of a file or none of it, and says so when the disk is full."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from service.contract.ids import is_job_id, new_job_id
from service.contract.schemas.problems import NotFound, StorageFull, TooLarge, Unavailable
from service.contract.storage.files import atomic_write, create_once, storage_errors
from service.contract.storage.store import Store


@pytest.fixture
def place(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def test_an_upload_is_named_by_its_content_and_kept_once(place: Store) -> None:
    data = os.urandom(3_000_000)
    for _ in range(2):
        with place.writer(limit=10**7) as writer:
            for start in range(0, len(data), 70_000):
                writer.write(data[start : start + 70_000])
            blob = writer.publish()
    assert blob.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert place.blob_path(blob.digest).read_bytes() == data
    assert len([path for path in (place.data_dir / "blobs").rglob("*") if path.is_file()]) == 1
    assert list(place.folder("tmp").iterdir()) == []


def test_an_upload_that_is_not_published_leaves_nothing(place: Store) -> None:
    with place.writer(limit=10) as writer:
        writer.write(b"0123456789")
        with pytest.raises(TooLarge):
            writer.write(b"x")
    assert list(place.folder("tmp").iterdir()) == []


def test_uploads_of_dead_processes_are_swept_and_those_under_way_are_not(place: Store) -> None:
    with place.writer(limit=10) as writer:
        abandoned = place.folder("tmp") / "abandoned.upload"
        abandoned.write_bytes(b"x")
        os.utime(abandoned, (0, 0))
        left = place.folder("tmp") / "tmpfolder"
        left.mkdir()
        (left / "weights").write_bytes(b"x")
        os.utime(left, (0, 0))
        young = place.folder("tmp") / "young"
        young.mkdir()
        place.sweep()
        assert set(place.folder("tmp").iterdir()) == {writer.path, young}


@pytest.mark.parametrize("identity", ["", "../x", "sha256:" + "g" * 64, "sha256:" + "A" * 64])
def test_what_is_no_digest_never_becomes_a_path(place: Store, identity: str) -> None:
    with pytest.raises(NotFound):
        place.blob_path(identity)
    assert place.record("models", identity) is None


@pytest.mark.parametrize("job_id", ["", "..", "a/b", "0" * 25, "0" * 26 + "\n", "u" * 26])
def test_what_is_no_job_id_never_becomes_a_path(place: Store, job_id: str) -> None:
    with pytest.raises(NotFound):
        place.report_path(job_id)


def test_job_ids_sort_by_time_and_never_repeat() -> None:
    ids = [new_job_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(is_job_id(job_id) for job_id in ids)
    assert [job_id[:10] for job_id in ids] == sorted(job_id[:10] for job_id in ids)


def test_a_file_is_created_once_by_whoever_is_first(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    won: list[int] = []

    def create(number: int) -> None:
        if create_once(path, str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == str(won[0]).encode()
    assert len(won) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_to_be_full() -> None:
    # /dev/full answers every write with ENOSPC: a real error of a real system call.
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(StorageFull) as caught, storage_errors():
        os.write(descriptor, b"x")
    os.close(descriptor)
    assert (caught.value.status, caught.value.code) == (507, "storage_full")


def test_a_read_only_store_is_unavailable() -> None:
    with pytest.raises(Unavailable), storage_errors():
        raise OSError(errno.EROFS, "read-only")


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "value"
    atomic_write(path, b"0" * 100_000)
    stop = threading.Event()

    def write() -> None:
        for number in range(100):
            atomic_write(path, str(number % 10).encode() * 100_000)
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        data = path.read_bytes()
        assert len(data) == 100_000
        assert len(set(data)) == 1
    thread.join()


def test_one_upload_may_have_several_names(place: Store) -> None:
    identity = "sha256:" + "0" * 64
    record = {"id": identity, "name": "a", "created_at": "2026"}
    place.put_record("datasets", identity, record)
    assert place.put_record("datasets", identity, {**record, "name": "b"})["names"] == ["a", "b"]
    assert place.put_record("datasets", identity, {**record, "name": "a"})["names"] == ["a", "b"]
    assert [found["name"] for found in place.records("datasets")] == ["a"]


def test_a_training_adds_its_weights_to_an_upload_of_the_same_bytes(place: Store) -> None:
    digest, weights = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    record = {"id": digest, "name": "n.onnx", "created_at": "2026-01-01T00:00:00Z"}
    place.put_record("models", digest, record, owner="ann")
    trained = {**record, "files": {"weights": weights}}
    place.put_record("models", digest, trained, owner="bob", own=False)
    found = place.put_record("models", digest, record, owner="ann")
    assert found["files"] == {"weights": weights}
    assert (set(found["owners"]), found["own"]) == ({"ann", "bob"}, True)
