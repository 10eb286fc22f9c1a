"""The least value of a linear less a quadratic function over the ball of the input, exactly.

For a row c and a first map W the chained bound ends in
min { c . dx - k / 2 |W dx|^2 : |dx| <= rho }.
With M = k W^T W, ANY m > m0 >= |M| and ANY vector v (weak duality, P = m - M, r = c - P v):

    the minimum >= -m rho^2 / 2 - c^T P^-1 c / 2,
    c^T P^-1 c = v . P v + 2 v . r + r^T P^-1 r <= 2 v . c - v . P v + |r|^2 / (m - m0).

A few steps of conjugate gradients make v; no convergence is needed. The norm of W alone would give
-rho |c| - k |W|^2 rho^2 / 2, as if c pointed to where W is largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.backward.adjoint import adjoint, fan_out
from workers.verification.backward.linear_form import LinearForm
from workers.verification.graph.graph_step import GraphStep
from workers.verification.numerics import (
    euclidean_norm,
    lost_in_sums,
    lowered,
    nonzero,
    raised,
    sum_error,
    total,
)
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["InputBall"]


@dataclass
class InputBall:
    """excess [rows]: m = m0 (1 + excess); steps: of conjugate gradients; direction: v, from which
    the next call with the same rows goes on."""

    excess: Tensor
    steps: int
    direction: Tensor | None = None

    def least(
        self, step: GraphStep, rows: LinearForm, k: Tensor, radius: Tensor, rounding: Rounding
    ) -> Tensor:
        """Lower bounds [rows] float64; -inf or NaN where there is none.

        step: the affine map W; rows: dense, c on its input; k, radius [rows] float64.
        """
        c = rows.coefficients
        top = raised(k * step.norms.spectral**2)
        gap = top * self.excess.to(torch.float64)
        m = raised(top + gap, 2)
        scale = _shaped(k, c), _shaped(m, c)
        with torch.no_grad():
            v = self._solve(step, c, rows, *scale)
        image = step.affine.linear(v).reshape(len(c), *step.shape)
        back = adjoint(step.affine, LinearForm(image, step.shape, rows.sample)).coefficients
        rest = c - scale[1] * v + scale[0] * back
        if not rounding.is_sound:
            forward = 2.0 * total(v * c) - m * total(v * v) + k * total(image * image)
            squares = total(rest * rest)
            return -0.5 * (m * radius.square() + forward + squares / nonzero(gap))
        # What float64 may be off by: in W v, in its way back, in r, in the three sums.
        op, unit = step.affine, unit_roundoff(c.dtype)
        length, whole = euclidean_norm(v), euclidean_norm(c)
        off = rounding.own_gamma(op.own_terms) * step.norms.absolute * length
        far = raised(euclidean_norm(image) + off)
        returned = rounding.own_gamma(fan_out(op)) * step.norms.absolute * far
        returned = returned + step.norms.spectral * off
        size = whole + m * length + k * (step.norms.spectral * far + returned)
        left = raised(euclidean_norm(rest) + k * returned + 8.0 * unit * size)
        share = 2.0 * unit + sum_error(c[0].numel())
        along = 2.0 * total(v * c) + raised(2.0 * share * whole * length)
        least_length = lowered(total(v * v) * (1.0 - 2.0 * share))
        found = raised(m * radius.square()) + along - lowered(m * least_length)
        found = found + raised(k * far.square()) + raised(left.square() / nonzero(gap))
        sizes = m * radius.square() + 2.0 * whole * length + m * length.square() + k * far.square()
        found = found + sum_error(1) * sizes + lost_in_sums(c.dtype)
        return -0.5 * raised(found.clamp_min(0.0))

    def _solve(self, step: GraphStep, c: Tensor, rows: LinearForm, k: Tensor, m: Tensor) -> Tensor:
        """About P^-1 c by conjugate gradients."""

        def apply(x: Tensor) -> Tensor:
            image = step.affine.linear(x).reshape(len(c), *step.shape)
            form = LinearForm(image, step.shape, rows.sample)
            return m * x - k * adjoint(step.affine, form).coefficients

        v = c / nonzero(m) if self.direction is None else self.direction
        rest = c - apply(v)
        along, square = rest, _dot(rest, rest)
        for _ in range(self.steps):
            image = apply(along)
            length = square / nonzero(_dot(along, image))
            v = v + length * along
            rest = rest - length * image
            after = _dot(rest, rest)
            along, square = rest + (after / nonzero(square)) * along, after
        self.direction = v
        return v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _shaped((a * b).flatten(1).sum(1), a)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *([1] * (like.dim() - 1)))
