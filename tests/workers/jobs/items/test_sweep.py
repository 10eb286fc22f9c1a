"""The trainings of a sweep: one after the other, each only once, and the job as long as all."""

from __future__ import annotations

from typing import Any

import pytest

from service.contract.outcomes import conclude, reopen
from service.contract.schemas.problems import InternalError
from service.contract.schemas.submissions import JobSubmission
from service.contract.sweeps import runs_of
from tests.workers.jobs.conftest import Corridor
from tests.workers.jobs.work import training
from workers.jobs.items.sweep import train_runs
from workers.training.config import TrainingError
from workers.training.loop import Paused

pytestmark = pytest.mark.usefixtures("forked_inspections")

EPOCHS = 3


def attempt(
    corridor: Corridor, job: JobSubmission, said: list[tuple[int, int, str]], *, until: str = "none"
) -> str:
    def progress(done: int, total: int, message: str) -> None:
        said.append((done, total, message))

    return train_runs(
        corridor.store,
        corridor.settings,
        job,
        progress=progress,
        on_checkpoint=lambda: None,
        stop=lambda: False,
        should_pause=lambda: bool(said) and until in said[-1][2],
    )


def test_a_sweep_goes_on_with_the_value_that_it_was_at(corridor: Corridor) -> None:
    job = training(corridor, epochs=EPOCHS, sweep={"batch_size": [300, 400]})
    said: list[tuple[int, int, str]] = []
    with pytest.raises(Paused):
        attempt(corridor, job, said, until="(2 of 2)")
    assert said[0][2].startswith("batch_size = 300 (1 of 2): ")
    before = len(said)
    first, second = runs_of(job)
    kept = corridor.store.training_dir(first.id) / "trained.json"
    moment = kept.stat().st_mtime_ns
    digests = attempt(corridor, job, said).split()
    assert kept.stat().st_mtime_ns == moment
    assert all("(2 of 2)" in message for _, _, message in said[before:])
    assert said[-1][0] == said[-1][1]
    assert not (corridor.store.training_dir(job.id) / "data").exists()
    # As if each were the only one.
    alone = training(corridor, epochs=EPOCHS, batch_size=400)
    assert attempt(corridor, alone, []) == digests[1] != digests[0]
    # A retry of a job that failed afterwards trains nothing again.
    conclude(corridor.store, corridor.ledger, job, "failed", error=InternalError("elsewhere"))
    again = job.model_copy(update={"attempt": 2})
    assert reopen(corridor.store, corridor.ledger, again)
    assert kept.exists()
    assert attempt(corridor, again, []).split() == digests
    assert second.training is not None


def test_a_sweep_fails_where_every_value_fails(corridor: Corridor) -> None:
    changes: dict[str, Any] = {
        "recipe": {"optimizer": "sgd"},
        "architecture": {
            "input": [1, 8, 8],
            "layers": [{"kind": "flatten"}, {"kind": "linear", "out": 32}, {"kind": "leaky-relu"},
                       {"kind": "linear", "out": 10}],
        },
        "sweep": {"learning_rate": [90.0, 99.0]},
    }  # fmt: skip
    job = training(corridor, **changes)
    with pytest.raises(TrainingError, match="finite"):
        attempt(corridor, job, [])
    assert all(corridor.store.failure_path(run.id).exists() for run in runs_of(job))
