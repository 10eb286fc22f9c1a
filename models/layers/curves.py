"""Curved activations: exponential and softsign, gated by their own input, powers, waves; and steep
ones, which leave float32 or have no value somewhere.

Deployed, each is one operator or the nodes that exporters write; how far these are from the real
function is found by trying every float32 number (``benchmarks/verification/kernels.py``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelError
from models.layers.base import Layer, as_float32

__all__ = [
    "CELU",
    "CURVED",
    "ELU",
    "GELU",
    "GELU_FORMS",
    "SELU",
    "STEEP",
    "Atan",
    "Cos",
    "Erf",
    "Exp",
    "Exponential",
    "HardSwish",
    "Log",
    "Mish",
    "Power",
    "Reciprocal",
    "SiLU",
    "Sin",
    "Softsign",
    "Sqrt",
    "Within",
]

#: Largest factor and width of the exponential activations; the least is one over it.
LARGEST_FACTOR = 1e3


class Exponential(Layer):
    """scale x where x > 0, scale alpha (exp(x / width) - 1) elsewhere: what ELU and its kin are."""

    scale = alpha = width = 1.0

    def _factors(self, **given: float) -> None:
        for name, value in given.items():
            setattr(self, name, as_float32(value))
            if not 1.0 / LARGEST_FACTOR <= getattr(self, name) <= LARGEST_FACTOR:
                raise ModelError(
                    f"{self.kind} with {name} = {value}: only 0.001 to 1000 is supported",
                    code="invalid_network",
                )

    def forward(self, x: Tensor) -> Tensor:
        falling = self.alpha * torch.expm1(x.clamp_max(0.0) / self.width)
        return self.scale * torch.where(x > 0, x, falling)


class ELU(Exponential):
    """x where x > 0, alpha (exp(x) - 1) elsewhere; alpha > 0 (Clevert et al. 2016)."""

    kind = "elu"

    def __init__(self, *, alpha: float = 1.0) -> None:
        super().__init__()
        self._factors(alpha=alpha)

    def config(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


class SELU(Exponential):
    """gamma x where x > 0, gamma alpha (exp(x) - 1) elsewhere (Klambauer et al. 2017)."""

    kind = "selu"

    def __init__(
        self, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
    ) -> None:
        super().__init__()
        self._factors(alpha=alpha, scale=gamma)

    def config(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "gamma": self.scale}


class CELU(Exponential):
    """x where x > 0, alpha (exp(x / alpha) - 1) elsewhere; alpha > 0 (Barron 2017)."""

    kind = "celu"

    def __init__(self, *, alpha: float = 1.0) -> None:
        super().__init__()
        self._factors(alpha=alpha, width=alpha)

    def config(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


class Softsign(Layer):
    """x / (1 + |x|), elementwise."""

    kind = "softsign"

    def forward(self, x: Tensor) -> Tensor:
        return F.softsign(x)


class Erf(Layer):
    """The error function, elementwise."""

    kind = "erf"

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.erf(x)


class Atan(Layer):
    """The inverse of the tangent, from -pi/2 to pi/2, elementwise."""

    kind = "atan"

    def forward(self, x: Tensor) -> Tensor:
        return torch.atan(x)


class Sin(Layer):
    """The sine of x in radians, elementwise (Sitzmann et al. 2020 as an activation)."""

    kind = "sin"

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Cos(Layer):
    """The cosine of x in radians, elementwise."""

    kind = "cos"

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x)


class SiLU(Layer):
    """x sigmoid(x), elementwise; also called Swish."""

    kind = "silu"

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


#: Forms of GELU as torch and ONNX name them.
GELU_FORMS = ("none", "tanh")


class GELU(Layer):
    """x times the normal distribution at x (``none``), or its approximation by ``tanh``:
    x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Hendrycks and Gimpel 2016)."""

    kind = "gelu"

    def __init__(self, *, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate
        if approximate not in GELU_FORMS:
            raise ModelError(
                f"gelu with approximate = {approximate!r:.40}: one of {GELU_FORMS}",
                code="invalid_network",
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)

    def config(self) -> dict[str, Any]:
        return {"approximate": self.approximate}


class HardSwish(Layer):
    """x min(max(x / 6 + 1/2, 0), 1), elementwise (Howard et al. 2019)."""

    kind = "hard-swish"

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


class Mish(Layer):
    """x tanh(log(1 + exp(x))), elementwise (Misra 2019)."""

    kind = "mish"

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(x)


class Power(Layer):
    """x to the power of 2 or 3, elementwise."""

    kind = "power"

    def __init__(self, *, exponent: int = 2) -> None:
        super().__init__()
        self.exponent = int(exponent)
        if self.exponent not in (2, 3):
            raise ModelError(
                f"power with the exponent {exponent}: only 2 and 3 are supported",
                code="invalid_network",
            )

    def forward(self, x: Tensor) -> Tensor:
        square = x * x
        return square if self.exponent == 2 else square * x

    def config(self) -> dict[str, Any]:
        return {"exponent": self.exponent}


CURVED: tuple[type[Layer], ...] = (
    *(ELU, SELU, CELU, Softsign, Erf, SiLU, GELU, HardSwish, Mish, Power, Atan, Sin, Cos),
)


class Exp(Layer):
    """e to the power of x, elementwise."""

    kind = "exp"

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class Log(Layer):
    """The natural logarithm of x > 0, elementwise."""

    kind = "log"

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


class Reciprocal(Layer):
    """1 / x, elementwise."""

    kind = "reciprocal"

    def forward(self, x: Tensor) -> Tensor:
        return torch.reciprocal(x)


class Sqrt(Layer):
    """The root of x >= 0, elementwise."""

    kind = "sqrt"

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)


class Within(Layer):
    """x itself, of which nothing is known outside [low, high], and elsewhere but for ``off``.

    No operator: the file writes what follows in a form that leaves float32 there (such as
    log(1 + exp(x)), a softplus up to x = 88), or loses a little of every number.
    """

    kind = "within"

    def __init__(
        self, *, low: float | None = None, high: float | None = None, off: float = 0.0
    ) -> None:
        super().__init__()
        self.low = None if low is None else as_float32(low)
        self.high = None if high is None else as_float32(high)
        self.off = as_float32(off)
        if not 0.0 <= self.off <= 1.0:
            raise ModelError(f"within: off by {off}: only 0 to 1", code="invalid_network")

    def forward(self, x: Tensor) -> Tensor:
        return x

    def config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, **({"off": self.off} if self.off else {})}

    @property
    def domain(self) -> tuple[float, float]:
        """Both ends."""
        low = -math.inf if self.low is None else self.low
        return low, math.inf if self.high is None else self.high


STEEP: tuple[type[Layer], ...] = (Exp, Log, Reciprocal, Sqrt, Within)
