"""The curved activations: their pieces, and how far the deployed kernels may be off.

Where f'' changes its sign:
* x Phi(x): f'' = phi(x) (2 - x^2): at -+sqrt 2.
* x sigmoid(x): f'' = s (1 - s) (2 - x tanh(x / 2)), x tanh(x / 2) is even and rises for x > 0.
* x (1 + tanh u) / 2, u = k (x + a x^3): f'' has the sign of 1 + 6 a x^2 - k x (1 + 3 a x^2)^2
  tanh u, which is even; the quotient of both terms, k x tanh(u) (1 + 9 a^2 x^4 / (1 + 6 a x^2)),
  rises for x > 0.
* x tanh(log(1 + e^x)): f'' has the sign of 2 (e + 1) (e^2 + 2 e + 2) - x (2 e^3 + 3 e^2 - 2 e - 2),
  e = e^x: two places (a test proves the signs between them in interval arithmetic).
Beyond ``FLAT`` each of these is 0 or x to within 1e-17.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    SELU,
    Atan,
    Cos,
    Erf,
    Exponential,
    HardSwish,
    Mish,
    Power,
    SiLU,
    Sin,
    Softsign,
)
from workers.verification.layers.rules import LayerRules
from workers.verification.layers.smooth.curve import (
    CONCAVE,
    CONVEX,
    KERNEL_ERROR,
    STRAIGHT,
    Curve,
    CurveRules,
    Piece,
)
from workers.verification.layers.smooth.waves import COSINE, RANGE, SINE, Wave, WaveRules
from workers.verification.numerics import min_normal
from workers.verification.rounding import unit_roundoff

__all__ = ["CURVES", "KERNEL_ERROR", "RULES"]

#: Where curves have become straight.
FLAT = 45.0
_UNIT = unit_roundoff(torch.float32)


def _gated(
    value: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    bends: tuple[float, float],
    steep: tuple[float, float],
    turn: float,
) -> Curve:
    """x times a gate: 0 far below, concave, convex between the bends, concave, x far above; falls
    up to ``turn``. steep: |f'| at the bends, rounded up."""
    return Curve(
        value,
        slope,
        (
            Piece(-math.inf, STRAIGHT),
            Piece(-FLAT, CONCAVE),
            Piece(bends[0], CONVEX, steep[0]),
            Piece(bends[1], CONCAVE, steep[1]),
            Piece(FLAT, STRAIGHT, 1.0),
        ),
        steepest=steep[1],
        turn=turn,
        absolute=KERNEL_ERROR,
        per_input=KERNEL_ERROR,
    )


def _gelu_slope(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) * math.sqrt(0.5 / math.pi)
    return 0.5 * torch.special.erfc(-z * math.sqrt(0.5)) + z * density


_GELU = _gated(
    lambda z: 0.5 * z * torch.special.erfc(-z * math.sqrt(0.5)),
    _gelu_slope,
    (-math.sqrt(2.0), math.sqrt(2.0)),
    (0.12890415, 1.12890415),
    -0.75179152469356446,
)

#: Twice the factor of the tanh form, and its cubic term.
_K, _A = 2.0 * math.sqrt(2.0 / math.pi), 0.044715


def _tanh_gate(z: Tensor) -> Tensor:
    # (1 + tanh u) / 2 = sigmoid(2 u), which loses no digits.
    return torch.sigmoid(_K * (z + _A * z * z * z))


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    gate = _tanh_gate(z)
    return gate + z * (_K * (1.0 + 3.0 * _A * z * z)) * (gate * (1.0 - gate))


_GELU_TANH = _gated(
    lambda z: z * _tanh_gate(z),
    _gelu_tanh_slope,
    (-1.4185040087908284, 1.4185040087908284),
    (0.12899307, 1.12899307),
    -0.75246142207101626,
)


def _silu_slope(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate * (1.0 + z * torch.sigmoid(-z))


_SILU = _gated(
    lambda z: z * torch.sigmoid(z),
    _silu_slope,
    (-2.3993572805154677, 2.3993572805154677),
    (0.09983933, 1.09983933),
    -1.2784645427610738,
)


def _mish_gate(z: Tensor) -> tuple[Tensor, Tensor]:
    """(tanh(log(1 + e^z)), its derivative)."""
    e = torch.exp(z.clamp_max(FLAT))
    whole = e * (e + 2.0) + 2.0
    return e * (e + 2.0) / whole, 4.0 * e * (e + 1.0) / whole.square()


def _mish_slope(z: Tensor) -> Tensor:
    gate, rise = _mish_gate(z)
    return gate + z.clamp_max(FLAT) * rise


_MISH = _gated(
    lambda z: z * _mish_gate(z)[0],
    _mish_slope,
    (-2.2563763963607931, 1.4905711794854285),
    (0.11252613, 1.08849817),
    -1.1924312145154952,
)

_HARD_SWISH = Curve(
    lambda z: z * (z / 6.0 + 0.5).clamp(0.0, 1.0),
    lambda z: torch.where(z.abs() <= 3.0, z / 3.0 + 0.5, (z > 0).to(z.dtype)),
    (
        Piece(-math.inf, STRAIGHT),
        Piece(-3.0, CONVEX, 0.5),
        Piece(3.0, STRAIGHT, 1.5),
    ),
    steepest=1.5,
    turn=-1.5,
    place=lambda slope, number: 3.0 * slope - 1.5,
    absolute=KERNEL_ERROR,
    per_input=KERNEL_ERROR,
)

_SOFTSIGN = Curve(
    lambda z: z / (1.0 + z.abs()),
    lambda z: (1.0 + z.abs()).square().reciprocal(),
    (Piece(-math.inf, CONVEX), Piece(0.0, CONCAVE, 1.0)),
    steepest=1.0,
    place=lambda slope, number: (slope.clamp(0.0, 1.0).rsqrt() - 1.0) * (1 if number else -1),
    absolute=KERNEL_ERROR,
)


_ERF = Curve(
    torch.special.erf,
    lambda z: torch.exp(-z * z) * (2.0 / math.sqrt(math.pi)),
    (
        Piece(-math.inf, STRAIGHT),
        Piece(-FLAT, CONVEX),
        Piece(0.0, CONCAVE, 1.12837917),
        Piece(FLAT, STRAIGHT),
    ),
    steepest=1.12837917,
    place=lambda slope, number: (
        torch.sqrt(-torch.log((slope * (0.5 * math.sqrt(math.pi))).clamp(0.0, 1.0)))
        * (2 * number - 3)
    ),
    absolute=KERNEL_ERROR,
)


_ATAN = Curve(
    torch.atan,
    lambda z: (1.0 + z * z).reciprocal(),
    (Piece(-math.inf, CONVEX), Piece(0.0, CONCAVE, 1.0)),
    steepest=1.0,
    place=lambda slope, number: (
        ((1.0 - slope.clamp(0.0, 1.0)) / slope.clamp(0.0, 1.0)).sqrt() * (2 * number - 1)
    ),
    absolute=KERNEL_ERROR,
)


def _exponential(layer: Exponential) -> Curve:
    scale, alpha, width = layer.scale, layer.alpha, layer.width
    rise = scale * alpha / width

    def value(z: Tensor) -> Tensor:
        below = scale * alpha * torch.expm1(z.clamp_max(0.0) / width)
        return torch.where(z > 0, scale * z, below)

    def slope(z: Tensor) -> Tensor:
        return torch.where(z > 0, scale, rise * torch.exp(z.clamp_max(0.0) / width))

    return Curve(
        value,
        slope,
        (
            Piece(-math.inf, STRAIGHT),
            Piece(-FLAT * width, CONVEX),
            Piece(0.0, STRAIGHT, max(scale, rise)),
        ),
        steepest=max(1.0, scale, rise),
        place=lambda slope, number: width * torch.log(slope.clamp_min(0.0) / rise),
        absolute=KERNEL_ERROR * scale * alpha,
        # One product with the scale, there and here.
        per_value=0.0 if scale == 1.0 else 4 * _UNIT,
    )


def _raised(
    exponent: int,
    slope: Callable[[Tensor], Tensor],
    pieces: tuple[Piece, ...],
    place: Callable[[Tensor, int], Tensor],
) -> Curve:
    """z to a power: a product or two, or what a library makes of it; what underflows is lost."""
    return Curve(
        lambda z: z * z if exponent == 2 else z * z * z,
        slope,
        pieces,
        steepest=math.inf,
        turn=0.0 if exponent == 2 else None,
        place=place,
        absolute=4 * min_normal(torch.float32),
        per_value=4 * _UNIT,
        largest=2.0 ** (120 // exponent),
    )


_POWERS = {
    2: _raised(
        2, lambda z: 2.0 * z, (Piece(-math.inf, CONVEX),), lambda slope, number: 0.5 * slope
    ),
    3: _raised(
        3,
        lambda z: 3.0 * z * z,
        (Piece(-math.inf, CONCAVE), Piece(0.0, CONVEX)),
        lambda slope, number: (slope.clamp_min(0.0) / 3.0).sqrt() * (2 * number - 1),
    ),
}


_WAVES: dict[type[Layer], Wave] = {Sin: SINE, Cos: COSINE}
#: The curve of each activation: one row per layer.
CURVES: dict[type[Layer], Callable[..., Curve]] = {
    ELU: _exponential,
    SELU: _exponential,
    CELU: _exponential,
    Softsign: lambda layer: _SOFTSIGN,
    Erf: lambda layer: _ERF,
    SiLU: lambda layer: _SILU,
    GELU: lambda layer: _GELU if layer.approximate == "none" else _GELU_TANH,
    HardSwish: lambda layer: _HARD_SWISH,
    Mish: lambda layer: _MISH,
    Power: lambda layer: _POWERS[layer.exponent],
    Atan: lambda layer: _ATAN,
    **{kind: lambda layer, wave=wave: wave for kind, wave in _WAVES.items()},
}
#: Never falling and 1-Lipschitz, whatever their parameters.
_MODERATE = (CELU, Softsign, Atan)


def _rules(layer: type[Layer]) -> LayerRules:
    wave = _WAVES.get(layer)
    rules = CurveRules(CURVES[layer]) if wave is None else WaveRules(lambda _: wave, RANGE)
    bounded = layer is not Power
    return LayerRules(
        value=rules.value,
        forward=rules.forward,
        image=rules.image,
        ball=rules.ball if bounded else None,
        slopes=rules.slopes if bounded else None,
        relax=rules.lines,
        secants=rules.secants if bounded else None,
        open=rules.open,
        slopes_in_unit_interval=layer in _MODERATE,
    )


RULES: dict[type[Layer], LayerRules] = {layer: _rules(layer) for layer in CURVES}
