"""From a request's sweep to a plan that names every value; all are checked at submission."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import JsonValue

from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.near_names import did_you_mean
from service.contract.schemas.parsing import parse_model
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.training_options import (
    EmmaOptions,
    GloroTradesOptions,
    LocalLipBOptions,
)
from service.contract.schemas.training_plans import (
    Hyperparameters,
    Sweep,
    TrainingPlan,
    TrainSpec,
)
from service.contract.sweeps import CASCADE_STAGES, value_text, with_value

__all__ = ["swept"]

#: Options of single methods, which every plan has among its hyperparameters.
_OF_SOME = frozenset(
    name
    for kind in (EmmaOptions, GloroTradesOptions, LocalLipBOptions)
    for name in kind.model_fields
)
_PLAIN = frozenset(Hyperparameters.model_fields) - _OF_SOME - {"options"}


def swept(
    spec: TrainSpec, plan: TrainingPlan, check: Callable[[TrainingPlan], object]
) -> TrainingPlan:
    """The plan with the sweep of the request; ``check`` is called with the plan of every value.

    Raises InvalidInput (invalid_sweep, conflicting_fields, and what ``check`` raises).
    """
    assert spec.sweep is not None
    ((name, given),) = spec.sweep.items()
    _check_name(spec, name)
    if name == CASCADE_STAGES or plan.hyperparameters.options.get(CASCADE_STAGES, 1) != 1:
        raise InvalidInput(
            "a cascade is one job with several models already: it is not swept over",
            code="conflicting_fields",
            hint=f"leave {CASCADE_STAGES} out, or the sweep",
            field=f"sweep.{name}",
        )
    listed = isinstance(plan.architecture, dict) and "name" not in plan.architecture
    if name == "activation" and listed:
        raise InvalidInput(
            "a layer list names its activations itself",
            code="conflicting_fields",
            hint="give an architecture by name",
            field="sweep.activation",
        )
    field = f"sweep.{name[:60]}"
    values = [_checked(spec.method, name, value, field) for value in given]
    texts = [json.dumps(value, sort_keys=True) for value in values]
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise InvalidInput(
                f"{name} has the value {value_text(values[place])[:60]} twice",
                code="invalid_sweep",
                hint="each value gives one model",
                field=field,
            )
    base = plan.model_dump(mode="json", exclude={"sweep"})
    plans = [TrainingPlan.model_validate_json(_json(with_value(base, name, v))) for v in values]
    for candidate in plans:
        check(candidate)
    return plans[0].model_copy(update={"sweep": Sweep(name=name, values=values)})


def _check_name(spec: TrainSpec, name: str) -> None:
    known = sorted(_PLAIN | set(TRAINING_METHODS[spec.method].options.model_fields))
    if name not in known:
        raise InvalidInput(
            f"{name[:60]!r} is no hyperparameter of {spec.method}{did_you_mean(name, known)}",
            code="invalid_sweep",
            hint=f"known: {', '.join(known)}",
            field="sweep",
        )
    recipe = spec.recipe if isinstance(spec.recipe, dict) else {}
    options = recipe.get("options")
    told = {*recipe, *(options if isinstance(options, dict) else ())}
    told |= {field for field in TrainSpec.model_fields if getattr(spec, field) is not None}
    if name in told:
        raise InvalidInput(
            f"{name} is given a value and swept over",
            code="conflicting_fields",
            hint="leave the single value out",
            field=f"sweep.{name}",
        )


def _checked(method: str, name: str, value: JsonValue, field: str) -> JsonValue:
    """One value as a plan holds it."""
    options = TRAINING_METHODS[method].options
    kind = Hyperparameters if name in Hyperparameters.model_fields else options
    parsed = parse_model(kind, {name: value}, field="sweep", code="invalid_sweep")
    found: JsonValue = parsed.model_dump(mode="json", include={name})[name]
    return found


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value)
