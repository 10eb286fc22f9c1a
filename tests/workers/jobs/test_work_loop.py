"""A wake-up job takes a job from its upload to its report, or says what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from check.verify import main as check
from service.contract.ledger.leases import Lease
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from tests.workers.jobs.conftest import Corridor, tiny_npz, tiny_onnx
from tests.workers.jobs.work import work
from workers.jobs.hardware.device_check import DEVICE_LOST
from workers.jobs.items.merge import digest_of

pytestmark = pytest.mark.usefixtures("forked_inspections")


def test_from_upload_to_report(corridor: Corridor, capsys: pytest.CaptureFixture[str]) -> None:
    job = corridor.submit()
    work(corridor, job.id)
    outcome = corridor.outcome(job, 0)
    assert outcome["status"] == "succeeded", outcome["error"]
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    assert report["dataset"]["samples"] == 30
    assert report["parity"]["max_difference"] <= report["parity"]["budget"]
    for row in report["results"]:
        assert row["certified_accuracy"] <= row["attack_accuracy"] <= report["clean_accuracy"]
    assert len(corridor.store.samples_path(job.id).read_text().splitlines()) == 30
    proofs = corridor.store.certificate_path(job.id)
    assert report["certificate_digest"] == digest_of(proofs.read_bytes())
    assert check([str(proofs), "--model", str(corridor.folder / "tiny.onnx")]) == 0
    said = capsys.readouterr().out
    assert f"{report['dataset']['samples']} samples, l2" in said
    state = corridor.ledger.get(job.id)
    assert state is not None
    assert (state.status, state.progress.done, state.progress.total) == ("succeeded", 30, 30)


def test_a_failed_gpu_ends_the_process_with_its_item_in_hand(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import workers.jobs.items.shard

    ended = []

    def fail(*_: Any, **__: Any) -> int:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    def leave(status: int) -> None:
        ended.append(status)
        raise SystemExit

    monkeypatch.setattr(workers.jobs.items.shard, "certify_shard", fail)
    monkeypatch.setattr(os, "_exit", leave)
    job = corridor.submit()
    with pytest.raises(SystemExit):
        work(corridor, job.id)
    assert ended == [DEVICE_LOST]
    # Neither failed nor given back: that is for the parent, which reads the note.
    state = corridor.ledger.get(job.id)
    assert state is not None
    assert state.status == "running"


def test_a_small_job_overtakes_between_two_items(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import workers.jobs.items.shard

    certify_shard, shards, small = workers.jobs.items.shard.certify_shard, [], []

    def note(store: Store, settings: Settings, submission: JobSubmission, *a: int, **o: Any) -> int:
        if not small:
            small.append(corridor.submit(samples=5))
        shards.append(submission.id)
        return certify_shard(store, settings, submission, *a, **o)

    monkeypatch.setattr(workers.jobs.items.shard, "certify_shard", note)
    large = corridor.submit()
    work(corridor, large.id)
    assert shards == [large.id, small[0].id, large.id, large.id]
    for job in (large, small[0]):
        assert corridor.outcome(job, 0)["status"] == "succeeded"


def test_a_job_that_cannot_be_read_holds_up_no_other(corridor: Corridor) -> None:
    strange, job = corridor.submit(samples=1), corridor.submit()
    corridor.redis.hset(f"certserve:job:{strange.id}", "submission", '{"from": "the future"}')
    work(corridor, strange.id)
    assert corridor.outcome(job, 0)["status"] == "succeeded"


def test_the_same_job_gives_the_same_result(corridor: Corridor) -> None:
    """Digest for digest with the same shards; the same verdicts and radii with other shards."""
    reports = []
    for size in (10, 10, 30):
        corridor.settings = corridor.settings.model_copy(update={"samples_per_shard": size})
        job = corridor.submit()
        work(corridor, job.id)
        assert corridor.outcome(job, 0)["status"] == "succeeded"
        report = corridor.store.read_json(corridor.store.report_path(job.id))
        assert report is not None
        reports.append(report)
    first, again, whole = reports
    assert first["result_digest"] == again["result_digest"]
    assert first["results"] == whole["results"]
    assert first["radius"]["mean"] == pytest.approx(whole["radius"]["mean"], rel=1e-9)


def test_finished_work_is_not_done_again(corridor: Corridor) -> None:
    """A Redis that lost everything: prepared files and shards on disk are taken as they are."""
    job = corridor.submit()
    work(corridor, job.id)
    before = {
        path: path.stat().st_mtime_ns
        for path in corridor.store.job_dir(job.id).rglob("*")
        if path.is_file()
    }
    corridor.store.outcome_path(job.id).unlink()
    corridor.redis.flushall()
    corridor.ledger.create(job)
    work(corridor, job.id)
    assert corridor.outcome(job, 0)["status"] == "succeeded"
    changed = [path.name for path, then in before.items() if path.stat().st_mtime_ns != then]
    assert changed == ["outcome.json"]


def broken(corridor: Corridor, what: str) -> tuple[Path, Path]:
    model, data = tiny_onnx(corridor.folder / "m.onnx"), tiny_npz(corridor.folder / "d.npz")
    if what == "protobuf":
        model.write_bytes(b"\x08\x07" + b"no model at all" * 9)
    elif what == "nan weights":
        graph = onnx.load(str(model))
        values = numpy_helper.to_array(graph.graph.initializer[0]).copy()
        values[0] = np.nan
        graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w0"))
        onnx.save(graph, str(model))
    elif what == "operator":
        graph = onnx.load(str(model))
        graph.graph.node[1].op_type = "Tan"
        onnx.save(graph, str(model))
    elif what == "labels":
        np.savez(data, x=np.zeros((4, 6, 6, 1), dtype=np.uint8), y=np.array([0, 1, 2, 3]))
    elif what == "shape":
        np.savez(data, x=np.zeros((4, 7, 7, 1), dtype=np.uint8), y=np.zeros(4, dtype=int))
    elif what == "range":
        np.savez(data, x=np.full((4, 1, 6, 6), 200.0), y=np.zeros(4, dtype=int))
    elif what == "empty":
        np.savez(data, x=np.zeros((0, 1, 6, 6)), y=np.zeros(0, dtype=int))
    return model, data


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("protobuf", "invalid_onnx"),
        ("nan weights", "non_finite_weights"),
        ("operator", "unsupported_operator"),
        ("labels", "label_out_of_range"),
        ("shape", "shape_mismatch"),
        ("range", "sample_out_of_range"),
        ("empty", "empty_dataset"),
    ],
)
def test_bad_uploads_end_the_job_with_a_problem(corridor: Corridor, what: str, code: str) -> None:
    job = corridor.submit(*broken(corridor, what))
    work(corridor, job.id)
    outcome = corridor.outcome(job, 0)
    assert outcome["status"] == "failed"
    assert outcome["error"]["code"] == code
    assert not corridor.store.prepared_dir(job.id).exists()
    assert not list(corridor.store.job_dir(job.id).glob(".inspect-*"))


def test_inspection_out_of_memory(corridor: Corridor) -> None:
    corridor.settings = corridor.settings.model_copy(
        update={"inspection_memory_bytes": 300 * 2**20}
    )
    job = corridor.submit()
    work(corridor, job.id)
    assert corridor.outcome(job, 0)["error"]["code"] == "too_large"


def test_labels_may_be_missing(corridor: Corridor) -> None:
    data = corridor.folder / "d.npz"
    np.savez(data, x=np.zeros((4, 1, 6, 6), dtype=np.uint8))
    job = corridor.submit(data=data)
    work(corridor, job.id)
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    assert report["clean_accuracy"] is None


def test_unexpected_exceptions_are_tries(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import workers.jobs.items.shard

    calls = []

    def fail(*arguments: object, **options: object) -> None:
        calls.append(1)
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(workers.jobs.items.shard, "certify_samples", fail)
    job = corridor.submit()
    work(corridor, job.id)
    outcome = corridor.outcome(job, 0)
    assert outcome["error"]["code"] == "internal_error"
    assert "by design" in outcome["error"]["detail"]
    assert len(calls) >= 3


def test_broken_promises_fail_loudly_at_once(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import workers.jobs.items.shard
    from workers.verification.cascade.run import SoundnessViolation

    def fail(*arguments: object, **options: object) -> None:
        raise SoundnessViolation("certified and broken")

    monkeypatch.setattr(workers.jobs.items.shard, "certify_samples", fail)
    job = corridor.submit()
    work(corridor, job.id)
    assert corridor.outcome(job, 0)["error"]["status"] == 500


def test_a_stale_lease_does_not_block_and_a_late_commit_is_welcome(corridor: Corridor) -> None:
    corridor.settings = corridor.settings.model_copy(update={"lease_ttl_s": 0.5})
    slow = type(corridor)(corridor.folder, corridor.settings)
    job = corridor.submit()
    lease = slow.ledger.lease(job.id, worker="slow")
    assert isinstance(lease, Lease)
    work(slow, job.id)
    assert corridor.outcome(job, 0)["status"] == "succeeded"
    assert slow.ledger.commit(lease, "late") == "finished"
    slow.redis.close()


def test_time_budget_leaves_the_rest_undecided(corridor: Corridor) -> None:
    job = corridor.submit(time_budget_s=1e-6)
    work(corridor, job.id)
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    assert report["budget_spent"] is True


def test_cancelled_jobs_end_cancelled(corridor: Corridor) -> None:
    job = corridor.submit()
    corridor.redis.hset(f"certserve:job:{job.id}", "cancel", "1")
    work(corridor, job.id)
    assert corridor.outcome(job, 0)["status"] == "cancelled"
