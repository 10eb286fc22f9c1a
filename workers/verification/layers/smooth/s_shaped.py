"""Sigmoid and tanh: what the deployed kernels may be off by, enclosures, lines above and below.

Both are f(z) = middle + height tanh(z / width), so that one set of formulas serves both. In REAL
arithmetic they increase, convex below 0 and concave above; the deployed kernels are rational
approximations that are not even monotone, so everything here adds ``KERNEL_ERROR``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.activations import Sigmoid, Tanh
from models.layers.base import Layer
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import Ball, Box, LayerRules, LinearRelaxation, Secants
from workers.verification.numerics import MANY, raised, rounded_down, rounded_up, up
from workers.verification.rounding import Rounding

__all__ = ["KERNEL_ERROR", "RULES", "S_SHAPED", "s_shaped"]

#: Largest absolute error of a deployed float32 sigmoid or tanh at any finite float32 input. A
#: STATED bound of the runtime's kernels, not a proved one: ONNX Runtime 1.31 on x86 is off by at
#: most 1.8e-7 (sigmoid) and 3.3e-7 (tanh) at every float32 between 2^-13 and 32 in size, and tanh
#: exceeds 1 by up to 2.4e-7; a test samples all finite numbers densely.
KERNEL_ERROR = 1e-6

#: Absolute error of torch's float64 tanh here and of the few operations around it.
_OWN_ERROR = 1e-14

#: |z| beyond which the curves are flat to the last bit of any float32 box.
_FLAT = 64.0


@dataclass(frozen=True)
class SShapedFunction:
    """f(z) = middle + height tanh(z / width); its largest slope is height / width."""

    middle: float
    height: float
    width: float

    @property
    def steepest(self) -> float:
        """The Lipschitz constant."""
        return self.height / self.width

    def value(self, z: Tensor) -> Tensor:
        """f(z) for float64 z, up to ``_OWN_ERROR``."""
        return self.middle + self.height * torch.tanh(z / self.width)

    def slope(self, z: Tensor) -> Tensor:
        """f'(z), computed as a value in [0, steepest]."""
        return self.steepest * (1.0 - torch.tanh(z / self.width).square())

    def place(self, slope: Tensor) -> Tensor:
        """The z >= 0 with f'(z) = slope; 0 above the steepest slope, +inf at slope 0.

        cosh(z / width)^2 = steepest / slope, in a form that loses no digits at either end.
        """
        share = (slope / self.steepest).clamp(0.0, 1.0)
        return self.width * (torch.log1p(torch.sqrt(1.0 - share)) - 0.5 * torch.log(share))


#: One row per s-shaped activation.
S_SHAPED: dict[type[Layer], SShapedFunction] = {
    Sigmoid: SShapedFunction(0.5, 0.5, 2.0),
    Tanh: SShapedFunction(0.0, 1.0, 1.0),
}


def s_shaped(layer: Layer, z: Tensor) -> Tensor:
    """The layer's value, evaluated in float64 and rounded to z's dtype."""
    return S_SHAPED[type(layer)].value(z.to(torch.float64)).to(z.dtype)


def _error(rounding: Rounding) -> float:
    """How far a deployed value may be from ``s_shaped`` at the same z (values are at most 1)."""
    if not rounding.is_sound:
        return 0.0
    return raised(KERNEL_ERROR + 2 * rounding.own + _OWN_ERROR, MANY)


def _open(layer: Layer, boxes: list[Box]) -> Tensor:
    """Where the layer changes enough over the box for its bounds to matter."""
    ((lower, upper),) = boxes
    return s_shaped(layer, upper) - s_shaped(layer, lower) > 1e-4


def _lines(
    layer: Layer, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """Sound lines for every box (CROWN, Zhang et al. 2018, section 3.3, for the slopes).

    A slope is chosen first (any would do) and rounded to the dtype; its intercepts are the extremes
    of f(z) - slope z over the box: at its ends or where f' is the slope, once per side of 0.
    A place that is off by 1e-13 moves such an extreme by less than 1e-25.
    """
    curve, dtype = S_SHAPED[type(layer)], lower.dtype
    low, high = lower.to(torch.float64), upper.to(torch.float64)
    above = _upper_slope(curve, low, high).to(dtype)
    below = _upper_slope(curve, -high, -low).to(dtype)
    highest = _extreme(curve, above.to(torch.float64), low, high, 1.0)
    lowest = _extreme(curve, below.to(torch.float64), low, high, -1.0)
    reach = torch.maximum(low.abs(), high.abs())
    error = _error(rounding)
    # Of slope times z and of the difference.
    lost = (up(3) - 1.0) * rounding.is_sound * reach
    highest = highest + (above.to(torch.float64) * lost + error)
    lowest = lowest - (below.to(torch.float64) * lost + error)
    return LinearRelaxation(
        below,
        rounded_down(lowest, dtype),
        above,
        rounded_up(highest, dtype),
        torch.zeros_like(lower, dtype=torch.bool),
        0.0,
    )


def _extreme(
    curve: SShapedFunction, slope: Tensor, low: Tensor, high: Tensor, side: float
) -> Tensor:
    """Largest (``side`` 1) or least (-1) value of f(z) - slope z over the box.

    Its only inner maximum is where f is concave (z > 0), its only inner minimum at the mirrored z.
    """
    inner = (side * curve.place(slope)).clamp(low, high)
    values = [curve.value(z) - slope * z for z in (low, high, inner)]
    stacked = torch.stack(values)
    return stacked.amax(0) if side > 0 else stacked.amin(0)


def _upper_slope(curve: SShapedFunction, low: Tensor, high: Tensor) -> Tensor:
    """Slope of a good line above f: tangent at the middle where f is concave, chord where convex.

    Across 0 it is the tangent through (low, f(low)), found by bisection, or the chord where that
    would touch beyond the box. By symmetry -below is the slope of the mirrored box.
    """
    width = torch.where(high > low, high - low, torch.ones_like(low))
    at_low = curve.value(low)
    chord = ((curve.value(high) - at_low) / width).nan_to_num(0.0, 0.0, 0.0)
    middle = curve.slope((low + high) * 0.5)
    crossing = (low < 0) & (high > 0)
    slope = torch.where(low >= 0, middle, chord)
    if bool(crossing.any()):
        left, right = torch.zeros_like(high), high.clamp(0.0, _FLAT * curve.width)
        end = right
        for _ in range(36):
            p = (left + right) * 0.5
            # Steeper than the line from (low, f(low)) to p: the touching point lies further right.
            steep = curve.slope(p) * (p - low) > curve.value(p) - at_low
            left, right = torch.where(steep, p, left), torch.where(steep, right, p)
        beyond = curve.slope(end) * (end - low) >= curve.value(end) - at_low
        slope = torch.where(crossing & ~beyond, curve.slope(left), slope)
    return slope.clamp(0.0, curve.steepest)


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Monotone in real arithmetic, the kernel's error and ours on top."""
    (state,) = inputs
    layer = step.layer(Layer)
    error = _error(rounding)
    lower = None if state.lower is None else s_shaped(layer, state.lower) - error
    upper = None if state.upper is None else s_shaped(layer, state.upper) + error
    radius = BALL.grown(step, state.radius, state.radius, rounding)
    return box_to_ball(Enclosure(s_shaped(layer, state.centre), radius, lower, upper, state.valid))


def _secants(layer: Layer, lower: Tensor, upper: Tensor, rounding: Rounding) -> Secants:
    """Values of f' over the box (mean value theorem): it falls with the distance from 0."""
    curve = S_SHAPED[type(layer)]
    ends = torch.stack([curve.slope(end.to(torch.float64)) for end in (lower, upper)])
    across = (lower <= 0) & (upper >= 0)
    highest = torch.where(across, curve.steepest, ends.amax(0) + 2 * _OWN_ERROR)
    lowest = ends.amin(0) - 2 * _OWN_ERROR
    error = torch.full_like(highest, _error(rounding))
    return Secants(lowest.clamp_min(0.0), highest, error)


def _growth(step: GraphStep, centre_norm: Tensor, rounding: Rounding) -> tuple[float, float]:
    layer = step.layer(Layer)
    size = torch.Size(step.shape).numel() ** 0.5
    return S_SHAPED[type(layer)].steepest, raised(_error(rounding) * size)


BALL = Ball(_growth, reads_norm=False)

RULES: dict[type[Layer], LayerRules] = dict.fromkeys(
    S_SHAPED,
    LayerRules(
        value=s_shaped,
        forward=_forward,
        ball=BALL,
        relax=_lines,
        secants=_secants,
        open=_open,
        slopes_in_unit_interval=True,
    ),
)
