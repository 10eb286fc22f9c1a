"""POST /train: what is refused, by which code and field, and what is taken all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.contract.settings import Settings
from tests.service.api.trainings import training


@pytest.fixture
def client(serve: Callable[[Settings], httpx.Client], settings: Settings) -> httpx.Client:
    return serve(settings)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"method": "magic"}, "unknown_method", "method"),
        ({"epsilon": 0}, "invalid_epsilon", "epsilon"),
        ({"epsilon": -1}, "invalid_epsilon", "epsilon"),
        ({"epsilon": "1e999"}, "invalid_epsilon", "epsilon"),
        ({"architecture": "resnet-9000"}, "unknown_architecture", "architecture"),
        ({"architecture": {"name": "vit"}}, "unknown_architecture", "architecture"),
        ({"architecture": {}}, "unknown_architecture", "architecture"),
        ({"architecture": {"name": None}}, "unknown_architecture", "architecture"),
        ({"architecture": {"name": ["liresnet"]}}, "unknown_architecture", "architecture"),
        ({"architecture": {"name": "mnist-small", "depth": 3}}, "unknown_architecture", None),
        *(
            (
                {"architecture": {"name": "lipconvnet", "layer": layer}},
                "invalid_architecture",
                "architecture",
            )
            for layer in ("cayley", None, ["soc"])
        ),
        ({"architecture": None}, "missing_architecture", "architecture"),
        (
            {"architecture": {"input": [64], "layers": [{"kind": "linear", "out": 10}]}},
            "conflicting_fields",
            "activation",
        ),
        ({"recipe": "slow"}, "invalid_request", "recipe"),
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
        ({"sweep": {}}, "invalid_sweep", "sweep"),
        ({"sweep": {"theta": []}}, "invalid_sweep", "sweep"),
        ({"sweep": {"theta": [1.0] * 21}}, "invalid_sweep", "sweep"),
        ({"sweep": {"theta": [1.0], "warm_up": [0.0]}}, "invalid_sweep", "sweep"),
        ({"sweep": {"alpha": [0.1]}}, "invalid_sweep", "sweep"),
        ({"sweep": {"trades_schedule": [1.0]}}, "invalid_sweep", "sweep"),
        ({"sweep": {"options": [{}]}}, "invalid_sweep", "sweep"),
        ({"sweep": {"least_share": [0.5, 2.0]}}, "invalid_sweep", "sweep.least_share"),
        ({"sweep": {"least_share": [0.5, 0.5]}}, "invalid_sweep", "sweep.least_share"),
        ({"sweep": {"epochs": [1, 2]}}, "conflicting_fields", "sweep.epochs"),
        (
            {"sweep": {"least_share": [0.5]}, "recipe": {"options": {"least_share": 0.1}}},
            "conflicting_fields",
            "sweep.least_share",
        ),
        *(
            (
                {"method": "cap", "recipe": {"options": {"cascade_stages": stages}}, **swept},
                code,
                field,
            )
            for stages, swept, code, field in (
                (7, {}, "invalid_recipe", "recipe.options.cascade_stages"),
                (2, {"sweep": {"theta": [1.0]}}, "conflicting_fields", "sweep.theta"),
                (1, {"sweep": {"theta": [1.0]}, "method": "emma"}, "unknown_field", None),
            )
        ),
        (
            {"method": "cap", "sweep": {"cascade_stages": [1, 2]}},
            "conflicting_fields",
            "sweep.cascade_stages",
        ),
        ({"sweep": {"batch_size": [8, 1]}, "devices": 2}, "too_many_devices", "devices"),
        ({"dataset": "cifar-11"}, "unknown_dataset", "dataset"),
        ({"dataset": "digits:test"}, "invalid_dataset", "dataset"),
        ({"test_dataset": "digits:train"}, "same_dataset", "test_dataset"),
        ({"dataset": "digits:test", "test_dataset": "digits"}, "same_dataset", "test_dataset"),
        ({"epochs": 0}, "invalid_request", "epochs"),
        ({"devices": 0}, "invalid_request", "devices"),
        ({"devices": 9}, "too_many_devices", "devices"),
        ({"devices": 3, "batch_size": 2}, "too_many_devices", "devices"),
        ({"devices": 2, "recipe": {"compiled": True}}, "conflicting_fields", "recipe.compiled"),
        ({"surprise": 1}, "unknown_field", "surprise"),
        ({"certify": {"methd": "bcp"}}, "unknown_field", "certify.methd"),
        ({"certify": {"method": "magic"}}, "unknown_method", "certify.method"),
        (
            {"certify": {"input_range": [0, 255]}},
            "unsupported_input_range",
            "certify.input_range",
        ),
        ({"certify": {"architecture": "mnist-small"}}, "unexpected_architecture", None),
    ],
)
def test_bad_requests_are_refused_by_name(
    client: httpx.Client, changes: dict[str, Any], code: str | None, field: str | None
) -> None:
    answer = client.post("/train", json=training(**changes))
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert code is None or problem["code"] == code
    assert field is None or problem["field"] == field


def test_boxes_do_not_bear_bfloat16(client: httpx.Client) -> None:
    wish = {"precision": "bfloat16", "activation": "maxmin"}
    fine = client.post("/train", json=training(recipe=wish))
    assert fine.status_code == 202, fine.text
    refused = client.post("/train", json=training(method="bcp", recipe=wish))
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (422, "unsupported_precision")


def test_only_json_is_taken(client: httpx.Client) -> None:
    assert client.post("/train", content=b"{", headers={"content-type": "text/plain"}).json()[
        "code"
    ] == ("unsupported_media_type")
    bad = client.post("/train", content=b"{", headers={"content-type": "application/json"})
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_json")


def test_a_methods_options_are_taken_nested_and_at_the_top(client: httpx.Client) -> None:
    def plan(**changes: Any) -> Any:
        answer = client.post("/train", json=training(**changes))
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
    answer = client.post("/train", json=training(recipe=recipe))
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["field"]) == (422, code, field)
