"""From a request and its recipe to the complete plan of a training."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from service.contract.catalogue.architectures import ARCHITECTURES
from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.schemas.parsing import parse_model
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.training_plans import Hyperparameters, TrainingPlan, TrainSpec
from service.recipes.recipe import CIFAR10, CIFAR100, MNIST, TINY_IMAGENET, Recipe, Settings
from service.recipes.recipes import RECIPES, recipe_of
from service.recipes.sweeps import swept

__all__ = ["plan_of"]

#: Largest epsilon at any time of a run: float32 overflows beyond it.
MAX_EPSILON = 1e30

#: Data sets that are large enough to keep the default number of samples for the curve.
_WITH_VALIDATION = (MNIST, CIFAR10, CIFAR100, TINY_IMAGENET)

#: Names that a plan has among its hyperparameters: options from before there were models of them.
_ABOVE = frozenset(Hyperparameters.model_fields)


def plan_of(spec: TrainSpec, dataset: str, *, held_out: float) -> TrainingPlan:
    """The complete plan of a request on the data set named ``dataset``.

    Raises InvalidInput (no_recipe, missing_architecture, conflicting_fields, invalid_epsilon,
    unsupported_precision, too_many_devices, invalid_sweep), ValidationError.
    """
    given: dict[str, Any] = {}
    name = spec.recipe if isinstance(spec.recipe, str) else "custom"
    row = None
    if isinstance(spec.recipe, str):
        row = _recipe(spec, dataset, spec.recipe)
        if row is None and spec.recipe == "paper":
            raise _no_recipe(spec, dataset)
    else:
        given = dict(spec.recipe)
        base = given.pop("base", None)
        if base is not None:
            row = _recipe(spec, dataset, str(base), given.get("activation"))
            if row is None:
                raise _no_recipe(spec, dataset)
    architecture = spec.architecture
    if architecture is None and row is not None:
        architecture = row.architecture
    if architecture is None:
        raise InvalidInput(
            f"there is no {name!r} recipe for {spec.method} on {dataset[:60]!r}, which would name "
            "an architecture",
            code="missing_architecture",
            hint=f"known architectures: {', '.join(ARCHITECTURES)}; {_offer(spec.method)}",
            field="architecture",
        )
    # A recipe's activation may stay: it is among the hyperparameters of every plan.
    if isinstance(architecture, dict) and "name" not in architecture and spec.activation:
        raise InvalidInput(
            "a layer list names its activations itself",
            code="conflicting_fields",
            hint='leave "activation" out, or give an architecture by name',
            field="activation",
        )
    settings = _with_options(spec.method, row.settings if row else {}, given)
    for key in ("epochs", "batch_size", "learning_rate", "activation"):
        value = getattr(spec, key)
        if value is not None:
            settings[key] = value
    if "validation_samples" not in settings and dataset not in _WITH_VALIDATION:
        settings["validation_samples"] = 0
    plan = TrainingPlan(
        method=spec.method,
        architecture=architecture,
        norm=spec.norm,
        epsilon=Fraction(spec.epsilon),
        recipe=name,
        seed=spec.seed,
        devices=spec.devices,
        hyperparameters=Hyperparameters.model_validate(settings),
        certify=spec.certify is not None,
        held_out=held_out,
    )
    _check(plan)
    return plan if spec.sweep is None else swept(spec, plan, _check)


def _check(plan: TrainingPlan) -> None:
    """What must fit together. Raises InvalidInput."""
    hyperparameters, epsilon = plan.hyperparameters, float(plan.epsilon)
    largest = max(value for _, value in hyperparameters.epsilon_schedule.points)
    if not epsilon * largest <= MAX_EPSILON:
        raise InvalidInput(
            f"an epsilon of {epsilon:g} times {largest:g}, as the schedule says, is "
            "more than any network can be trained for (float32 overflows)",
            code="invalid_epsilon",
            hint=f"at most {MAX_EPSILON:g} in all",
            field="epsilon",
        )
    if hyperparameters.precision == "bfloat16" and not TRAINING_METHODS[plan.method].bfloat16:
        raise InvalidInput(
            f"{plan.method} computes boxes, for which bfloat16 is too coarse",
            code="unsupported_precision",
            hint='leave "precision" out: "auto" uses bfloat16 where the method supports it',
            field="recipe.precision",
        )
    if plan.devices > hyperparameters.batch_size:
        raise InvalidInput(
            f"a batch of {hyperparameters.batch_size} samples cannot be shared by {plan.devices} "
            "devices",
            code="too_many_devices",
            hint="at least one sample of every batch for each device",
            field="devices",
        )
    if plan.devices > 1 and hyperparameters.compiled is True:
        raise InvalidInput(
            "a training on several devices is not compiled",
            code="conflicting_fields",
            hint='leave "compiled" out, or train on one device',
            field="recipe.compiled",
        )


def _with_options(method: str, recipe: Settings, given: Settings) -> dict[str, Any]:
    """The recipe's settings with those given in their place, the method's own options checked.

    Options by names that were at the top level before there were models of them go there.
    """
    model = TRAINING_METHODS[method].options
    wished = given.get("options", {})
    parse_model(model, wished, field="recipe.options", code="invalid_recipe")
    twice = sorted(set(wished) & set(given))
    if twice:
        raise InvalidInput(
            f"{twice[0]} is given twice, in the recipe and in its options",
            code="conflicting_fields",
            hint="give it once",
            field=f"recipe.options.{twice[0]}",
        )
    options = {**recipe.get("options", {}), **wished}
    above = {name: options.pop(name) for name in tuple(options) if name in _ABOVE}
    complete = model.model_validate(options).model_dump(mode="json", exclude=set(_ABOVE))
    return {**recipe, **given, **above, "options": complete}


def _recipe(spec: TrainSpec, dataset: str, name: str, given: object = None) -> Recipe | None:
    activation = spec.activation or (given if isinstance(given, str) else None)
    return recipe_of(
        *(spec.method, dataset, name),
        norm=spec.norm,
        epsilon=Fraction(spec.epsilon),
        activation=activation,
    )


def _no_recipe(spec: TrainSpec, dataset: str) -> InvalidInput:
    return InvalidInput(
        f"there is no such recipe for {spec.method} on {dataset[:60]!r}",
        code="no_recipe",
        hint=_offer(spec.method) + "; or give the hyperparameters: recipe = {...}",
        field="recipe",
    )


def _offer(method: str) -> str:
    own = [row for row in RECIPES if row.method == method]
    rows = dict.fromkeys(f"{row.name} on {row.dataset}" for row in own)
    return f"recipes of {method}: {', '.join(rows) or 'none'}"
