"""The settings of a training run: method, architecture, data options, length and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Protocol

from workers.training.schedules import Schedule

__all__ = ["MethodFacts", "TrainingConfig", "TrainingError"]


class TrainingError(ValueError):
    """A run that cannot start or has failed.

    code: machine-readable reason; hint: what to do; field: the member of the request at fault.
    """

    def __init__(
        self, code: str, message: str, *, hint: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.field = field


class MethodFacts(Protocol):
    """What a run needs to know of its method beside the objective; the catalogue row has it."""

    @property
    def bfloat16(self) -> bool:
        """Whether the forward pass may be computed in bfloat16: it carries no boxes."""

    @property
    def bfloat16_on_cpu(self) -> bool:
        """Whether ``precision: auto`` means bfloat16 on a processor that multiplies it, too."""

    @property
    def compiled(self) -> bool:
        """Whether ``compiled: auto`` means yes on a GPU."""


@dataclass(frozen=True)
class TrainingConfig:
    """One run, complete. epsilon is in pixel units of ``norm``; the schedules multiply.

    power_steps: of the global norms, per training step. rounds: of clip and rescale in the last
    layer. warm_up: part of the run in which the learning rate rises from 0. theta: initial
    threshold of ReLU-theta. precision (auto, float32, bfloat16) and compiled (auto or a bool):
    ``workers.training.precision``; bears_bfloat16, bfloat16_on_cpu, compiles: what the
    method's row says of it.
    devices: ranks that share every batch of ``batch_size`` samples.
    options: of the method alone, by name. See ``docs/training.md``.
    """

    method: str
    architecture: str | Mapping[str, Any]
    epsilon: float
    norm: str = "l2"
    seed: int = 0
    devices: int = 1
    epochs: int = 20
    batch_size: int = 256
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    learning_rate_schedule: Schedule = field(default_factory=lambda: Schedule.constant(1.0))
    warm_up: float = 0.0
    weight_decay: float = 0.0
    lookahead: int = 0
    clip_norm: float | None = None
    epsilon_schedule: Schedule = field(default_factory=lambda: Schedule.constant(1.0))
    kappa_schedule: Schedule = field(default_factory=lambda: Schedule.constant(0.0))
    trades_schedule: Schedule = field(default_factory=lambda: Schedule.constant(1.0))
    augmentation: str = "none"
    power_steps: int = 1
    rounds: int = 1
    sparsity: float = 0.0
    sparsity_margin: float = 0.1
    least_share: float = 0.01
    activation: str = "relu"
    theta: float | None = None
    init: str | None = None
    validation_samples: int = 0
    precision: str = "float32"
    compiled: bool | str = False
    options: Mapping[str, Any] = field(default_factory=dict)
    bears_bfloat16: bool = False
    bfloat16_on_cpu: bool = False
    compiles: bool = False

    @classmethod
    def of_plan(cls, plan: Mapping[str, Any], method: MethodFacts) -> TrainingConfig:
        """The run of a plan's JSON
        (``service.contract.schemas.training_plans.TrainingPlan.normal()``); ``method``: the row of
        the plan's method.
        """
        values = dict(plan["hyperparameters"])
        for name, value in values.items():
            if name.endswith("_schedule"):
                points = tuple((float(at), float(level)) for at, level in value["points"])
                values[name] = Schedule(points, value["shape"])
        known = {row.name for row in fields(cls)}
        return cls(
            method=plan["method"],
            architecture=plan["architecture"],
            epsilon=float(Fraction(plan["epsilon"])),
            norm=plan["norm"],
            seed=int(plan["seed"]),
            devices=int(plan.get("devices", 1)),
            bears_bfloat16=method.bfloat16,
            bfloat16_on_cpu=method.bfloat16_on_cpu,
            compiles=method.compiled,
            **{name: value for name, value in values.items() if name in known},
        )

    def rate(self, progress: float) -> float:
        """The learning rate at ``progress`` (0 to 1) of the run, warm-up included."""
        rising = min(1.0, progress / self.warm_up) if self.warm_up > 0 else 1.0
        return self.learning_rate * self.learning_rate_schedule.at(progress) * rising
