"""The options that are a training method's own: one model per set of them.

A method's row in ``service/contract/catalogue/training_methods.py`` names its model; a request
gives them as ``recipe: {"options": {...}}``. The names in this file were there before that: they
are taken at the recipe's top level too, and a plan keeps them among its other hyperparameters.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.contract.schemas.submissions import Strict
from service.contract.schemas.training_schedules import ScheduleSpec, constant

__all__ = [
    "BcpOptions",
    "CapOptions",
    "ColtOptions",
    "CrownIbpOptions",
    "EmmaOptions",
    "ExpressiveOptions",
    "GloroTradesOptions",
    "IbpOptions",
    "LmtOptions",
    "LocalLipBOptions",
    "LocalLipGOptions",
    "NoOptions",
    "OneLipschitzOptions",
    "SabrOptions",
    "SocCrcOptions",
    "SocOptions",
    "StapsOptions",
    "TapsOptions",
]


class NoOptions(Strict):
    """None."""


class LmtOptions(Strict):
    """``kappa_schedule``: weight of clean cross-entropy, that of the robust one is the rest."""

    kappa_schedule: ScheduleSpec = constant(0.0)


class GloroTradesOptions(Strict):
    """``trades_schedule``: lambda, the weight of the divergence to the robust output."""

    trades_schedule: ScheduleSpec = constant(1.0)


class EmmaOptions(Strict):
    """``least_share``: lower end of e_j, the share of epsilon that a wrong class gets."""

    least_share: float = Field(
        default=0.01,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="EMMA: least share of epsilon that a wrong class gets.",
    )


class OneLipschitzOptions(Strict):
    """``temperature``: by which logits are divided in the cross-entropy."""

    temperature: float = Field(default=0.25, gt=0, le=1000, allow_inf_nan=False)


class _OneRadius(Strict):
    """``loss`` of the logits; ``gamma``: weight of the mean radius, which is subtracted from it."""

    loss: Literal["cross-entropy", "logit-annealing"] = "cross-entropy"
    gamma: float = Field(default=0.1, ge=0, le=1000, allow_inf_nan=False)


class SocOptions(_OneRadius):
    """``shift``: what is added to the logits first; ``emma``: EMMA's, with its ``least_share``."""

    shift: Literal["none", "emma"] = "none"


class SocCrcOptions(_OneRadius):
    """``curvature``: weight of the head's mean curvature."""

    gamma: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    curvature: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)


class _LastLayer(Strict):
    """``rounds``: of clip and rescale in the last layer."""

    rounds: int = Field(
        default=1, ge=1, le=1000, description="Of clip and rescale in the last layer."
    )


class BcpOptions(LmtOptions, _LastLayer):
    """LMT's weight of clean cross-entropy, and the rounds in the last layer."""


class LocalLipGOptions(_LastLayer):
    """``sparsity``: coefficient of the sparsity loss, counted below ``sparsity_margin``."""

    sparsity: float = Field(
        default=0.0, ge=0, le=1000, allow_inf_nan=False, description="Weight of the sparsity loss."
    )
    sparsity_margin: float = Field(
        default=0.1, ge=0, le=1000, allow_inf_nan=False, description="It is counted below this."
    )


class LocalLipBOptions(LocalLipGOptions, BcpOptions):
    """BCP's, and those of the sparsity loss."""


class IbpOptions(LmtOptions):
    """``l1``: weight of the sum of all weights' magnitudes. ``regularization``: weight of Shi's
    regularisers while epsilon grows, which act below ``regularization_tolerance``."""

    l1: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    regularization: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    regularization_tolerance: float = Field(default=0.5, gt=0, le=1, allow_inf_nan=False)


class CrownIbpOptions(IbpOptions):
    """``beta``: share of interval bounds in the loss at the last epsilon."""

    beta: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)


class _Attack(IbpOptions):
    """``attack_steps`` of ``attack_step_size`` (in radii of the box), from as many random starts
    as ``attack_restarts``."""

    attack_steps: int = Field(default=8, ge=0, le=1000)
    attack_restarts: int = Field(default=1, ge=1, le=64)
    attack_step_size: float = Field(default=0.25, gt=0, le=100, allow_inf_nan=False)


class ExpressiveOptions(_Attack):
    """``alpha``: share of interval bounds, the rest is the attack's, which looks ``attack_scale``
    times as far."""

    alpha: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)
    attack_scale: float = Field(default=1.0, gt=0, le=100, allow_inf_nan=False)


class _Shrunk(_Attack):
    """``relu_shrinkage``: what upper ends behind unstable ReLUs are multiplied with."""

    relu_shrinkage: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)


class SabrOptions(_Shrunk):
    """``subselection_ratio``: the paper's lambda, the small box's radius in epsilons."""

    subselection_ratio: float = Field(default=0.4, gt=0, le=1, allow_inf_nan=False)


class TapsOptions(_Shrunk):
    """``attacked_activations``: activations behind the box that is attacked, ``gradient_weight`` of
    that attack's loss; a point within ``linked_share`` of an end moves with it."""

    attacked_activations: int = Field(default=1, ge=0, le=1000)
    gradient_weight: float = Field(default=4.0, gt=0, le=1000, allow_inf_nan=False)
    linked_share: float = Field(default=0.5, gt=0, le=1, allow_inf_nan=False)


class StapsOptions(TapsOptions, SabrOptions):
    """TAPS's, and the small box of SABR."""


class CapOptions(LmtOptions):
    """LMT's weight of clean cross-entropy. ``projections``: random ones that estimate the boxes of
    the dual's layers, where a set has more terms; 0: none, exact and far dearer.
    ``cascade_stages``: networks of a cascade, at most."""

    projections: int = Field(
        default=50,
        ge=0,
        le=10_000,
        description="Random projections that estimate the dual's boxes; 0: exact, far dearer.",
    )
    cascade_stages: int = Field(
        default=1,
        ge=1,
        le=6,
        description="Networks of a cascade, at most, trained one after the other: each on the "
        "training samples of which no network before it certifies its prediction. More than 1: "
        "one job, a model and a report for each stage, GET /jobs/{id}/cascade for all of them.",
    )


class ColtOptions(Strict):
    """``latent_layers``: ReLUs behind which the adversary is, one after the other (None: all but
    the last). In ``mix`` of each stage the new adversary takes over. ``stability``: weight of the
    next ReLU's unstable neurons, times ``stability_growth`` from stage to stage; ``projections``
    estimate their boxes. ``l1``: weight of the sum of all weights' magnitudes. The attacks:
    ``attack_steps``, the last of which only looks, of ``attack_step_size`` error terms each."""

    latent_layers: int | None = Field(default=None, ge=0, le=1000)
    mix: float = Field(default=0.3, ge=0, le=1, allow_inf_nan=False)
    stability: float = Field(default=0.005, ge=0, le=1000, allow_inf_nan=False)
    stability_growth: float = Field(default=1.5, gt=0, le=1000, allow_inf_nan=False)
    l1: float = Field(default=1e-5, ge=0, le=1, allow_inf_nan=False)
    attack_steps: int = Field(default=8, ge=1, le=1000)
    attack_step_size: float = Field(default=0.25, gt=0, le=100, allow_inf_nan=False)
    projections: int = Field(default=50, ge=1, le=10_000)
