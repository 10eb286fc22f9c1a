"""What POST /train may ask for, and the plan that becomes of it: every hyperparameter, as data.

A plan is complete: it is made when a submission is accepted and kept in the journal, so that a
later version with other recipes resumes the same run.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from service.contract.catalogue.architectures import ARCHITECTURES, FAMILIES
from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.near_names import did_you_mean
from service.contract.schemas.architectures import checked_family, checked_layers
from service.contract.schemas.epsilons import Epsilon
from service.contract.schemas.submissions import Spec, Strict
from service.contract.schemas.training_options import (
    EmmaOptions,
    GloroTradesOptions,
    LocalLipBOptions,
)
from service.contract.schemas.training_schedules import ScheduleSpec, Share, constant
from service.contract.schemas.webhook_address import WebhookUrl

__all__ = ["Hyperparameters", "Sweep", "TrainSpec", "TrainingPlan", "certification_spec"]

_MAX_SEED = 2**53 - 1
#: Values that a sweep may have.
MAX_VALUES = 20

#: Of the architectures by name; a layer list names its own.
Activation = Literal[
    "relu", "relu-theta", "maxmin", "clamped-maxmin", "householder", "householder-2"
]


class Hyperparameters(LocalLipBOptions, GloroTradesOptions, EmmaOptions):
    """How a run goes; every one has a default, recipes and requests replace some.

    Schedules multiply: ``learning_rate_schedule`` the learning rate, ``epsilon_schedule`` the
    epsilon asked for. ``lookahead``: steps between two looks of the Lookahead optimiser, 0 for
    none. ``power_steps`` of the global norms, per training step. ``precision`` of the forward pass,
    ``compiled``: the step by ``torch.compile``; ``auto`` is for the worker to say, of its device
    and the method. ``options``: what the method's own model has beyond the inherited ones.
    """

    epochs: int = Field(default=20, ge=1, le=100_000, description="Passes over the data.")
    batch_size: int = Field(
        default=256, ge=1, le=65_536, description="Samples per step, of all devices together."
    )
    optimizer: Literal["adam", "nadam", "orthogonal-muon", "sgd", "sgd-normalized"] = Field(
        "adam", description="What takes the steps."
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, le=100, allow_inf_nan=False, description="At its highest."
    )
    learning_rate_schedule: ScheduleSpec = Field(
        default_factory=lambda: ScheduleSpec(points=[(0.0, 1.0), (1.0, 0.0)], shape="cosine"),
        description="What the learning rate is multiplied with over the run.",
    )
    warm_up: Share = Field(
        0.0, description="Share of the run in which the learning rate rises from 0."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, allow_inf_nan=False, description="Of the optimiser."
    )
    lookahead: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Steps between two looks of the Lookahead optimiser; 0: none.",
    )
    clip_norm: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Largest norm of the gradient."
    )
    epsilon_schedule: ScheduleSpec = constant(1.0)
    augmentation: Literal["none", "crop-flip", "reflect-flip", "shift"] = Field(
        "none", description="What is done to the training images."
    )
    power_steps: int = Field(
        default=1, ge=1, le=1000, description="Power iterations of the global norms, per step."
    )
    activation: Activation = Field("relu", description="Of architectures by name.")
    theta: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="First thresholds of ReLU-theta.",
    )
    init: Literal["default", "glorot", "he", "ibp", "orthogonal"] | None = Field(
        None, description="How weights begin. None: as the architecture says."
    )
    validation_samples: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Training samples that are set aside to measure epochs on.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the forward pass; `auto`: by device and method."
    )
    compiled: bool | Literal["auto"] = Field(
        "auto", description="The step by torch.compile; `auto`: by device."
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="The method's own: GET /methods lists them."
    )


class TrainSpec(Strict):
    """The body of POST /train."""

    method: str = Field(description="A name of GET /methods, `training`.", examples=["emma"])
    dataset: str = Field(
        max_length=200,
        description="What is trained on: a registered name, which means its train split, or the id "
        "or name of an upload.",
        examples=["mnist"],
    )
    epsilon: Epsilon = Field(
        description="The radius to be robust within, in pixel units; a number, or fraction as text."
    )
    architecture: str | dict[str, JsonValue] | None = Field(
        None,
        description="A name of GET /architectures, a family with its sizes, or a layer list. None: "
        "the recipe's.",
        examples=["mnist-4c3f", {"name": "liresnet", "depth": 12}],
    )
    norm: Literal["l2", "linf"] = Field(
        "l2", description="In what epsilon is measured; by default the method's own norm."
    )
    recipe: Literal["paper", "fast"] | dict[str, JsonValue] = Field(
        "fast",
        description="`paper`: the published schedule; `fast`: a short one; or members of "
        "Hyperparameters, on top of `base` where that is named.",
        examples=["fast", {"base": "fast", "epochs": 10, "options": {}}],
    )
    activation: Activation | None = Field(
        None, description="Of an architecture by name. None: the recipe's."
    )
    epochs: int | None = Field(
        default=None, ge=1, le=100_000, description="Passes over the data. None: the recipe's."
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Samples per step, of all devices together. None: the recipe's.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="At its highest. None: the recipe's.",
    )
    seed: int = Field(
        default=0, ge=0, le=_MAX_SEED, description="Of first weights, order and augmentation."
    )
    devices: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="GPUs (or CPU processes) that share every batch of this training.",
    )
    sweep: dict[str, list[JsonValue]] | None = Field(
        default=None,
        description="One hyperparameter or option of the method and the 1 to 20 values to train "
        "with: one job, a model and a report for each. GET /jobs/{id} lists them, "
        "GET /jobs/{id}/pareto compares them.",
        examples=[{"alpha": [0.1, 0.5]}],
    )
    test_dataset: str | None = Field(
        default=None,
        max_length=200,
        description="What the model is certified on. None: the test split of a registered name, or "
        "a random tenth of an upload, which is held out.",
    )
    certify: dict[str, JsonValue] | None = Field(
        default_factory=dict,
        description="Members of Spec for the certification that follows; what is left out is "
        "the training's own norm and epsilon, and all samples. `null`: train only.",
        examples=[{"samples": 1000, "attack": None}],
    )
    force: bool = Field(False, description="Train even where an equal result exists.")
    webhook: WebhookUrl | None = Field(None, description="Address that is told of the job's end.")

    @model_validator(mode="before")
    @classmethod
    def _norm_of_the_method(cls, value: Any) -> Any:
        """A method's first norm where none is asked for."""
        method = value.get("method") if isinstance(value, dict) else None
        row = TRAINING_METHODS.get(method) if isinstance(method, str) else None
        return value if row is None else {"norm": row.norms[0], **value}

    @field_validator("norm")
    @classmethod
    def _norm_that_it_trains_for(cls, value: str, info: ValidationInfo) -> str:
        row = TRAINING_METHODS.get(info.data.get("method", ""))
        if row is not None and value not in row.norms:
            raise PydanticCustomError(
                "unsupported_norm",
                "{method} trains for {known}, not for {norm}",
                {"method": row.name, "known": " and ".join(row.norms), "norm": value},
            )
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in TRAINING_METHODS:
            raise PydanticCustomError(
                "unknown_method",
                "{given} is not a training method{near}; the known ones are {known}",
                {
                    "given": repr(value[:60]),
                    "near": did_you_mean(value, TRAINING_METHODS),
                    "known": ", ".join(TRAINING_METHODS),
                },
            )
        return value

    @field_validator("sweep")
    @classmethod
    def _one_hyperparameter(
        cls, value: dict[str, list[JsonValue]] | None
    ) -> dict[str, list[JsonValue]] | None:
        if value is not None and not (
            len(value) == 1 and all(1 <= len(values) <= MAX_VALUES for values in value.values())
        ):
            raise PydanticCustomError(
                "invalid_sweep",
                'a sweep is one name with 1 to {most} values, as in {"alpha": [0.1, 0.5]}',
                {"most": MAX_VALUES},
            )
        return value

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, value: JsonValue) -> JsonValue:
        """A name, a family with its sizes, or a layer list; each in one form."""
        if value is None or (isinstance(value, dict) and "name" not in value and "layers" in value):
            return value if value is None else checked_layers(value)
        name = value.get("name") if isinstance(value, dict) else value
        members = value.items() if isinstance(value, dict) else ()
        sizes = {key: member for key, member in members if key != "name"}
        if isinstance(name, str) and name in FAMILIES:
            return checked_family({"name": name, **sizes})
        if isinstance(name, str) and name in ARCHITECTURES and not sizes:
            return name
        if isinstance(name, str) and name in ARCHITECTURES:
            raise PydanticCustomError(
                "unknown_architecture",
                "{name} has no sizes to choose: give its name alone; with sizes there are {known}",
                {"name": name, "known": ", ".join(FAMILIES)},
            )
        if name is None:
            raise PydanticCustomError(
                "unknown_architecture",
                'an object has a "name", one of {known}, or "layers"',
                {"known": ", ".join(FAMILIES)},
            )
        known = (*ARCHITECTURES, *FAMILIES)
        raise PydanticCustomError(
            "unknown_architecture",
            "{given} is not a known architecture{near}; the known ones are {known}",
            {
                "given": repr(name)[:80],
                "near": did_you_mean(name, known),
                "known": ", ".join(known),
            },
        )


class Sweep(Strict):
    """The hyperparameter that takes several values, and each one as the plan has it."""

    name: str
    values: list[JsonValue]


class TrainingPlan(Strict):
    """A run, complete: what a worker trains, and what the journal keeps.

    Of a ``sweep`` the hyperparameters are those of its first value
    (``service.contract.sweeps.runs_of`` makes the other runs).
    """

    method: str
    architecture: str | dict[str, JsonValue]
    norm: Literal["l2", "linf"]
    epsilon: Epsilon
    recipe: str
    seed: int
    hyperparameters: Hyperparameters
    #: How many share every batch; batch_size is that of all of them together.
    devices: int = Field(default=1, ge=1)
    #: Whether the trained model is certified, by the submission's spec.
    certify: bool = True
    #: Without a test data set, this share of the samples, chosen at random, is kept from training.
    held_out: float = Field(default=0.0, ge=0, lt=1)
    sweep: Sweep | None = None

    def normal(self) -> dict[str, Any]:
        """The JSON object that is stored."""
        plan = self.model_dump(mode="json")
        # As plans were written before there were any: an equal request is known again.
        if not self.hyperparameters.options:
            del plan["hyperparameters"]["options"]
        if self.devices == 1:
            del plan["devices"]
        if self.sweep is None:
            del plan["sweep"]
        return plan


def certification_spec(spec: TrainSpec) -> Spec | None:
    """The spec that the trained model is certified with; None where it shall not be.

    What the request leaves out is the norm and epsilon of training, all samples, and a method that
    fits the training's. Raises pydantic.ValidationError.
    """
    if spec.certify is None:
        return None
    base: dict[str, Any] = {"norm": spec.norm, "epsilons": [str(spec.epsilon)], "samples": "all"}
    base |= TRAINING_METHODS[spec.method].certify_with
    if "indices" in spec.certify:
        del base["samples"]
    found = Spec.model_validate({**base, **spec.certify})
    if found.summation != "as-uploaded":
        # A training's report is about the model that was trained, and so are sweeps and cascades.
        said = (
            "a training certifies the file that it makes; train without it, then certify "
            "the trained model with it: POST /certify with its model_id"
        )
        error = PydanticCustomError("unsupported_summation", "{said}", {"said": said})
        row = InitErrorDetails(type=error, loc=("summation",), input=found.summation)
        raise ValidationError.from_exception_data("Spec", [row])
    return found
