"""POST /train as far as the API goes: what is accepted, what it means, what is refused and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis import Redis

from models.architectures.published import blueprint
from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.ledger.event_stream import EventLog
from service.contract.ledger.ledger import Lease, Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.problems import InternalError
from service.contract.schemas.submissions import Spec
from service.contract.schemas.training_plans import Hyperparameters, TrainingPlan, TrainSpec
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.recipes.plans import plan_of
from service.recipes.recipe import Recipe
from service.recipes.recipes import RECIPES, recipe_of
from workers.training.config import TrainingConfig
from workers.training.objectives import OBJECTIVES

DIGITS: dict[str, Any] = {
    "method": "emma",
    "dataset": "digits",
    "epsilon": "1/2",
    "architecture": {"name": "orthogonal-dense", "input": [1, 8, 8], "widths": [32]},
    "activation": "maxmin",
    "epochs": 3,
}


def body(**changes: Any) -> dict[str, Any]:
    return {**DIGITS, **changes}


def run_of(plan: TrainingPlan) -> TrainingConfig:
    """As a worker reads it."""
    return TrainingConfig.of_plan(plan.normal(), TRAINING_METHODS[plan.method])


@pytest.fixture
def client(serve: Callable[[Settings], httpx.Client], settings: Settings) -> httpx.Client:
    return serve(settings)


def test_an_accepted_training_begins_with_training(client: httpx.Client, ledger: Ledger) -> None:
    answer = client.post("/train", json=body())
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
    own = client.post("/train", json=body(dataset=uploaded)).json()["id"]
    named = client.post("/train", json=body(dataset=uploaded, test_dataset="digits")).json()["id"]
    never = client.post("/train", json=body(dataset=uploaded, certify=None)).json()["id"]
    shares = [
        client.get(f"/jobs/{job}/training").json()["plan"]["held_out"]
        for job in (own, named, never)
    ]
    assert shares == [0.1, 0.0, 0.0]
    # Again under another name: what is uploaded is named by its content.
    client.post("/datasets", files=files, data={"name": "copy"})
    for same in (uploaded, "copy"):
        refused = client.post("/train", json=body(dataset=uploaded, test_dataset=same))
        assert (refused.status_code, refused.json()["code"]) == (422, "same_dataset")


def test_the_same_key_is_the_same_training(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/train", json=body(), headers=headers)
    second = client.post("/train", json=body(), headers=headers)
    other = client.post("/train", json=body(seed=1), headers=headers)
    assert first.json()["id"] == second.json()["id"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_an_equal_training_without_a_report_is_used_again_while_its_model_is_there(
    client: httpx.Client, store: Store, ledger: Ledger
) -> None:
    first = client.post("/train", json=body(certify=None)).json()["id"]
    state = ledger.get(first)
    assert state is not None
    with store.writer(limit=9) as writer:
        writer.write(b"network")
        model = writer.publish().digest
    conclude(store, ledger, state.submission, "succeeded", model_id=model)
    again = client.post("/train", json=body(certify=None))
    assert again.json()["id"] == first
    assert again.headers["Certserve-Submission"] == "reused"
    refused = client.get(f"/jobs/{first}/report")
    assert (refused.status_code, refused.json()["code"]) == (404, "no_report")
    assert "without a certification" in refused.json()["detail"]
    store.blob_path(model).unlink()
    assert client.post("/train", json=body(certify=None)).json()["id"] != first


def test_a_retry_does_not_train_again_what_is_trained(
    client: httpx.Client, store: Store, ledger: Ledger
) -> None:
    job = client.post("/train", json=body()).json()["id"]
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
    job = client.post("/train", json=body()).json()["id"]
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
    job = client.post("/train", json=body()).json()["id"]
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
    job = client.post("/train", json=body()).json()["id"]
    assert client.get(f"/jobs/{job}").json()["progress"]["unit"] == "steps"
    assert isinstance(ledger.lease(job, worker="w"), Lease)
    ledger.progress(job, "train", 2, total=3, unit=unit, message="training", eta_s=61.26)
    shown = client.get(f"/jobs/{job}").json()["progress"]
    assert shown == {
        "done": 2, "total": 3, "unit": unit, "message": "training", "eta_s": 61.3,
    }  # fmt: skip
    assert EventLog(redis).after(job, "0")[-1].data == shown


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"method": "magic"}, "unknown_method", "body.method"),
        ({"epsilon": 0}, "invalid_epsilon", "body.epsilon"),
        ({"epsilon": -1}, "invalid_epsilon", "body.epsilon"),
        ({"epsilon": "1e999"}, "invalid_epsilon", "body.epsilon"),
        ({"architecture": "resnet-9000"}, "unknown_architecture", "body.architecture"),
        ({"architecture": {"name": "vit"}}, "unknown_architecture", "body.architecture"),
        ({"architecture": {}}, "unknown_architecture", "body.architecture"),
        ({"architecture": {"name": None}}, "unknown_architecture", "body.architecture"),
        ({"architecture": {"name": ["liresnet"]}}, "unknown_architecture", "body.architecture"),
        ({"architecture": {"name": "mnist-small", "depth": 3}}, "unknown_architecture", None),
        ({"architecture": None}, "missing_architecture", "architecture"),
        (
            {"architecture": {"input": [64], "layers": [{"kind": "linear", "out": 10}]}},
            "conflicting_fields",
            "activation",
        ),
        ({"recipe": "slow"}, "invalid_request", "body.recipe"),
        (
            {"epsilon": "1e308", "recipe": {"epsilon_schedule": {"points": [[0, 100]]}}},
            "invalid_epsilon",
            "epsilon",
        ),
        ({"recipe": "paper"}, "no_recipe", "recipe"),
        ({"recipe": {"base": "paper"}}, "no_recipe", "recipe"),
        ({"recipe": {"epoch": 3}}, "unknown_field", "recipe.epoch"),
        ({"recipe": {"batch_size": 0}}, "invalid_recipe", "recipe.batch_size"),
        ({"recipe": {"learning_rate_schedule": {"points": [[0.5, 1], [0.1, 1]]}}}, None, None),
        ({"dataset": "cifar-11"}, "unknown_dataset", "dataset"),
        ({"dataset": "digits:test"}, "invalid_dataset", "dataset"),
        ({"test_dataset": "digits:train"}, "same_dataset", "test_dataset"),
        ({"dataset": "digits:test", "test_dataset": "digits"}, "same_dataset", "test_dataset"),
        ({"epochs": 0}, "invalid_request", "body.epochs"),
        ({"surprise": 1}, "unknown_field", "body.surprise"),
        ({"certify": {"methd": "bcp"}}, "unknown_field", "certify.methd"),
        ({"certify": {"method": "magic"}}, "unknown_method", "certify.method"),
        ({"certify": {"architecture": "mnist-small"}}, "unexpected_architecture", None),
    ],
)
def test_bad_requests_are_refused_by_name(
    client: httpx.Client, changes: dict[str, Any], code: str | None, field: str | None
) -> None:
    answer = client.post("/train", json=body(**changes))
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert code is None or problem["code"] == code
    assert field is None or problem["field"] == field


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("orthogonal-dense", {"name": "orthogonal-dense"}),
        ({"name": "liresnet", "depth": 3}, {"name": "liresnet", "depth": 3}),
        ({"name": "mnist-small"}, "mnist-small"),
        ("mnist-small", "mnist-small"),
    ],
)
def test_an_architecture_has_one_form(given: Any, kept: Any) -> None:
    plan = plan_of(TrainSpec(**body(architecture=given)), "digits", held_out=0.0)
    assert plan.architecture == kept
    blueprint(plan.architecture, activation="maxmin")


def test_of_several_recipes_that_of_activation_and_norm_counts() -> None:
    def plan(**wish: Any) -> TrainingPlan:
        spec = TrainSpec(**{"epsilon": 0.3, "method": "gloro", "dataset": "mnist", **wish})
        return plan_of(spec, str(spec.dataset), held_out=0.0)

    tiny = {"method": "local-lip-b", "dataset": "tiny-imagenet", "epsilon": "36/255"}
    asked = plan(**tiny, recipe="paper", activation="clamped-maxmin")
    inside = plan(**tiny, recipe={"base": "paper", "activation": "clamped-maxmin"})
    assert asked.hyperparameters == inside.hyperparameters
    assert plan(**tiny, recipe="paper").hyperparameters != inside.hyperparameters
    # Published for l2 0.3, which says nothing about linf 0.3.
    assert plan().architecture != plan(norm="linf").architecture


def test_boxes_do_not_bear_bfloat16(client: httpx.Client) -> None:
    wish = {"precision": "bfloat16", "activation": "maxmin"}
    fine = client.post("/train", json=body(recipe=wish))
    assert fine.status_code == 202, fine.text
    refused = client.post("/train", json=body(method="bcp", recipe=wish))
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (422, "unsupported_precision")


def test_the_plan_says_what_it_was_computed_in(client: httpx.Client, store: Store) -> None:
    job = client.post("/train", json=body()).json()["id"]
    plan = client.get(f"/jobs/{job}/training").json()["plan"]
    assert {plan["hyperparameters"][name] for name in ("precision", "compiled")} == {"auto"}
    assert "arithmetic" not in plan
    store.job_dir(job)
    store.training_dir(job).mkdir(exist_ok=True)
    rows = [{"epoch": 1}, {"epoch": 2, "precision": "bfloat16", "compiled": "inductor"}]
    store.write_json(store.training_dir(job) / "history.json", {"history": rows})
    used = client.get(f"/jobs/{job}/training").json()["plan"]["arithmetic"]
    assert used == {"precision": "bfloat16", "compiled": "inductor"}


def test_only_json_is_taken(client: httpx.Client) -> None:
    assert client.post("/train", content=b"{", headers={"content-type": "text/plain"}).json()[
        "code"
    ] == ("unsupported_media_type")
    bad = client.post("/train", content=b"{", headers={"content-type": "application/json"})
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_json")


def test_methods_and_recipes_are_listed(client: httpx.Client) -> None:
    listed = client.get("/methods").json()
    assert {row["name"] for row in listed["training"]} == set(OBJECTIVES) == set(TRAINING_METHODS)
    assert len(listed["recipes"]) == len(RECIPES)
    emma = next(row for row in listed["training"] if row["name"] == "emma")
    assert emma["options"] == ["least_share"]
    assert emma["certify_with"] == {"method": "bcp"}
    (ours,) = [row for row in listed["recipes"] if row["name"] == "fast"]
    assert ours["reached"][0]["status"] == "measured"


@pytest.mark.parametrize("row", RECIPES, ids=lambda row: f"{row.method}-{row.dataset}")
def test_what_a_recipe_reaches_can_be_true(row: Recipe) -> None:
    for figures in row.reached:
        known = [figures.certified, figures.attacked, figures.clean]
        shares = [share for share in known if share is not None]
        assert shares == sorted(shares)
        assert 0.0 <= shares[0] <= shares[-1] <= 100.0
        assert (figures.status == "measured") == (row.source == "ours")


def test_a_methods_options_are_taken_nested_and_at_the_top(client: httpx.Client) -> None:
    def plan(**changes: Any) -> Any:
        answer = client.post("/train", json=body(**changes))
        assert answer.status_code == 202, answer.text
        return client.get(f"/jobs/{answer.json()['id']}/training").json()["plan"]

    nested = plan(recipe={"options": {"least_share": 0.25}, "activation": "maxmin"})
    assert nested["hyperparameters"]["least_share"] == 0.25
    assert nested == plan(recipe={"least_share": 0.25, "activation": "maxmin"})
    # As plans were written before: an equal request of an older journal is known again.
    assert "options" not in nested["hyperparameters"]
    # What another method's option means to this one was never refused at the top.
    assert plan(recipe={"rounds": 3})["hyperparameters"]["rounds"] == 3


@pytest.mark.parametrize(
    ("recipe", "code", "field"),
    [
        ({"options": {"rounds": 3}}, "unknown_field", "recipe.options.rounds"),
        ({"options": {"least_share": 2.0}}, "invalid_recipe", "recipe.options.least_share"),
        ({"options": [1]}, "invalid_recipe", "recipe.options"),
        ({"options": None}, "invalid_recipe", "recipe.options"),
        (
            {"options": {"least_share": 0.5}, "least_share": 0.5},
            "conflicting_fields",
            "recipe.options.least_share",
        ),
    ],
)
def test_options_that_are_none_of_the_methods_are_refused(
    client: httpx.Client, recipe: Any, code: str, field: str
) -> None:
    answer = client.post("/train", json=body(recipe=recipe))
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["field"]) == (422, code, field)


def test_the_options_of_every_row_have_a_default_and_a_place_in_the_plan() -> None:
    for row in TRAINING_METHODS.values():
        options = row.options.model_validate({}).model_dump()
        kept = Hyperparameters().model_dump()
        assert {name: kept[name] for name in options} == options


@pytest.mark.parametrize("name", ["paper", "fast"])
@pytest.mark.parametrize("row", RECIPES, ids=lambda row: f"{row.method}-{row.dataset}")
def test_every_recipe_is_a_complete_run(row: Any, name: str) -> None:
    activation = row.settings.get("activation")
    wish = {"method": row.method, "dataset": row.dataset, "epsilon": row.epsilon, "recipe": name}
    spec = TrainSpec.model_validate({**wish, "activation": activation})
    recipe = recipe_of(row.method, row.dataset, name, epsilon=spec.epsilon, activation=activation)
    if recipe is None:
        assert name == "paper"
        return
    # A row is found by what it was made for.
    assert name != row.name or recipe == row
    plan = plan_of(spec, row.dataset, held_out=0.0)
    assert TrainingPlan.model_validate(json.loads(json.dumps(plan.normal()))) == plan
    run = run_of(plan)
    assert run.epochs == recipe.settings["epochs"]
    epsilons = [run.epsilon_schedule.at(k / 100) for k in range(101)]
    assert max(epsilons) == epsilons[-1] <= 3.0
    assert all(0.0 <= run.kappa_schedule.at(k / 100) <= 1.0 for k in range(101))


def test_the_published_schedule_of_bcp_on_cifar() -> None:
    spec = TrainSpec.model_validate(
        {"method": "bcp", "dataset": "cifar10", "epsilon": "36/255", "recipe": "paper"}
    )
    run = run_of(plan_of(spec, "cifar10", held_out=0.0))
    assert (run.epochs, run.batch_size, run.architecture) == (200, 128, "cifar-6c2f")
    assert run.rate(139 / 200) == pytest.approx(1e-3)
    assert run.rate(141 / 200) == pytest.approx(5e-4)
    assert run.rate(1.0) == pytest.approx(1e-3 / 64)
    assert run.kappa_schedule.at(9 / 200) == 1.0
    assert run.epsilon_schedule.at(131 / 200) == pytest.approx(1.0)


def test_the_published_runs_of_gloro_on_tiny_imagenet_differ() -> None:
    runs = {}
    for method in ("gloro", "gloro-trades"):
        spec = TrainSpec.model_validate(
            {"method": method, "dataset": "tiny-imagenet", "epsilon": "36/255", "recipe": "paper"}
        )
        runs[method] = run_of(plan_of(spec, "tiny-imagenet", held_out=0.0))
    plain, trades = runs["gloro"], runs["gloro-trades"]
    assert (plain.epochs, plain.power_steps) == (250, 5)
    assert (trades.epochs, trades.power_steps) == (500, 1)
    assert trades.trades_schedule.at(1.0) == 20.0
    assert plain.epsilon * plain.epsilon_schedule.at(0.5) == pytest.approx(0.16)
