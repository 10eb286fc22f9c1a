"""Training recipes as data: the published ones (``paper``) and ours (``fast``).

A recipe is a row: method, data set, architecture, the epsilon it was made for, and the
hyperparameters that differ from the defaults. Epochs of the papers' schedules are written as
shares of the run, so that a run of other length keeps its form. All schedules are clamped at
their ends (the papers' code overshoots). Where there is no ``fast`` row, the paper's run is taken
in a tenth of the epochs, with a cosine learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import JsonValue

from service.contract.catalogue.architectures import ARCHITECTURES
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.training_plans import (
    TRAINING_METHODS,
    Hyperparameters,
    TrainingPlan,
    TrainSpec,
)

__all__ = ["RECIPES", "Recipe", "plan_of", "recipe_of"]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One row."""

    method: str
    dataset: str
    name: str
    architecture: str | dict[str, JsonValue]
    epsilon: str
    source: str
    settings: Settings


def _ramp(begin: float, end: float, low: float = 0.0, high: float = 1.0) -> Settings:
    return {"points": [[begin, low], [end, high]]}


def _falling(begin: float, end_rate: float) -> Settings:
    """Constant until ``begin``, then exponential to ``end_rate`` of the first value."""
    return {"points": [[begin, 1.0], [1.0, end_rate]], "shape": "log"}


_COSINE: Settings = {"points": [[0.0, 1.0], [1.0, 0.0]], "shape": "cosine"}
_BCP = "Lee et al. 2020, published code"
_LOCAL = "Huang et al. 2021, published scripts"
_GLORO = "Leino et al. 2021, published snapshot"
_EMMA = "Hu et al. 2023 (arXiv:2301.12549) and 2024 (arXiv:2310.02513)"

_BCP_MNIST: Settings = {
    "epochs": 60,
    "batch_size": 50,
    "learning_rate": 3e-4,
    "learning_rate_schedule": {
        "points": [[0.0, 1.0], [21 / 60, 0.1], [30 / 60, 0.01], [40 / 60, 0.001]],
        "shape": "steps",
    },
    "epsilon_schedule": _ramp(1 / 60, 21 / 60),
    "kappa_schedule": _ramp(1 / 60, 21 / 60, 1.0, 0.0),
    "rounds": 10,
}
_BCP_CIFAR: Settings = {
    "epochs": 200,
    "batch_size": 128,
    "learning_rate_schedule": {
        "points": [[0.0, 1.0], *([(140 + 10 * k) / 200, 0.5 ** (k + 1)] for k in range(6))],
        "shape": "steps",
    },
    "epsilon_schedule": _ramp(10 / 200, 131 / 200),
    "kappa_schedule": _ramp(10 / 200, 131 / 200, 1.0, 0.0),
    "augmentation": "crop-flip",
}
_LOCAL_MNIST: Settings = {
    "epochs": 300,
    "learning_rate_schedule": _falling(175 / 300, 5e-3),
    "epsilon_schedule": _ramp(0.0, 0.5, 0.0, 1.75 / 1.58),
    "kappa_schedule": _ramp(0.0, 0.5, 1.0, 0.0),
    "power_steps": 5,
    "rounds": 10,
    "activation": "relu-theta",
    "theta": 2.0,
}
_LOCAL_CIFAR: Settings = {
    "epochs": 800,
    "learning_rate_schedule": _falling(425 / 800, 1e-3),
    "epsilon_schedule": _ramp(20 / 800, 420 / 800, 0.0, 0.1551 * 255 / 36),
    "kappa_schedule": _ramp(20 / 800, 420 / 800, 1.0, 0.0),
    "power_steps": 2,
    "augmentation": "crop-flip",
    "activation": "relu-theta",
    "theta": 2.0,
}
_LOCAL_TINY: Settings = {
    "epochs": 250,
    "batch_size": 128,
    "learning_rate": 2.5e-4,
    "learning_rate_schedule": _falling(150 / 250, 2e-3),
    "epsilon_schedule": _ramp(0.0, 0.5, 0.0, 0.16 * 255 / 36),
    "kappa_schedule": _ramp(0.0, 0.5, 1.0, 0.0),
    "sparsity": 0.01,
    "augmentation": "crop-flip",
    "activation": "relu-theta",
    "theta": 1.0,
}
_GLORO_MNIST: Settings = {
    "epochs": 300,
    "learning_rate_schedule": _falling(0.5, 5e-3),
    "epsilon_schedule": {"points": [[0.0, 1.75 / 1.58]]},
    "trades_schedule": _ramp(0.0, 0.5, 0.0, 3.0),
    "power_steps": 10,
    "activation": "maxmin",
    "init": "orthogonal",
}
_GLORO_CIFAR: Settings = {
    "epochs": 800,
    "learning_rate_schedule": _falling(0.5, 1e-3),
    # The published "logarithmic" ramp is log of a line between exp's: straight to 2 % down here.
    "epsilon_schedule": _ramp(20 / 800, 0.5, 0.01 * 0.1551 * 255 / 36, 0.1551 * 255 / 36),
    "trades_schedule": {"points": [[0.0, 1.2]]},
    "power_steps": 5,
    "augmentation": "crop-flip",
    "activation": "maxmin",
    "init": "orthogonal",
}
_GLORO_CIFAR_TRADES: Settings = {**_GLORO_CIFAR, "init": "glorot"}
_LOCAL_TINY_MAXMIN: Settings = {
    **{name: value for name, value in _LOCAL_TINY.items() if name != "theta"},
    "learning_rate": 1e-4,
    "learning_rate_schedule": _falling(150 / 250, 5e-3),
    "power_steps": 3,
    "activation": "clamped-maxmin",
}
#: MNIST at epsilon 0.3: trained at 0.45, the last rate 1e-6, lambda up to 2.
_GLORO_MNIST_NEAR: Settings = {
    **_GLORO_MNIST,
    "epochs": 500,
    "learning_rate_schedule": _falling(0.5, 1e-3),
    "epsilon_schedule": {"points": [[0.0, 0.45 / 0.3]]},
    "trades_schedule": _ramp(0.0, 0.5, 0.0, 2.0),
}
_GLORO_TINY: Settings = {
    **_GLORO_CIFAR,
    "epochs": 250,
    "learning_rate": 2.5e-4,
    "learning_rate_schedule": _falling(0.5, 2e-3),
    "epsilon_schedule": {"points": [[0.0, 0.16 * 255 / 36]]},
}
_GLORO_TINY_TRADES: Settings = {
    **_GLORO_TINY,
    "epochs": 500,
    "power_steps": 1,
    "trades_schedule": {"points": [[0.0, 0.5], [1.0, 20.0]]},
}
_EMMA_CIFAR: Settings = {
    "epochs": 800,
    "optimizer": "nadam",
    "lookahead": 6,
    "warm_up": 20 / 800,
    "learning_rate_schedule": _COSINE,
    "epsilon_schedule": _ramp(0.0, 0.5, 0.1, 3.0),
    "clip_norm": 3.0,
    "power_steps": 10,
    "augmentation": "crop-flip",
    "activation": "maxmin",
}
_EMMA_FAST: Settings = {
    "epochs": 24,
    "batch_size": 512,
    "learning_rate": 2e-2,
    "learning_rate_schedule": _COSINE,
    "warm_up": 0.03,
    "epsilon_schedule": _ramp(0.0, 0.5, 0.1, 1.3),
    "activation": "maxmin",
}
_STANDARD: Settings = {"epochs": 40, "batch_size": 128, "learning_rate_schedule": _COSINE}
_LIRESNET: dict[str, JsonValue] = {"name": "liresnet", "depth": 12, "width": 512}
_FLAT_MNIST: dict[str, JsonValue] = {
    "name": "orthogonal-dense",
    "input": [1, 28, 28],
    "widths": [512, 512, 512],
}

_M, _C, _T = "mnist", "cifar10", "tiny-imagenet"
_CIFAR_EPS, _M_EPS = "36/255", "1.58"

_ROWS = (
    Recipe("standard", _M, "paper", "mnist-4c3f", _M_EPS, "plain training", _STANDARD),
    Recipe(
        *("standard", _C, "paper", "cifar-6c2f", _CIFAR_EPS, "plain training"),
        {**_STANDARD, "epochs": 100, "augmentation": "crop-flip"},
    ),
    Recipe("lmt", _M, "paper", "mnist-4c3f", _M_EPS, f"{_BCP} (its comparison)", _BCP_MNIST),
    Recipe("lmt", _C, "paper", "cifar-6c2f", _CIFAR_EPS, f"{_BCP} (its comparison)", _BCP_CIFAR),
    Recipe("bcp", _M, "paper", "mnist-4c3f", _M_EPS, _BCP, _BCP_MNIST),
    Recipe("bcp", _C, "paper", "cifar-6c2f", _CIFAR_EPS, _BCP, _BCP_CIFAR),
    Recipe("bcp", _T, "paper", "tiny-8c2f", _CIFAR_EPS, f"{_BCP} for CIFAR-10", _BCP_CIFAR),
    Recipe("local-lip-g", _M, "paper", "mnist-4c3f", _M_EPS, _LOCAL, _LOCAL_MNIST),
    Recipe("local-lip-b", _M, "paper", "mnist-4c3f", _M_EPS, f"{_LOCAL} for -G", _LOCAL_MNIST),
    Recipe("local-lip-b", _C, "paper", "cifar-6c2f", _CIFAR_EPS, _LOCAL, _LOCAL_CIFAR),
    Recipe("local-lip-g", _C, "paper", "cifar-6c2f", _CIFAR_EPS, _LOCAL, _LOCAL_CIFAR),
    Recipe("local-lip-b", _T, "paper", "tiny-8c2f", _CIFAR_EPS, _LOCAL, _LOCAL_TINY),
    Recipe("local-lip-b", _T, "paper", "tiny-8c2f", _CIFAR_EPS, _LOCAL, _LOCAL_TINY_MAXMIN),
    Recipe("gloro", _M, "paper", "mnist-4c3f", _M_EPS, _GLORO, _GLORO_MNIST),
    Recipe("gloro", _M, "paper", "mnist-small", "0.3", _GLORO, _GLORO_MNIST_NEAR),
    Recipe("gloro-trades", _M, "paper", "mnist-4c3f", _M_EPS, _GLORO, _GLORO_MNIST),
    Recipe("gloro-trades", _M, "paper", "mnist-small", "0.3", _GLORO, _GLORO_MNIST_NEAR),
    Recipe("gloro", _C, "paper", "cifar-6c2f", _CIFAR_EPS, _GLORO, _GLORO_CIFAR),
    Recipe("gloro-trades", _C, "paper", "cifar-6c2f", _CIFAR_EPS, _GLORO, _GLORO_CIFAR_TRADES),
    Recipe("gloro", _T, "paper", "tiny-8c2f", _CIFAR_EPS, _GLORO, _GLORO_TINY),
    Recipe("gloro-trades", _T, "paper", "tiny-8c2f", _CIFAR_EPS, _GLORO, _GLORO_TINY_TRADES),
    Recipe("emma", _C, "paper", _LIRESNET, _CIFAR_EPS, _EMMA, _EMMA_CIFAR),
    Recipe(
        "emma", "cifar100", "paper", {**_LIRESNET, "classes": 100}, _CIFAR_EPS, _EMMA, _EMMA_CIFAR
    ),
    Recipe(
        *("emma", _T, "paper"),
        {**_LIRESNET, "input": [3, 64, 64], "classes": 200},
        *(_CIFAR_EPS, _EMMA, _EMMA_CIFAR),
    ),
    Recipe("emma", _M, "fast", _FLAT_MNIST, _M_EPS, "ours", _EMMA_FAST),
)

#: Largest epsilon at any time of a run: beyond, float32 has no numbers for what a ball reaches.
MAX_EPSILON = 1e30

#: All recipes. Of several for one method and data set the one counts whose activation is asked for,
#: then the one of the epsilon asked for, then the first.
RECIPES = _ROWS


def _row(
    method: str, dataset: str, name: str, epsilon: Fraction | None, activation: str | None
) -> Recipe | None:
    rows = [r for r in RECIPES if (r.method, r.dataset, r.name) == (method, dataset, name)]

    def fits(row: Recipe) -> tuple[bool, bool]:
        wanted = activation is not None and row.settings.get("activation") == activation
        return wanted, Fraction(row.epsilon) == epsilon

    return max(rows, key=fits, default=None)


def recipe_of(
    method: str,
    dataset: str,
    name: str,
    *,
    epsilon: Fraction | None = None,
    activation: str | None = None,
) -> Recipe | None:
    """The recipe's row; ``fast`` without one is the paper's in a tenth of the epochs."""
    found = _row(method, dataset, name, epsilon, activation)
    paper = _row(method, dataset, "paper", epsilon, activation)
    if found is not None or paper is None or name != "fast":
        return found
    settings = {
        **paper.settings,
        "epochs": max(1, round(int(paper.settings["epochs"]) / 10)),
        "learning_rate_schedule": _COSINE,
        "warm_up": 0.05,
    }
    return Recipe(
        *(method, dataset, "fast", paper.architecture, paper.epsilon),
        f"a tenth of {paper.source}",
        settings,
    )


def plan_of(spec: TrainSpec, dataset: str, *, held_out: float) -> TrainingPlan:
    """The complete plan of a request on the data set named ``dataset``.

    Raises InvalidInput (no_recipe, missing_architecture, conflicting_fields, invalid_epsilon,
    unsupported_precision), ValidationError.
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
    settings: dict[str, Any] = {**(row.settings if row else {}), **given}
    for key in ("epochs", "batch_size", "learning_rate", "activation"):
        value = getattr(spec, key)
        if value is not None:
            settings[key] = value
    if "validation_samples" not in settings and dataset not in (_M, _C, "cifar100", _T):
        settings["validation_samples"] = 0
    hyperparameters = Hyperparameters.model_validate(settings)
    largest = max(value for _, value in hyperparameters.epsilon_schedule.points)
    if not float(spec.epsilon) * largest <= MAX_EPSILON:
        raise InvalidInput(
            f"an epsilon of {float(spec.epsilon):g} times {largest:g}, as the schedule says, is "
            "more than any network can be trained for",
            code="invalid_epsilon",
            hint=f"at most {MAX_EPSILON:g} in all",
            field="epsilon",
        )
    if hyperparameters.precision == "bfloat16" and not TRAINING_METHODS[spec.method].bfloat16:
        raise InvalidInput(
            f"{spec.method} carries boxes, which bfloat16 would lose",
            code="unsupported_precision",
            hint='leave "precision" out: "auto" is bfloat16 where the method bears it',
            field="recipe.precision",
        )
    return TrainingPlan(
        method=spec.method,
        architecture=architecture,
        norm=spec.norm,
        epsilon=Fraction(spec.epsilon),
        recipe=name,
        seed=spec.seed,
        hyperparameters=hyperparameters,
        certify=spec.certify is not None,
        held_out=held_out,
    )


def _recipe(spec: TrainSpec, dataset: str, name: str, given: object = None) -> Recipe | None:
    # Every published epsilon is one of l2.
    epsilon = Fraction(spec.epsilon) if spec.norm == "l2" else None
    activation = spec.activation or (given if isinstance(given, str) else None)
    return recipe_of(spec.method, dataset, name, epsilon=epsilon, activation=activation)


def _no_recipe(spec: TrainSpec, dataset: str) -> InvalidInput:
    return InvalidInput(
        f"there is no such recipe for {spec.method} on {dataset[:60]!r}",
        code="no_recipe",
        hint=_offer(spec.method) + "; or give the hyperparameters: recipe = {...}",
        field="recipe",
    )


def _offer(method: str) -> str:
    rows = [f"{row.name} on {row.dataset}" for row in _ROWS if row.method == method]
    return f"recipes of {method}: {', '.join(rows) or 'none'}"
