"""Exponentials, logarithms, reciprocals and roots: curves with a domain, and no slope at its end.

Beyond the domain the deployed function overflows, divides by 0 or has no value. A sample whose
numbers may get there has no enclosure (``Enclosure.valid``) and infinite lines. There is no rule
for a ball alone, as there is no constant that slopes keep to: bounds that need one do not cover
these layers. Each is convex or concave throughout its domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.curves import Exp, Log, Reciprocal, Sqrt, Within
from workers.verification.layers.rules import LayerRules
from workers.verification.layers.smooth.curve import (
    CONCAVE,
    CONVEX,
    STRAIGHT,
    Curve,
    CurveRules,
    Piece,
)
from workers.verification.numerics import min_normal
from workers.verification.rounding import unit_roundoff

__all__ = ["CURVES", "HIGHEST_EXPONENT", "KERNEL_ROUNDINGS", "LOG_ROUNDINGS", "RULES"]

#: Roundings of its value that a deployed one may be off by; of log, in units of max(1, |value|). A
#: STATED bound of the runtimes' kernels, not a proved one: ONNX Runtime 1.31 and torch 2.13 on x86
#: are off by less than half of it (benchmarks/verification/kernels.py; docs/results.md).
KERNEL_ROUNDINGS, LOG_ROUNDINGS = 4, 6
#: Numbers up to which no exponential overflows: e^88 is half of the largest float32 number.
HIGHEST_EXPONENT = 88.0
#: Least number of which a logarithm or a reciprocal is taken.
LEAST = 2.0**-100
_UNIT = unit_roundoff(torch.float32)
#: What underflows is lost, or is a multiple of the least number.
_LOST = 4 * min_normal(torch.float32)


def _bent(
    value: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    bend: int,
    place: Callable[[Tensor], Tensor],
    domain: tuple[float, float],
    *,
    absolute: float = _LOST,
    roundings: int = KERNEL_ROUNDINGS,
    falls: bool = False,
) -> Curve:
    """A curve that bends one way."""
    return Curve(
        value,
        slope,
        (Piece(-math.inf, bend),),
        steepest=math.inf,
        place=lambda slope, number: place(slope),
        absolute=absolute,
        per_value=roundings * _UNIT,
        domain=domain,
        falls=falls,
    )


_EXP = _bent(
    *(torch.exp, torch.exp, CONVEX, lambda slope: torch.log(slope.clamp_min(0.0))),
    (-math.inf, HIGHEST_EXPONENT),
)
_LOG = _bent(
    *(torch.log, torch.reciprocal, CONCAVE, lambda slope: slope.clamp_min(0.0).reciprocal()),
    (LEAST, math.inf),
    absolute=LOG_ROUNDINGS * _UNIT,
    roundings=LOG_ROUNDINGS,
)
_RECIPROCAL = _bent(
    *(torch.reciprocal, lambda z: -z.square().reciprocal(), CONVEX),
    lambda slope: (-slope).clamp_min(0.0).rsqrt(),
    (LEAST, math.inf),
    falls=True,
)
_SQRT = _bent(
    *(torch.sqrt, lambda z: 0.5 * z.rsqrt(), CONCAVE),
    lambda slope: (2.0 * slope.clamp_min(0.0)).square().reciprocal(),
    (0.0, math.inf),
)


def _within(layer: Within) -> Curve:
    return Curve(
        torch.clone,
        torch.ones_like,
        (Piece(-math.inf, STRAIGHT),),
        # There is no ball that stays within.
        steepest=math.inf,
        domain=layer.domain,
        absolute=layer.off,
    )


#: The curve of each: one row per layer.
CURVES: dict[type[Layer], Callable[..., Curve]] = {
    Exp: lambda layer: _EXP,
    Log: lambda layer: _LOG,
    Reciprocal: lambda layer: _RECIPROCAL,
    Sqrt: lambda layer: _SQRT,
    Within: _within,
}


def _rules(layer: type[Layer]) -> LayerRules:
    rules = CurveRules(CURVES[layer])
    return LayerRules(
        value=rules.value,
        forward=rules.forward,
        image=rules.image,
        relax=rules.lines,
        open=rules.open,
    )


RULES: dict[type[Layer], LayerRules] = {layer: _rules(layer) for layer in CURVES}
