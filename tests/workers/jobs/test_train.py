"""The item ``train``: it goes on where it stopped, and where it cannot, it begins anew."""

from __future__ import annotations

from typing import Any

import pytest

from service.contract.schemas import JobSubmission
from tests.workers.jobs.conftest import Corridor
from tests.workers.jobs.test_yield import training
from workers.jobs.train import train_model
from workers.training.loop import Paused


def attempt(corridor: Corridor, job: JobSubmission, *, pause: bool = False) -> dict[str, Any]:
    return train_model(
        corridor.store,
        corridor.settings,
        job,
        progress=lambda done, message: None,
        stop=lambda: False,
        should_pause=lambda: pause,
    )


@pytest.mark.parametrize("damage", ["cut off", "other run", "none"])
def test_a_checkpoint_that_cannot_be_read_costs_time_and_nothing_else(
    corridor: Corridor, damage: str
) -> None:
    whole = attempt(corridor, training(corridor))
    job, other = training(corridor), training(corridor)
    # What a reader on this host fetched from another one (``Store.read_json``) is in no one's way.
    corridor.store.job_dir(job.id)
    corridor.store.training_dir(job.id).mkdir()
    corridor.store.write_json(corridor.store.training_dir(job.id) / "history.json", {"history": []})
    with pytest.raises(Paused):
        attempt(corridor, job, pause=True)
    checkpoint = corridor.store.training_dir(job.id) / "checkpoint.safetensors"
    if damage == "cut off":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    if damage == "other run":
        assert other.training is not None
        seeded = other.model_copy(update={"training": {**other.training, "seed": 5}})
        with pytest.raises(Paused):
            attempt(corridor, seeded, pause=True)
        corridor.store.training_dir(other.id).joinpath(checkpoint.name).replace(checkpoint)
    done = attempt(corridor, job)
    assert done["model"]["digest"] == whole["model"]["digest"]
    assert done["history"] == whole["history"]
    left = {path.name for path in corridor.store.training_dir(job.id).iterdir()}
    assert left == {"history.json", "trained.json"}
