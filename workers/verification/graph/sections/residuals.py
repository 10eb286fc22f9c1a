"""Residual blocks x + V phi(W x + b) of convex potentials: proved contractions.

phi is elementwise with slopes in [0, 1], so that for every two points the block moves by I + V D W
with D diagonal and 0 <= D <= I. With V = F - W^T L, L = diag(l) >= 0 and G = L^(1/2) W,
    I + V D W = (I - G^T D G) + F D W,    0 <= G^T D G <= |G|^2 I,
hence |I + V D W| <= max(1, |G|^2 - 1) + |F| |W|: 1 where |G|^2 <= 2 and V is -W^T L. That holds for
convex potential layers, V = -2 W^T / |W|^2 (Meunier et al. 2022, arXiv:2110.12690), and for
SDP-based Lipschitz layers, V = -2 W^T T^-1 (Araujo et al. 2023, arXiv:2303.03169), whoever wrote
the file: l is read from W and V, and F is what remains.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.layers.joins import Add
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine
from workers.verification.graph.sections.dominators import Dominators
from workers.verification.graph.sections.few import contraction
from workers.verification.graph.sections.forms import Kernel, Matrix, Moves, schur
from workers.verification.graph.sections.linear import MOVES, LinearPart
from workers.verification.layers.registry import rules_of
from workers.verification.numerics import MANY, raised, sum_error

__all__ = ["residual_norm"]

#: What remains of V beside -W^T L is only looked at up to this norm (times that of W).
LARGEST_REST = 0.1


def residual_norm(
    graph: Dominators, start: int, last: int, shape: tuple[int, ...], clock: Clock = UNLIMITED
) -> float:
    """Upper bound on the Lipschitz constant of the sum at step ``last`` in the value ``start`` of
    this shape; infinite where it is no such block."""
    steps = graph.steps
    if not isinstance(steps[last].op, Add):
        return math.inf
    part = LinearPart(steps, start, shape)
    first, second = steps[last].sources
    for straight, branch in ((first, second), (second, first)):
        form = part.form(straight, graph.between(start, straight))
        if not isinstance(form, Moves) or not form.is_identity:
            continue
        activation = _only_activation(graph, start, branch)
        if activation is None:
            continue
        (before,) = steps[activation].sources
        inner = part.form(before, graph.between(start, before))
        after = LinearPart(steps, activation + 1, steps[activation].shape)
        behind = graph.between(activation + 1, branch)
        outer = after.form(branch, behind)
        if isinstance(inner, Kernel | Matrix) and isinstance(outer, Kernel | Matrix):
            return _contraction(inner, outer, clock)
        few, few_behind = part.few(before, graph.between(start, before)), after.few(branch, behind)
        if few is not None and few_behind is not None:
            return contraction(few, few_behind)
    return math.inf


def _only_activation(graph: Dominators, start: int, value: int) -> int | None:
    """The one step between that is not linear, through which every way leads; None: not so."""
    bent = [
        index
        for index in graph.between(start, value)
        if not isinstance(graph.steps[index].op, (Add, Affine, *MOVES))
    ]
    if len(bent) != 1 or not rules_of(graph.steps[bent[0]].op).slopes_in_unit_interval:
        return None
    return bent[0] if bent[0] + 1 in graph.chain(value, start) else None


def _contraction(inner: Kernel | Matrix, outer: Kernel | Matrix, clock: Clock) -> float:
    adjoint = outer.adjoint()
    if isinstance(inner, Kernel) and isinstance(adjoint, Kernel):
        alike = inner.like(adjoint)
    else:
        alike = isinstance(inner, Matrix) and isinstance(adjoint, Matrix) and inner.like(adjoint)
    if adjoint is None or not alike:
        return math.inf
    shares = _shares(inner.weight, adjoint.weight)
    shaped = shares.reshape(-1, *([1] * (inner.weight.dim() - 1)))
    rest = adjoint.weight + shaped * inner.weight
    lost = sum_error(4) * (schur(adjoint.weight) + schur(shaped * inner.weight))
    lost = lost + inner.error * float(shares.max()) + adjoint.error
    size = raised(schur(rest) + lost, MANY) * (schur(inner.weight) + inner.error)
    if not size <= LARGEST_REST:
        return math.inf
    stretch = inner.scaled(shares.sqrt()).norm(clock)
    return raised(max(1.0, raised(stretch * stretch) - 1.0) + raised(size, MANY))


def _shares(inner: Tensor, adjoint: Tensor) -> Tensor:
    """l >= 0 [rows], about such that the rows of V^T are -l times those of W."""
    flat, other = inner.flatten(1), adjoint.flatten(1)
    square = flat.square().sum(1)
    found = -(flat * other).sum(1) / torch.where(square > 0.0, square, torch.ones_like(square))
    return found.clamp_min(0.0)
