"""Cancel, retry and delete over HTTP; what they promise holds when Redis forgets everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from redis import Redis

from service.contract.ledger.ledger import Lease, Ledger, NoWork
from service.contract.outcomes import conclude, follow
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.journal import Journal, JournalReader
from service.contract.storage.store import Store
from tests.service.conftest import eventually

Make = Callable[..., JobSubmission]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"reconcile_interval_s": 0.1})


@pytest.fixture
def accepted(store: Store, ledger: Ledger, make_submission: Make) -> Iterator[JobSubmission]:
    """A job in journal and ledger."""
    journal = Journal(store.folder("journal"))
    job = make_submission()
    journal.append(job).result()
    ledger.create(job)
    yield job
    journal.close()


def test_a_queued_job_is_cancelled_at_once_and_for_good(
    api: httpx.Client, ledger: Ledger, redis: Redis, accepted: JobSubmission
) -> None:
    url = f"/jobs/{accepted.id}"
    answer = api.post(f"{url}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert ledger.lease(accepted.id, worker="w") == NoWork("finished")
    again = api.post(f"{url}/cancel")
    assert (again.status_code, again.json()) == (202, answer.json())
    redis.flushall()
    eventually(ledger.memory.complete)
    assert ledger.get(accepted.id) is not None
    assert api.get(url).json() == answer.json()
    assert ledger.index.active() == set()
    report = api.get(f"{url}/report")
    assert (report.status_code, report.json()["code"]) == (409, "no_report")


def test_a_running_job_loses_its_leases_when_it_is_cancelled(
    api: httpx.Client, ledger: Ledger, accepted: JobSubmission
) -> None:
    lease = ledger.lease(accepted.id, worker="w")
    assert isinstance(lease, Lease)
    assert ledger.holds(lease)
    shown = api.post(f"/jobs/{accepted.id}/cancel").json()
    assert shown["status"] == "cancelled"
    assert shown["started_at"] <= shown["finished_at"]
    renewal = ledger.renew(lease)
    assert (renewal.valid, renewal.cancel) == (False, True)
    assert not ledger.holds(lease)
    assert ledger.commit(lease, "late") == "finished"


def test_a_retried_job_runs_again_under_its_id_whatever_is_lost(
    api: httpx.Client, store: Store, ledger: Ledger, redis: Redis, accepted: JobSubmission
) -> None:
    url = f"/jobs/{accepted.id}"
    early = api.post(f"{url}/retry")
    assert (early.status_code, early.json()["code"]) == (409, "not_retryable")
    straggler = ledger.lease(accepted.id, worker="w")
    assert isinstance(straggler, Lease)
    conclude(store, ledger, accepted, "failed", error=InvalidInput("no", code="invalid_onnx"))
    store.shards_dir(accepted.id).mkdir()
    answer = api.post(f"{url}/retry")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.json()["error"] is None
    assert not store.shards_dir(accepted.id).exists()  # of a failed attempt nothing is trusted
    lease = ledger.lease(accepted.id, worker="w")
    assert isinstance(lease, Lease)
    assert lease.token > straggler.token
    assert not ledger.renew(straggler).valid
    # A straggler of the first attempt cannot end the second.
    assert conclude(store, ledger, accepted, "failed", error=InvalidInput("late")) == "unknown"
    assert api.get(url).json()["status"] == "running"
    redis.flushall()
    # Entered line by line of the journal: the first attempt, then the second.

    def second() -> bool:
        state = ledger.get(accepted.id)
        return state is not None and state.submission.attempt == 2

    eventually(second)
    assert api.get(url).json()["status"] == "queued"
    state = ledger.get(accepted.id)
    assert state is not None
    conclude(store, ledger, state.submission, "succeeded", samples=3)
    assert api.get(url).json()["status"] == "succeeded"
    redis.flushall()
    eventually(lambda: ledger.get(accepted.id) is not None)
    assert api.get(url).json()["status"] == "succeeded"
    assert api.post(f"{url}/retry").status_code == 409


def test_a_retry_that_only_reached_the_journal_is_carried_out(
    api: httpx.Client, store: Store, ledger: Ledger, accepted: JobSubmission
) -> None:
    """As if the API had died right behind the journal."""
    conclude(store, ledger, accepted, "cancelled")
    store.shards_dir(accepted.id).mkdir()
    journal = Journal(store.folder("journal"))
    journal.append(accepted.model_copy(update={"attempt": 2}), op="retry").result()
    journal.close()
    eventually(lambda: api.get(f"/jobs/{accepted.id}").json()["status"] == "queued")
    assert store.shards_dir(accepted.id).exists()  # of a cancelled attempt everything is kept
    assert follow(store, ledger, accepted.id) == "unknown"


def test_deleting_cancels_first_and_removes_then(
    api: httpx.Client, store: Store, ledger: Ledger, redis: Redis, accepted: JobSubmission
) -> None:
    url = f"/jobs/{accepted.id}"
    first = api.delete(url)
    assert (first.status_code, first.json()["status"]) == (202, "cancelled")
    second = api.delete(url)
    assert (second.status_code, second.content) == (204, b"")
    for _ in range(2):
        for gone in (api.get(url), api.delete(url), api.post(f"{url}/retry")):
            assert (gone.status_code, gone.json()["code"]) == (404, "unknown_job")
        assert api.get("/jobs").json()["items"] == []
        assert not (store.data_dir / "jobs" / accepted.id).exists()
        assert not any(accepted.id in key for key in redis.keys("certserve:job:*"))
        redis.flushall()
        eventually(ledger.memory.complete)  # the whole journal was read again
    assert list(JournalReader(store.folder("journal")).read()) == []


@pytest.mark.parametrize("call", ["cancel", "retry"])
def test_unknown_jobs_are_said_to_be_unknown(api: httpx.Client, call: str) -> None:
    for job_id in ("0" * 26, "nope"):
        assert api.post(f"/jobs/{job_id}/{call}").status_code == 404
        assert api.delete(f"/jobs/{job_id}").status_code == 404
