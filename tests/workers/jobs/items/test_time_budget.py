"""A time budget is the job's: what is open when it is spent is undecided, and the job succeeds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from service.contract.schemas.job_records import Estimate
from tests.workers.jobs.conftest import Corridor, tiny_npz
from workers.jobs.items.prepare import facts_of, prepare
from workers.jobs.items.shard import allowance, certify_shard
from workers.jobs.items.work_budget import WORK_PER_JOB
from workers.jobs.work_loop import WorkLoop
from workers.verification.cascade import progress
from workers.verification.results import EFFORTS, SampleResults

pytestmark = pytest.mark.usefixtures("forked_inspections")

#: Minutes of attack on every sample, if nobody stops it.
LONG = {"attack": {"steps": 300, "restarts": 1, "audit": 1.0, "seed": 0}}


def certified(corridor: Corridor, samples: int, **spec: object) -> dict[str, Any]:
    """The report."""
    job = corridor.submit(data=tiny_npz(corridor.folder / "many.npz", samples=samples), **spec)
    WorkLoop(corridor.settings, corridor.store, corridor.ledger, job.id).work()
    assert corridor.outcome(job, 0)["status"] == "succeeded"
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    return report


def test_a_spent_budget_leaves_samples_undecided(corridor: Corridor) -> None:
    report = certified(corridor, 100, time_budget_s=0.001, **LONG)
    assert report["budget_spent"] is True
    assert all(row["undecided"] > 0 for row in report["results"])


def test_a_large_budget_changes_nothing(corridor: Corridor) -> None:
    # More than any machine takes: 11 days.
    with_budget = certified(corridor, 15, time_budget_s=1e6, attack=None)
    without = certified(corridor, 15, attack=None)
    assert with_budget["budget_spent"] is without["budget_spent"] is False
    assert with_budget["results"] == without["results"]


def test_the_effort_sets_the_work_and_the_report_tells_what_is_left_open(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(WORK_PER_JOB) == set(EFFORTS)
    assert WORK_PER_JOB["quick"] < WORK_PER_JOB["standard"] < WORK_PER_JOB["exhaustive"]
    # Too little for any bound that is counted.
    monkeypatch.setitem(WORK_PER_JOB, "quick", 1.0)
    usual, quick = (
        certified(corridor, 10, attack=None, effort=effort) for effort in ("standard", "quick")
    )
    assert (usual["spec"]["effort"], quick["spec"]["effort"]) == ("standard", "quick")
    told = [any('"quick" was spent' in s for s in report["warnings"]) for report in (usual, quick)]
    assert told == [False, True]
    assert quick["notes"]["work_spent"] is True
    pairs = zip(quick["results"], usual["results"], strict=True)
    assert all(less["certified"] <= more["certified"] for less, more in pairs)


def test_preparing_counts_and_where_it_takes_all_the_rest_is_undecided(corridor: Corridor) -> None:
    job = corridor.submit(time_budget_s=1e-6)
    prepare(corridor.store, corridor.settings, job)
    facts = facts_of(corridor.store, job.id)
    told = Estimate.model_validate(facts["estimate"])
    assert told.samples == facts["samples"]
    assert 0 < told.worker_s < told.forward_passes
    # Nothing was compared with the deployed network, so nothing may be certified.
    assert facts["parity"]["unchecked"] == facts["samples"]
    assert facts["prepare_s"] > 1e-6
    assert any("before any bound ran" in sentence for sentence in facts["warnings"])
    assert allowance(corridor.store, job, facts, 0) == 0.0
    job = corridor.submit(time_budget_s=10.0)
    facts = {"samples": 20, "samples_per_shard": 10, "prepare_s": 4.0}
    assert allowance(corridor.store, job, facts, 0) == 3.0


def test_a_shard_names_the_bound_at_work_and_its_open_samples(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    job = corridor.submit(method="crown", epsilons=["2/255", 0.5], radius=False)
    prepare(corridor.store, corridor.settings, job)
    said: list[tuple[int | None, str]] = []
    certify_shard(
        corridor.store,
        corridor.settings,
        job,
        0,
        progress=lambda done, message: said.append((done, message)),
    )
    form = r"(operator norms|(crown|attack|audit) at (2/255|1/2): \d+ of 10 samples open.*)"
    assert all(re.fullmatch(form, message) for _, message in said)
    done = [count for count, _ in said if count is not None]
    assert done == sorted(done)
    assert said[0][0] is None
    assert done[-1] == 10


def test_who_is_stopped_inside_a_bound_leaves_no_result(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)

    class Stopped(BaseException):
        pass

    def stop(done: int | None, message: str) -> None:
        if message.startswith("crown"):
            raise Stopped

    # Without labels every sample is one to certify.
    images = corridor.folder / "images.npz"
    np.savez(images, x=np.load(tiny_npz(corridor.folder / "labelled.npz"))["x"])
    job = corridor.submit(data=images, method="crown", attack=None)
    prepare(corridor.store, corridor.settings, job)
    with pytest.raises(Stopped):
        certify_shard(corridor.store, corridor.settings, job, 0, progress=stop)
    assert not corridor.store.has(corridor.store.shard_path(job.id, 0))


@pytest.mark.parametrize("seed", range(5))
def test_shards_never_promise_more_than_there_is(corridor: Corridor, seed: int) -> None:
    """Shards begin and end in any order, each uses any part of what it was allowed."""
    rng = np.random.default_rng(seed)
    job = corridor.submit(time_budget_s=10.0)
    facts = {"samples": 95, "samples_per_shard": 10}
    corridor.store.job_dir(job.id)
    corridor.store.shards_dir(job.id).mkdir()
    waiting, running, spent = list(range(10)), {}, 0.0
    while waiting or running:
        if waiting and (not running or rng.random() < 0.6):
            shard = waiting.pop(0)
            running[shard] = allowance(corridor.store, job, facts, shard)
            assert running[shard] > 0
        else:
            shard = int(rng.choice(list(running)))
            used = running.pop(shard) * float(rng.choice([0.0, 0.5, 1.0]))
            spent += used
            save(corridor, job.id, shard, used)
        assert spent + sum(running.values()) <= 10.0 + 1e-9


def save(corridor: Corridor, job_id: str, shard: int, seconds: float) -> None:
    nothing = np.zeros((0, 2), dtype=bool)
    floats, integers = np.zeros(0), np.zeros(0, dtype=np.int64)
    SampleResults(
        index=integers,
        label=integers,
        prediction=integers,
        margin=floats,
        radius=floats,
        certified=nothing,
        falsified=nothing,
        method=[],
        decided_by=[],
        counterexamples={},
        seconds={"bound": seconds},
        notes={},
    ).save(corridor.store.shard_path(job_id, shard))
