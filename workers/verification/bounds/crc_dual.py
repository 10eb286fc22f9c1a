"""Distance of features to a class boundary of a one-hidden-layer softplus head, by its dual.

f(h) = a . s(W h + b) + c has a Hessian between -m I and M I. For 0 <= eta < 1 / m the function
g(d) = |d|^2 / 2 + eta f(h + d) is (1 - eta m)-strongly convex, so that for ANY d with residual
r = d + eta grad f(h + d)
    min g >= g(d) - |r|^2 / (2 (1 - eta m)),
and every d' with f(h + d') <= e has |d'|^2 >= 2 min g - 2 eta e (Singla and Feizi 2020, with the
last term for iterates that have not converged). Where f(h + d) = 0 at the minimum, that is the
distance itself. d and eta come from Newton's method on (r, f) = 0; nothing rests on convergence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.layers.smooth.softplus import curve
from workers.verification.numerics import MANY, lowered, nonzero, raised, sum_error

__all__ = ["Boundary", "Errors", "Iterate", "closed_form", "distance"]

#: Newton steps at most; a pair ends where a step gains less than this share.
STEPS, GAIN = 12, 1e-11
#: Of the conjugate gradients inside: relative residual, iterations.
TOLERANCE, ITERATIONS = 1e-7, 80
#: eta m stays below this.
MOST = 0.999


@dataclass(frozen=True)
class Errors:
    """What rounding may change in f and its gradient, [pairs] float64 each.

    A deployed margin at h + d is above f(h + d) - fixed - per_length |d|. Ours is computed with an
    error of at most own_fixed + own_per_length |d|, the gradient with one of at most
    gradient_fixed + gradient_per_length |d| (Euclidean norm).
    """

    fixed: Tensor
    per_length: Tensor
    own_fixed: Tensor
    own_per_length: Tensor
    gradient_fixed: Tensor
    gradient_per_length: Tensor

    def of(self, rows: Tensor) -> Errors:
        """Those of these pairs."""
        return Errors(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Boundary:
    """One pair of classes per row: f(h) = a . s(weight h + bias) + constant, Hessian >= -m I.

    weight [hidden, features], bias [hidden]; centre h [pairs, features]; a [pairs, hidden];
    constant, m [pairs]; float64.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor
    a: Tensor
    constant: Tensor
    m: Tensor
    errors: Errors

    def of(self, rows: Tensor) -> Boundary:
        """These pairs alone."""
        return Boundary(
            self.weight,
            self.bias,
            self.centre[rows],
            self.a[rows],
            self.constant[rows],
            self.m[rows],
            self.errors.of(rows),
        )

    @property
    def largest_eta(self) -> Tensor:
        """[pairs]: eta m <= MOST."""
        return MOST / nonzero(self.m)

    def at(self, d: Tensor, eta: Tensor) -> Iterate:
        """Value, gradient and second derivatives at h + d."""
        before = (self.centre + d) @ self.weight.T + self.bias
        rising = torch.sigmoid(before)
        weighted = self.a * rising
        value = (self.a * curve(before)).sum(1) + self.constant
        gradient = weighted @ self.weight
        return Iterate(d, eta, value, gradient, weighted * (1.0 - rising))

    def curved(self, v: Tensor, bend: Tensor) -> Tensor:
        """The Hessian, given by its second derivatives ``bend`` [pairs, hidden], times v."""
        return (bend * (v @ self.weight.T)) @ self.weight


@dataclass(frozen=True)
class Iterate:
    """d, eta, f(h + d), its gradient there and a s'' there; [pairs] or [pairs, n] float64."""

    d: Tensor
    eta: Tensor
    value: Tensor
    gradient: Tensor
    bend: Tensor

    @property
    def residual(self) -> Tensor:
        """d + eta grad f."""
        return self.d + self.eta[:, None] * self.gradient

    def merit(self, boundary: Boundary) -> Tensor:
        """How far from optimal, [pairs]: squared, in units of length."""
        steep = nonzero(self.gradient.norm(dim=1))
        # At the largest eta f need not vanish.
        held = (self.eta >= boundary.largest_eta) & (self.value > 0)
        lack = torch.where(held, 0.0, self.value / steep)
        return self.residual.square().sum(1) + lack.square()

    def where(self, chosen: Tensor, other: Iterate) -> Iterate:
        """This one in the chosen rows, the other elsewhere."""
        row = chosen[:, None]
        return Iterate(
            torch.where(row, self.d, other.d),
            torch.where(chosen, self.eta, other.eta),
            torch.where(chosen, self.value, other.value),
            torch.where(row, self.gradient, other.gradient),
            torch.where(row, self.bend, other.bend),
        )


def certificate(boundary: Boundary, iterate: Iterate) -> Tensor:
    """[pairs]: no d' shorter than this makes the deployed margin vanish; rounded down.

    With e(R) = fixed + per_length R the bound reads R^2 = B - 2 eta e(R): its positive root.
    """
    errors, eta = boundary.errors, iterate.eta
    length = raised(iterate.d.norm(dim=1), MANY)
    steep = raised(iterate.gradient.norm(dim=1), MANY)
    # Of sums over the features: relative to the sizes of what is added.
    share = 4 * sum_error(8 * iterate.d.shape[1])
    off = eta * (errors.gradient_fixed + errors.gradient_per_length * length)
    residual = raised(iterate.residual.norm(dim=1), MANY) + share * (length + eta * steep) + off
    left = lowered(1.0 - raised(eta * boundary.m))
    value = iterate.value - raised(errors.own_fixed + errors.own_per_length * length)
    square = iterate.d.square().sum(1)
    held = square + 2 * eta * (value - errors.fixed) - raised(residual.square() / left)
    held = held - share * (square + 2 * eta * (iterate.value.abs() + errors.fixed))
    slope = eta * errors.per_length
    root = lowered((slope.square() + held).clamp_min(0.0).sqrt()) - raised(slope)
    sure = (left > 0) & (eta >= 0) & (held > 0) & torch.isfinite(root)
    return torch.where(sure, root, 0.0).clamp_min(0.0)


def closed_form(boundary: Boundary, m: Tensor) -> Tensor:
    """[pairs]: f falls by at most |grad| R + m R^2 / 2 within R; rounded down, 0 where f <= 0."""
    errors = boundary.errors
    start = boundary.at(torch.zeros_like(boundary.centre), torch.zeros_like(boundary.m))
    steep = raised(start.gradient.norm(dim=1), MANY) + errors.gradient_fixed
    steep = raised(steep + errors.per_length)
    value = lowered(start.value - raised(errors.own_fixed) - errors.fixed)
    # (sqrt(s^2 + 2 m f) - s) / m, in a form that loses nothing where m is small.
    found = 2 * value / (steep + (steep.square() + 2 * m * value.clamp_min(0.0)).sqrt())
    found = torch.where((value > 0) & torch.isfinite(found), found, 0.0)
    return lowered(found.clamp_min(0.0))


def distance(boundary: Boundary, *, steps: int = STEPS, clock: Clock = UNLIMITED) -> Tensor:
    """[pairs] float64: lower bounds on the distance from h to where the margin vanishes.

    Each pair ends by itself, so that its bound does not depend on the others. Where the time is
    over, what has been found counts.
    """
    pairs = len(boundary.m)
    best = torch.zeros_like(boundary.m)
    active = torch.arange(pairs, device=best.device)
    state = boundary.at(torch.zeros_like(boundary.centre), torch.zeros_like(best))
    for _ in range(steps):
        if not active.numel() or clock.over():
            break
        part = boundary.of(active)
        state = _newton(part, state)
        found = certificate(part, state)
        gained = found > best[active] * (1.0 + GAIN)
        far = state.merit(part) > 1e-20 * state.d.square().sum(1)
        best[active] = torch.maximum(best[active], found)
        going = gained | far
        active = active[going]
        everything = Iterate(*(getattr(state, n) for n in state.__dataclass_fields__))
        state = Iterate(*(getattr(everything, n)[going] for n in everything.__dataclass_fields__))
    return best


def _newton(boundary: Boundary, state: Iterate) -> Iterate:
    """One step on d + eta grad f = 0, f = 0, eta kept in its range; shortened where it overshoots.

    With K = I + eta Hess: K dd + deta grad = -r and grad . dd = -f.
    """
    rhs = torch.cat([state.residual, state.gradient])
    eta, bend = state.eta.repeat(2), state.bend.repeat(2, 1)
    u, v = _solve(boundary, eta, bend, rhs).chunk(2)
    along = nonzero((state.gradient * v).sum(1))
    raised = (state.value - (state.gradient * u).sum(1)) / along
    change = (state.eta + raised).clamp_min(0.0).minimum(boundary.largest_eta) - state.eta
    change = change.nan_to_num(0.0)
    direction = -u - change[:, None] * v
    before = state.merit(boundary)
    result = state
    open_rows = torch.ones_like(before, dtype=torch.bool)
    share = 1.0
    for _ in range(5):
        trial = boundary.at(state.d + share * direction, state.eta + share * change)
        better = open_rows & (
            (trial.merit(boundary) < before * (1.0 - 0.1 * share)) | (state.eta == 0)
        )
        result = trial.where(better, result)
        open_rows = open_rows & ~better
        if not bool(open_rows.any()):
            break
        share *= 0.4
    # What no share improved goes a little along, so that it does not stand still.
    return trial.where(open_rows, result)


def _solve(boundary: Boundary, eta: Tensor, bend: Tensor, rhs: Tensor) -> Tensor:
    """(I + eta Hess)^-1 rhs by conjugate gradients, row by row: each stops by itself."""
    x = torch.zeros_like(rhs)
    r, p = rhs, rhs
    square = r.square().sum(1)
    goal = square * TOLERANCE**2
    for _ in range(ITERATIONS):
        going = square > goal
        if not bool(going.any()):
            break
        image = p + eta[:, None] * boundary.curved(p, bend)
        curved = (p * image).sum(1)
        step = torch.where(going & (curved > 0), square / curved, 0.0)[:, None]
        x = x + step * p
        r = r - step * image
        new = torch.where(going, r.square().sum(1), square)
        ratio = torch.where(going & (square > 0), new / square, 0.0)[:, None]
        p = torch.where(going[:, None], r + ratio * p, p)
        square = new
    return x
