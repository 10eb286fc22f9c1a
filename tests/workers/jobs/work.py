"""Work on a job in this process, and a training to work on."""

from __future__ import annotations

from service.contract.ids import new_job_id
from service.contract.schemas.submissions import DatasetSource, JobSubmission
from service.contract.schemas.training_plans import TrainSpec
from service.contract.times import now, rfc3339
from service.recipes.plans import plan_of
from tests.workers.jobs.conftest import Corridor
from workers.jobs.work_loop import WorkLoop

EPOCHS = 30


def work(corridor: Corridor, job_id: str) -> None:
    """Do what there is to do of the job, in this process."""
    WorkLoop(corridor.settings, corridor.store, corridor.ledger, job_id).work()


def training(corridor: Corridor, **changes: object) -> JobSubmission:
    """Enter a small training on the digits, of ``EPOCHS`` epochs, into the ledger."""
    members: dict[str, object] = {
        "method": "standard",
        "dataset": "digits",
        "epsilon": "0.1",
        "architecture": {"name": "orthogonal-dense", "input": [1, 8, 8], "widths": [16]},
        "recipe": {"activation": "maxmin"},
        "epochs": EPOCHS,
        "certify": None,
        **changes,
    }
    spec = TrainSpec.model_validate(members)
    submission = JobSubmission(
        id=new_job_id(),
        kind="train",
        spec={},
        model=None,
        dataset=None,
        training=plan_of(spec, "digits", held_out=0.0).normal(),
        training_dataset=DatasetSource(kind="digits", name="digits", split="train"),
        created_at=rfc3339(now()),
    )
    assert corridor.ledger.create(submission)
    return submission
