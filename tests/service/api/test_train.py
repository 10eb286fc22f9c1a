"""POST /train as far as the API goes: what is accepted and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from redis import Redis

from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.ledger.event_stream import EventLog
from service.contract.ledger.ledger import Lease, Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.problems import InternalError
from service.contract.schemas.submissions import Spec
from service.contract.schemas.training_plans import TrainingPlan
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.recipes.recipes import RECIPES
from tests.service.api.trainings import training
from workers.training.objectives import OBJECTIVES


@pytest.fixture
def client(serve: Callable[[Settings], httpx.Client], settings: Settings) -> httpx.Client:
    return serve(settings)


def test_an_accepted_training_begins_with_training(client: httpx.Client, ledger: Ledger) -> None:
    answer = client.post("/train", json=training())
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["kind"], job["status"], job["model_id"]) == ("train", "queued", None)
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    lease = ledger.lease(job["id"], worker="w")
    assert isinstance(lease, Lease)
    assert lease.item == "train"
    state = ledger.get(job["id"])
    assert state is not None
    submission = state.submission
    assert submission.training is not None
    plan = TrainingPlan.model_validate(submission.training)
    assert (plan.method, str(plan.epsilon), plan.hyperparameters.epochs) == ("emma", "1/2", 3)
    # Trained on the train split, certified on all of the test split with the training's epsilon.
    assert submission.training_dataset is not None
    assert submission.dataset is not None
    assert (submission.training_dataset.split, submission.dataset.split) == ("train", "test")
    spec = Spec.model_validate(submission.spec)
    assert (spec.norm, spec.samples, spec.method) == ("l2", "all", "bcp")
    assert [str(epsilon) for epsilon in spec.epsilons] == ["1/2"]
    assert client.get(f"/jobs/{job['id']}/training").json()["plan"] == submission.training
    again = client.get("/jobs", params={"kind": "train"}).json()
    assert [item["id"] for item in again["items"]] == [job["id"]]


def test_an_upload_is_split_unless_another_is_named(client: httpx.Client, tmp_path: Path) -> None:
    data = tmp_path / "mine.npz"
    np.savez(data, x=np.zeros((40, 8, 8), np.uint8), y=np.zeros(40, np.int64))
    files = {"dataset": (data.name, data.read_bytes())}
    uploaded = client.post("/datasets", files=files).json()["id"]
    own = client.post("/train", json=training(dataset=uploaded)).json()["id"]
    named = client.post("/train", json=training(dataset=uploaded, test_dataset="digits")).json()[
        "id"
    ]
    never = client.post("/train", json=training(dataset=uploaded, certify=None)).json()["id"]
    shares = [
        client.get(f"/jobs/{job}/training").json()["plan"]["held_out"]
        for job in (own, named, never)
    ]
    assert shares == [0.1, 0.0, 0.0]
    # Again under another name: what is uploaded is named by its content.
    client.post("/datasets", files=files, data={"name": "copy"})
    for same in (uploaded, "copy"):
        refused = client.post("/train", json=training(dataset=uploaded, test_dataset=same))
        assert (refused.status_code, refused.json()["code"]) == (422, "same_dataset")


def test_the_same_key_is_the_same_training(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/train", json=training(), headers=headers)
    second = client.post("/train", json=training(), headers=headers)
    other = client.post("/train", json=training(seed=1), headers=headers)
    assert first.json()["id"] == second.json()["id"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_an_equal_training_without_a_report_is_used_again_while_its_model_is_there(
    client: httpx.Client, store: Store, ledger: Ledger
) -> None:
    first = client.post("/train", json=training(certify=None)).json()["id"]
    state = ledger.get(first)
    assert state is not None
    with store.writer(limit=9) as writer:
        writer.write(b"network")
        model = writer.publish().digest
    conclude(store, ledger, state.submission, "succeeded", model_id=model)
    again = client.post("/train", json=training(certify=None))
    assert again.json()["id"] == first
    assert again.headers["Certserve-Submission"] == "reused"
    refused = client.get(f"/jobs/{first}/report")
    assert (refused.status_code, refused.json()["code"]) == (404, "no_report")
    assert "without a certification" in refused.json()["detail"]
    store.blob_path(model).unlink()
    assert client.post("/train", json=training(certify=None)).json()["id"] != first


def test_a_retry_does_not_train_again_what_is_trained(
    client: httpx.Client, store: Store, ledger: Ledger
) -> None:
    job = client.post("/train", json=training()).json()["id"]
    with store.writer(limit=9) as writer:
        writer.write(b"network")
        model = writer.publish().digest
    found = {"model": {"digest": model, "format": "onnx", "name": "n", "size": 7}}
    store.job_dir(job)
    for left, kept in (("model", True), ("nothing", False)):
        store.training_dir(job).mkdir(exist_ok=True)
        store.create_json(store.training_dir(job) / "trained.json", found)
        store.prepared_dir(job).mkdir()
        if left == "nothing":
            store.blob_path(model).unlink()
        state = ledger.get(job)
        assert state is not None
        conclude(store, ledger, state.submission, "failed")
        assert client.get(f"/jobs/{job}").json()["model_id"] == model
        assert client.post(f"/jobs/{job}/retry").status_code == 202
        assert not store.prepared_dir(job).exists()
        assert (store.training_dir(job) / "trained.json").exists() == kept
        assert client.get(f"/jobs/{job}").json()["model_id"] is None


@pytest.mark.parametrize(
    ("code", "kept"), [("attempts_exhausted", True), ("internal_error", False)]
)
def test_a_retry_goes_on_from_the_checkpoint_unless_the_training_itself_failed(
    client: httpx.Client, store: Store, ledger: Ledger, code: str, kept: bool
) -> None:
    job = client.post("/train", json=training()).json()["id"]
    store.job_dir(job)
    folder = store.training_dir(job)
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"tensors")
    state = ledger.get(job)
    assert state is not None
    conclude(store, ledger, state.submission, "failed", error=InternalError("it ended", code=code))
    assert client.post(f"/jobs/{job}/retry").status_code == 202
    assert (folder / "checkpoint.safetensors").exists() == kept


def test_steps_of_a_cancelled_training_are_no_samples(client: httpx.Client, ledger: Ledger) -> None:
    job = client.post("/train", json=training()).json()["id"]
    assert isinstance(ledger.lease(job, worker="w"), Lease)
    ledger.progress(job, "train", 2, total=3, unit="steps")
    assert client.get(f"/jobs/{job}").json()["progress"]["unit"] == "steps"
    client.post(f"/jobs/{job}/cancel")
    progress = client.get(f"/jobs/{job}").json()["progress"]
    assert (progress["done"], progress["total"], progress["unit"]) == (0, None, "samples")


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_a_training_shows_the_unit_that_its_worker_counts_in(
    client: httpx.Client, ledger: Ledger, redis: Redis, unit: str
) -> None:
    """Jobs from before trainings counted steps are still there, in epochs."""
    job = client.post("/train", json=training()).json()["id"]
    assert client.get(f"/jobs/{job}").json()["progress"]["unit"] == "steps"
    assert isinstance(ledger.lease(job, worker="w"), Lease)
    ledger.progress(job, "train", 2, total=3, unit=unit, message="training", eta_s=61.26)
    shown = client.get(f"/jobs/{job}").json()["progress"]
    assert shown == {
        "done": 2, "total": 3, "unit": unit, "message": "training", "eta_s": 61.3,
    }  # fmt: skip
    assert EventLog(redis).after(job, "0")[-1].data == shown


def test_the_plan_says_what_it_was_computed_in(client: httpx.Client, store: Store) -> None:
    job = client.post("/train", json=training()).json()["id"]
    plan = client.get(f"/jobs/{job}/training").json()["plan"]
    assert {plan["hyperparameters"][name] for name in ("precision", "compiled")} == {"auto"}
    assert "arithmetic" not in plan
    store.job_dir(job)
    store.training_dir(job).mkdir(exist_ok=True)
    rows = [{"epoch": 1}, {"epoch": 2, "precision": "bfloat16", "compiled": "inductor"}]
    store.write_json(store.training_dir(job) / "history.json", {"history": rows})
    used = client.get(f"/jobs/{job}/training").json()["plan"]["arithmetic"]
    assert used == {"precision": "bfloat16", "compiled": "inductor"}


def test_methods_and_recipes_are_listed(client: httpx.Client) -> None:
    listed = client.get("/methods").json()
    assert {row["name"] for row in listed["training"]} == set(OBJECTIVES) == set(TRAINING_METHODS)
    assert len(listed["recipes"]) == len(RECIPES)
    emma = next(row for row in listed["training"] if row["name"] == "emma")
    assert emma["options"] == ["least_share"]
    assert emma["certify_with"] == {"method": "bcp"}
    fast = {row["method"]: row for row in listed["recipes"] if row["name"] == "fast"}
    assert fast["emma"]["reached"][0]["status"] == "measured"
    assert fast["one-lipschitz"]["source"] == "ours"
