"""Recipes: each is a complete run, says what it reaches, and is found by what it was made for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from models.architectures.published import blueprint
from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.schemas.training_plans import Hyperparameters, TrainingPlan, TrainSpec
from service.recipes.plans import plan_of
from service.recipes.recipe import Recipe
from service.recipes.recipes import RECIPES, recipe_of
from tests.service.api.trainings import training
from workers.training.config import TrainingConfig

#: Methods from before options had a place of their own.
BEFORE = ["standard", "lmt", "gloro", "gloro-trades", "bcp", "local-lip-b", "local-lip-g", "emma"]


def run_of(plan: TrainingPlan) -> TrainingConfig:
    """As a worker reads it."""
    return TrainingConfig.of_plan(plan.normal(), TRAINING_METHODS[plan.method])


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
    plan = plan_of(TrainSpec(**training(architecture=given)), "digits", held_out=0.0)
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


def test_the_norm_is_one_that_the_method_trains_for_and_its_first_one_by_default() -> None:
    for row in TRAINING_METHODS.values():
        wish = {"method": row.name, "dataset": "mnist", "epsilon": 0.1}
        assert TrainSpec.model_validate(wish).norm == row.norms[0]
        for norm in ("l2", "linf"):
            if norm in row.norms:
                assert TrainSpec.model_validate({**wish, "norm": norm}).norm == norm
                continue
            with pytest.raises(ValidationError) as caught:
                TrainSpec.model_validate({**wish, "norm": norm})
            assert [error["type"] for error in caught.value.errors()] == ["unsupported_norm"]
    assert TRAINING_METHODS["ibp"].norms == ("linf",)
    assert TRAINING_METHODS["emma"].norms[0] == "l2"


def test_of_several_recipes_for_linf_that_of_the_epsilon_counts() -> None:
    runs = {}
    for epsilon in ("0.1", "0.3", "0.2"):
        wish = {"method": "sabr", "dataset": "mnist", "epsilon": epsilon, "recipe": "paper"}
        runs[epsilon] = run_of(plan_of(TrainSpec.model_validate(wish), "mnist", held_out=0.0))
    assert runs["0.1"].options["subselection_ratio"] == 0.4
    assert runs["0.3"].options["subselection_ratio"] == 0.9
    assert runs["0.2"].options == runs["0.1"].options
    assert runs["0.1"].epsilon * runs["0.1"].epsilon_schedule.at(1.0) == pytest.approx(0.2)


@pytest.mark.parametrize("row", RECIPES, ids=lambda row: f"{row.method}-{row.dataset}")
def test_what_a_recipe_reaches_can_be_true(row: Recipe) -> None:
    for figures in row.reached:
        known = [figures.certified, figures.attacked, figures.clean]
        shares = [share for share in known if share is not None]
        assert shares == sorted(shares)
        assert 0.0 <= shares[0] <= shares[-1] <= 100.0
        assert (figures.status == "measured") == (row.source == "ours")


def test_the_options_of_every_row_have_a_default_and_a_place_in_the_plan() -> None:
    for row in TRAINING_METHODS.values():
        options = row.options.model_validate({}).model_dump()
        kept = Hyperparameters().model_dump()
        # Others are passed on as the method's own: nothing else reads them.
        above = {name: value for name, value in options.items() if name in kept}
        assert {name: kept[name] for name in above} == above
        assert above == options or row.name not in BEFORE


@pytest.mark.parametrize("name", ["paper", "fast"])
@pytest.mark.parametrize("row", RECIPES, ids=lambda row: f"{row.method}-{row.dataset}")
def test_every_recipe_is_a_complete_run(row: Any, name: str) -> None:
    activation = row.settings.get("activation")
    wish = {"method": row.method, "dataset": row.dataset, "epsilon": row.epsilon, "recipe": name}
    spec = TrainSpec.model_validate({**wish, "activation": activation, "norm": row.norm})
    recipe = recipe_of(
        *(row.method, row.dataset, name),
        norm=spec.norm,
        epsilon=spec.epsilon,
        activation=activation,
    )
    if recipe is None:
        assert name == "paper"
        return
    # A row is found by what it was made for.
    assert name != row.name or recipe == row
    plan = plan_of(spec, row.dataset, held_out=0.0)
    assert TrainingPlan.model_validate(json.loads(json.dumps(plan.normal()))) == plan
    run = run_of(plan)
    assert run.epochs == recipe.settings["epochs"]
    skeleton = blueprint(run.architecture, activation=run.activation).skeleton
    assert skeleton.classes == {"cifar100": 100, "tiny-imagenet": 200}.get(row.dataset, 10)
    epsilons = [run.epsilon_schedule.at(k / 100) for k in range(101)]
    if row.method == "colt":
        # Its stages begin with a larger one than the last.
        assert sorted(epsilons, reverse=True) == epsilons
        assert 1.0 <= epsilons[-1] <= epsilons[0] <= 3.0
    else:
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
