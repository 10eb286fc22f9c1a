"""A time budget is the job's: what is open when it is spent is undecided, and the job succeeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.workers.jobs.conftest import Corridor, tiny_npz
from workers.jobs.certify import allowance
from workers.jobs.ticket import Ticket
from workers.verification.results import SampleResults

#: Minutes of attack on every sample, if nobody stops it.
LONG = {"attack": {"steps": 300, "restarts": 1, "audit": 1.0, "seed": 0}}


def certified(corridor: Corridor, **spec: object) -> dict[str, Any]:
    """The report."""
    job = corridor.submit(data=tiny_npz(corridor.folder / "many.npz", samples=100), **spec)
    Ticket(corridor.settings, corridor.store, corridor.ledger, job.id).work()
    assert corridor.outcome(job, 0)["status"] == "succeeded"
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    return report


def test_a_spent_budget_leaves_samples_undecided(corridor: Corridor) -> None:
    report = certified(corridor, time_budget_s=0.001, **LONG)
    assert report["budget_spent"] is True
    assert all(row["undecided"] > 0 for row in report["results"])


def test_a_large_budget_changes_nothing(corridor: Corridor) -> None:
    # More than any machine takes: 11 days.
    with_budget = certified(corridor, time_budget_s=1e6, attack=None)
    without = certified(corridor, attack=None)
    assert with_budget["budget_spent"] is without["budget_spent"] is False
    assert with_budget["results"] == without["results"]


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
