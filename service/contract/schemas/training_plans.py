"""What POST /train may ask for, and the plan that becomes of it: every hyperparameter, as data.

A plan is complete: it is made when a submission is accepted and kept in the journal, so that a
later version with other recipes resumes the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator
from pydantic_core import PydanticCustomError

from service.contract.catalogue.architectures import ARCHITECTURES, FAMILIES
from service.contract.schemas.epsilons import Epsilon
from service.contract.schemas.submissions import Spec, Strict
from service.contract.schemas.webhook_address import WebhookUrl

__all__ = [
    "TRAINING_METHODS",
    "Hyperparameters",
    "Schedule",
    "TrainSpec",
    "TrainingMethod",
    "TrainingPlan",
]

_MAX_SEED = 2**53 - 1


@dataclass(frozen=True)
class TrainingMethod:
    """One training method, as GET /methods lists it."""

    name: str
    title: str
    cost: str
    source: str
    #: Whether its forward pass may be computed in bfloat16 (``workers.training.precision``).
    bfloat16: bool = True


_METHODS = (
    TrainingMethod(
        "standard", "Cross-entropy alone", "1", "the baseline; certifies next to nothing"
    ),
    TrainingMethod(
        "lmt",
        "Lipschitz-margin training: sqrt(2) epsilon L on every wrong logit",
        "about 1.2",
        "Tsuzuku, Sato, Sugiyama 2018",
    ),
    TrainingMethod(
        "gloro",
        "Globally-robust networks: one more class that wins where the margin is not robust",
        "about 1.2",
        "Leino, Wang, Fredrikson 2021",
    ),
    TrainingMethod(
        "gloro-trades",
        "The same, the divergence to the robust output weighed against clean accuracy",
        "about 1.2",
        "Leino, Wang, Fredrikson 2021",
    ),
    TrainingMethod(
        "bcp",
        "Box constraint propagation: cross-entropy of the worst logits over ball and box",
        "about 4",
        "Lee, Lee, Park 2020",
        bfloat16=False,
    ),
    TrainingMethod(
        "local-lip-b",
        "BCP's loss with operator norms per sample",
        "about 5",
        "Huang, Zhang, Shi, Kolter, Anandkumar 2021",
        bfloat16=False,
    ),
    TrainingMethod(
        "local-lip-g",
        "GloRo's loss with operator norms per sample",
        "about 5",
        "Huang, Zhang, Shi, Kolter, Anandkumar 2021",
        bfloat16=False,
    ),
    TrainingMethod(
        "emma",
        "Efficient margin maximization: each wrong class gets the epsilon it can just bear",
        "about 1.2",
        "Hu, Zou, Wang, Leino, Fredrikson 2023",
    ),
)

#: Training methods by name; a further one is one row here and one file in workers/training.
TRAINING_METHODS: dict[str, TrainingMethod] = {row.name: row for row in _METHODS}

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Schedule(Strict):
    """A value over the run: points (share of the run, value), clamped at both ends.

    ``linear`` and ``log`` interpolate, ``cosine`` falls or rises along half a wave, ``steps``
    holds the last point's value.
    """

    points: list[tuple[Share, Amount]] = Field(min_length=1, max_length=100)
    shape: Literal["linear", "log", "cosine", "steps"] = "linear"

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """JSON has no tuples."""
        if isinstance(value, dict) and isinstance(value.get("points"), list):
            points = [tuple(p) if isinstance(p, list) else p for p in value["points"]]
            return {**value, "points": points}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Schedule:
        shares = [share for share, _ in self.points]
        if shares != sorted(shares):
            raise PydanticCustomError("invalid_schedule", "points must follow one another", {})
        if self.shape == "log" and any(value <= 0 for _, value in self.points):
            raise PydanticCustomError("invalid_schedule", "a log schedule needs values > 0", {})
        return self


def _constant(value: float) -> Any:
    return Field(default_factory=lambda: Schedule(points=[(0.0, value)]))


class Hyperparameters(Strict):
    """How a run goes; every one has a default, recipes and requests replace some.

    Schedules multiply: ``learning_rate_schedule`` the learning rate, ``epsilon_schedule`` the
    epsilon asked for. ``lookahead``: steps between two looks of the Lookahead optimiser, 0 for
    none. ``kappa_schedule`` weighs clean against robust cross-entropy (BCP),
    ``trades_schedule`` is lambda (GloRo). ``power_steps`` per training step; ``rounds`` of clip
    and rescale in the last layer; ``sparsity``: coefficient of Local-Lip's sparsity loss;
    ``least_share``: lower end of EMMA's e_j. ``precision`` of the forward pass, ``compiled``: the
    step by ``torch.compile``; ``auto`` is for the worker to say, of its device and the method.
    """

    epochs: int = Field(default=20, ge=1, le=100_000)
    batch_size: int = Field(default=256, ge=1, le=65_536)
    optimizer: Literal["adam", "nadam", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0, le=100, allow_inf_nan=False)
    learning_rate_schedule: Schedule = Field(
        default_factory=lambda: Schedule(points=[(0.0, 1.0), (1.0, 0.0)], shape="cosine")
    )
    warm_up: Share = 0.0
    weight_decay: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    lookahead: int = Field(default=0, ge=0, le=1000)
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    epsilon_schedule: Schedule = _constant(1.0)
    kappa_schedule: Schedule = _constant(0.0)
    trades_schedule: Schedule = _constant(1.0)
    augmentation: Literal["none", "crop-flip", "shift"] = "none"
    power_steps: int = Field(default=1, ge=1, le=1000)
    rounds: int = Field(default=1, ge=1, le=1000)
    sparsity: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    sparsity_margin: float = Field(default=0.1, ge=0, le=1000, allow_inf_nan=False)
    least_share: float = Field(default=0.01, gt=0, le=1, allow_inf_nan=False)
    activation: Literal["relu", "relu-theta", "maxmin", "clamped-maxmin"] = "relu"
    theta: float | None = Field(default=None, gt=0, le=1e6, allow_inf_nan=False)
    init: Literal["default", "glorot", "he", "orthogonal"] | None = None
    validation_samples: int = Field(default=1000, ge=0, le=1_000_000)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compiled: bool | Literal["auto"] = "auto"


class TrainSpec(Strict):
    """The body of POST /train."""

    method: str
    dataset: str = Field(max_length=200)
    epsilon: Epsilon
    architecture: str | dict[str, JsonValue] | None = None
    norm: Literal["l2", "linf"] = "l2"
    recipe: Literal["paper", "fast"] | dict[str, JsonValue] = "fast"
    activation: Literal["relu", "relu-theta", "maxmin", "clamped-maxmin"] | None = None
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    batch_size: int | None = Field(default=None, ge=1, le=65_536)
    learning_rate: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, le=_MAX_SEED)
    test_dataset: str | None = Field(default=None, max_length=200)
    certify: dict[str, JsonValue] | None = Field(default_factory=dict)
    force: bool = False
    webhook: WebhookUrl | None = None

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in TRAINING_METHODS:
            raise PydanticCustomError(
                "unknown_method",
                "{given} is not a training method; the known ones are {known}",
                {"given": repr(value[:60]), "known": ", ".join(TRAINING_METHODS)},
            )
        return value

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, value: JsonValue) -> JsonValue:
        """A name, a family with its sizes, or a layer list; each in one form."""
        if value is None or (isinstance(value, dict) and "name" not in value and "layers" in value):
            return value
        name = value.get("name") if isinstance(value, dict) else value
        members = value.items() if isinstance(value, dict) else ()
        sizes = {key: member for key, member in members if key != "name"}
        if isinstance(name, str) and name in FAMILIES:
            return {"name": name, **sizes}
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
        raise PydanticCustomError(
            "unknown_architecture",
            "{given} is not a known architecture; the known ones are {known}",
            {"given": repr(name)[:80], "known": ", ".join((*ARCHITECTURES, *FAMILIES))},
        )


class TrainingPlan(Strict):
    """A run, complete: what a worker trains, and what the journal keeps."""

    method: str
    architecture: str | dict[str, JsonValue]
    norm: Literal["l2", "linf"]
    epsilon: Epsilon
    recipe: str
    seed: int
    hyperparameters: Hyperparameters
    #: Whether the trained model is certified, by the submission's spec.
    certify: bool = True
    #: Without a test data set, this share of the samples, chosen at random, is kept from training.
    held_out: float = Field(default=0.0, ge=0, lt=1)

    def normal(self) -> dict[str, Any]:
        """The JSON object that is stored."""
        return self.model_dump(mode="json")


#: What a trained model is certified with unless the request says otherwise: the certificate that
#: its training aimed at, on every sample.
_CERTIFY: dict[str, dict[str, Any]] = {
    "standard": {"method": "auto", "samples": 1000},
    "local-lip-b": {"method": "local-lip"},
    "local-lip-g": {"method": "local-lip"},
}


def certification_spec(spec: TrainSpec) -> Spec | None:
    """The spec that the trained model is certified with; None where it shall not be.

    What the request leaves out is the norm and epsilon of training, all samples, and a method that
    fits the training's. Raises pydantic.ValidationError.
    """
    if spec.certify is None:
        return None
    base: dict[str, Any] = {"norm": spec.norm, "epsilons": [str(spec.epsilon)], "samples": "all"}
    base |= _CERTIFY.get(spec.method, {"method": "bcp"})
    if "indices" in spec.certify:
        del base["samples"]
    return Spec.model_validate({**base, **spec.certify})
