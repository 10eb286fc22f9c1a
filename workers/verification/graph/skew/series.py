"""Truncated series of one skew kernel as ONE affine map: skew orthogonal convolutions as deployed.

The chain z <- x + c_i K z, i = d ... 1, beginning with z = x, is the polynomial p(K) x with
coefficients a_j = c_1 ... c_j. Step by step its norm would be the sum of a_j |K|^j, some e^|K|. For
a skew K (a kernel that is its own negative transpose, with the same zero padding on all sides, or a
skew matrix) it is the largest |p(it)| for |t| <= |K|, which is proved in exact rationals
(``norms.power_series``): 1 for the exponential series of degree 8 or 12 and |K| up to 3.3.

Its deployed roundings. One stage computes z_i = x + c_i K z_(i+1) up to e_i with |e_i| <= gamma_t
|c_i| |K| |z_(i+1)| + u |x|, for the t roundings of map, factor and sum. What reaches the output of
e_i is c_1 ... c_(i-1) K^(i-1) e_i, so that in the Euclidean norm the errors E_i of z_i obey
    E_i <= |c_i| |K|_2 E_(i+1) + gamma_t |c_i| ||K||_2 (sup |q_(i+1)(it)| |x| + E_(i+1)) + u |x|,
||K||_2 the norm of the entrywise absolute value, q_i the polynomial with z_i = q_i(K) x; where what
is proved of sums in any order (``Affine.rounding_share``) is less than gamma_t ||K||_2, it stands
in its place. Solved in units of u |x| that is a number of rounding steps, ``terms``, of a map whose
``absolute_norm`` is 1: far fewer than the entrywise bound sum_j a_j |K|^j gives. ``terms`` is at
least what each product meets on its way (j maps and j + 1 sums), so that this entrywise bound,
``absolute``, holds with the same gamma.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine, Inner, Norms
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.norms.dense import dense_norm
from workers.verification.norms.power_series import imaginary_supremum
from workers.verification.norms.skew_maps import skew_norm, skew_norm_cost
from workers.verification.norms.spectral import absolute_norm
from workers.verification.numerics import MANY, ROOM, SECOND_ORDER, raised
from workers.verification.rounding import Rounding
from workers.verification.summation import Summation

__all__ = ["MORE_TERMS", "SkewSeries"]

#: Roundings of one deployed factor c and one sum.
MORE_TERMS = 6.0
#: Multiplications, about, that a kernel's norm may take.
AFFORDABLE = 5e10


@dataclass(frozen=True, eq=False)
class SkewSeries(Affine):
    """p(K) for a skew map K on the values of a shape; ``scales`` are c_1 ... c_d, exact."""

    kernel: Convolution | Dense = field(kw_only=True)
    scales: tuple[Fraction, ...] = field(kw_only=True)

    @classmethod
    def of(
        cls,
        kernel: Convolution | Dense,
        scales: tuple[Fraction, ...],
        known: Sequence[float] = (),
        clock: Clock = UNLIMITED,
    ) -> SkewSeries:
        """The map that a chain of this kernel deploys. known: its ``kernel_norms``, where an
        earlier compilation has found them. Raises OutOfTime."""
        for name, value in zip(("norm", "entrywise"), known, strict=False):
            kernel.scalar(name, functools.partial(torch.tensor, value, dtype=torch.float64))
        _reach(kernel, clock)
        _entrywise(kernel, clock)
        zero = torch.zeros((), dtype=torch.float64)
        shape, inner = kernel.in_shape, _inner(kernel, scales)
        return cls(
            shape,
            shape,
            zero,
            zero,
            _terms(kernel, scales, kernel.terms, _with_more(kernel.summation)),
            kernel=kernel,
            scales=scales,
            inner=inner,
            least_own_terms=_terms(
                kernel, scales, kernel.own_terms, _with_more(kernel.own_summation)
            ),
        )

    @property
    def kernel_norms(self) -> list[float]:
        """Upper bounds on |K| and on the norm of its entrywise absolute value."""
        return [_reach(self.kernel), _entrywise(self.kernel)]

    @property
    def coefficients(self) -> tuple[Fraction, ...]:
        """a_0 ... a_d."""
        return _coefficients(self.scales)

    def linear(self, x: Tensor) -> Tensor:
        return self._horner(x, 1.0)

    def adjoint(self, y: Tensor) -> Tensor:
        """W^T y = p(-K) y: [rows, *out_shape] -> [rows, *in_shape]."""
        return self._horner(y, -1.0)

    def _horner(self, x: Tensor, sign: float) -> Tensor:
        z = x
        for scale in reversed(self.scales):
            image = self.kernel.linear(z).reshape(x.shape)
            z = torch.add(x, image, alpha=sign * float(scale))
        return z

    def absolute(self, x: Tensor) -> Tensor:
        """sum_j |a_j| |K|^j x for x >= 0, which is at least |W| x."""
        z = x
        for scale in reversed(self.scales):
            image = self.kernel.absolute(z).reshape(x.shape)
            z = torch.add(x, image, alpha=raised(abs(float(scale))))
        return z

    def weights(self) -> list[Tensor]:
        return self.kernel.weights()

    def row_norms_square(self) -> Tensor:
        """No row is longer than the map's norm."""
        norm = self.spectral()
        return torch.tensor(raised(norm * norm), dtype=torch.float64)

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        def made() -> Tensor:
            bound = imaginary_supremum(self.coefficients, _reach(self.kernel, clock))
            if bound > 1.0:
                bound = min(
                    bound, imaginary_supremum(self.coefficients, self.kernel.spectral(clock))
                )
            return torch.tensor(bound, dtype=torch.float64)

        return self.scalar("spectral", made)

    def absolute_norm(self, clock: Clock = UNLIMITED) -> float:
        """What ``terms`` are counted for: the size of the result, no norm of absolute values."""
        return max(1.0, self.spectral(clock)) * SECOND_ORDER


def _coefficients(scales: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    found = [Fraction(1)]
    for scale in scales:
        found.append(found[-1] * scale)
    return tuple(found)


def _reach(kernel: Convolution | Dense, clock: Clock = UNLIMITED) -> float:
    """Upper bound on |K|, made once: of the circulant map where that is cheap, else of a
    flattening.

    Every output is a matrix [out, in h w] times a window, and a value is in h w windows (Singla and
    Feizi 2021, theorem 1).
    """
    if isinstance(kernel, Dense):
        return kernel.scalar(
            "norm", lambda: torch.tensor(kernel.spectral(clock), dtype=torch.float64)
        )

    def made() -> Tensor:
        weight, size = kernel.weight, kernel.geometry.size
        channels, _, height, width = weight.shape
        if skew_norm_cost(tuple(weight.shape), size) <= AFFORDABLE:
            return torch.tensor(skew_norm(weight, size, clock), dtype=torch.float64)
        flat = dense_norm(weight.reshape(channels, -1), clock)
        return torch.tensor(raised(flat * (height * width) ** 0.5), dtype=torch.float64)

    return kernel.scalar("norm", made)


def _entrywise(kernel: Convolution | Dense, clock: Clock = UNLIMITED) -> float:
    """Upper bound on the norm of |K|, entry by entry, made once."""
    return kernel.scalar(
        "entrywise",
        lambda: torch.tensor(
            absolute_norm(kernel.absolute, kernel.in_shape, clock), dtype=torch.float64
        ),
    )


def _terms(
    kernel: Convolution | Dense,
    scales: tuple[Fraction, ...],
    once: float,
    trees: Summation | None,
) -> float:
    """Rounding steps of the chain, as they are counted above; ``once``: those of the map; trees:
    ``_with_more`` of its sums."""
    unit = Rounding.sound(torch.float64).deployed
    each = once + MORE_TERMS
    entrywise = _entrywise(kernel)
    reach = min(_reach(kernel), entrywise)
    if not each * unit < 0.25:
        return math.inf
    share = raised(kernel.rounding_share(Norms(reach, entrywise), unit, each, trees) / unit)
    steps = 0.0
    for index in range(len(scales), 0, -1):
        scale = raised(abs(float(scales[index - 1])))
        size = imaginary_supremum(_coefficients(scales[index:]), reach)
        grown = share * (size + unit * steps)
        steps = raised(scale * (reach * steps + grown) + ROOM, MANY)
    return max(steps, (len(scales) + 1) * each)


def _with_more(trees: Summation | None) -> Summation | None:
    """The sums of one stage, the roundings of its factor and of its sum counted for each leaf."""
    return None if trees is None else trees.after(MORE_TERMS)


def _inner(kernel: Convolution | Dense, scales: tuple[Fraction, ...]) -> Inner:
    """What the chain holds in between, for inputs of at most 1 in size, and what underflow in one
    of its steps may grow to (``Inner.lost``)."""
    held = torch.ones(1, *kernel.in_shape, dtype=torch.float64)
    lost = torch.zeros_like(held)
    ones, gain = held, 1.0
    for scale in reversed(scales):
        image = kernel.absolute(held).reshape(held.shape)
        share = abs(float(scale))
        gain = max(gain, float(image.max()))
        held = ones + image * share
        lost = (kernel.absolute(lost).reshape(held.shape) + kernel.floor) * share + 4.0
    return Inner(max(gain, float(held.max())) * ROOM, 0.0, float(lost.max()) * ROOM)
