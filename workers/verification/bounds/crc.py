"""Curvature-based radius of a one-hidden-layer softplus head (CRC, Singla and Feizi 2020; 2022).

The network before the head moves a ball by its norms, as in ``lipschitz``; how far its centre is
from every class boundary of the head is bounded from below by the best of three: the dual with
its residual taken off, the closed form of the curvature, and the head's own Lipschitz constant.
Curvatures are proved, not estimated; the deployed head's float32 rounding, the runtime's softplus
and our own float64 arithmetic are taken from each distance. A dense head has no curvature: there
this is ``lipschitz``.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from models.layers.activations import Softplus
from models.layers.shapes import Reshape
from workers.verification.bounds.crc_dual import Boundary, Errors, closed_form, distance
from workers.verification.bounds.lipschitz import head_cap, lipschitz_radius, walk
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.graph.affine_maps import Dense
from workers.verification.graph.compiled_network import CompiledNetwork, Head
from workers.verification.graph.graph_step import UnsupportedLayer
from workers.verification.layers.smooth.softplus import softplus_error
from workers.verification.norms.curvature import (
    largest_eigenvalue,
    store_numbers,
    stored_numbers,
)
from workers.verification.numerics import MANY, ROOM, lowered, nonzero, raised
from workers.verification.rounding import Rounding

__all__ = ["SmoothHead", "boundary_distances", "crc_radius", "has_smooth_head"]

#: Numbers of one block of pairs: pairs times hidden units.
BLOCK = 2**20
#: Boundaries of one sample that are looked at together, the nearest first.
TOGETHER = 3
#: Heads whose proved curvatures are kept in this process.
KEPT = 4
#: Changes whenever a curvature may come out otherwise, so that kept ones are made anew.
VERSION = 1


def has_smooth_head(compiled: CompiledNetwork) -> bool:
    """Whether the network ends in dense, softplus, dense."""
    return _first_dense(compiled) is not None


def _first_dense(compiled: CompiledNetwork) -> int | None:
    """The step of the head's first dense map; None where the network does not end in such a head.

    A reshape before the last dense map moves no number.
    """
    steps = compiled.steps
    place = len(steps) - 1
    while place > 0 and isinstance(steps[place].op, Reshape):
        place -= 1
    if place < 1 or not compiled.head.terms:
        return None
    dense, activation = steps[place - 1].op, steps[place].op
    if not (isinstance(dense, Dense) and isinstance(activation, Softplus)):
        return None
    in_a_row = all(steps[i].sources == (i,) for i in range(place, len(steps)))
    return place - 1 if in_a_row and activation.beta == 1.0 else None


@dataclass(frozen=True)
class SmoothHead:
    """z(h) = W2 s(W1 h + b1) + b2, float64 on the CPU, and what rounding may change in it.

    first, head: the two dense maps as compiled; spectral, absolute: norms of W1 and |W1|.
    curvatures: the proved m of pairs "y,j", where -m I bounds the Hessian of z_y - z_j; path: where
    they are kept for other processes.
    """

    first: Dense
    head: Head
    spectral: float
    absolute: float
    path: Path | None = None
    curvatures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, compiled: CompiledNetwork) -> SmoothHead:
        """The head of a network that has one; kept in this process, with its curvatures.

        Raises UnsupportedLayer where there is none.
        """
        place = _first_dense(compiled)
        step = compiled.steps[place or 0]
        if place is None or not isinstance(step.op, Dense):
            raise UnsupportedLayer("the network does not end in dense, softplus, dense")
        # An estimate's norms are no bounds: its head is another one.
        key = (compiled.digest, step.norms.spectral, step.norms.absolute)
        if key not in _HEADS:
            path = None
            if compiled.cache_dir is not None:
                digest = compiled.digest.removeprefix("sha256:")
                path = compiled.cache_dir / f"curvatures-{VERSION}-{digest}.json"
            known = {} if path is None else stored_numbers(path)
            _HEADS[key] = cls(step.op, compiled.head, *key[1:], path, known)
        _HEADS.move_to_end(key)
        while len(_HEADS) > KEPT:
            _HEADS.popitem(last=False)
        return _HEADS[key]

    def keep(self, before: int) -> None:
        """Write the curvatures down, if there are more than ``before``."""
        if self.path is not None and len(self.curvatures) > before:
            store_numbers(self.path, {**stored_numbers(self.path), **self.curvatures})

    @cached_property
    def bias(self) -> Tensor:
        """b1, [hidden]."""
        return self.first.bias.expand(self.first.out_shape).reshape(-1)

    def through(self, sizes: Tensor) -> Tensor:
        """|W2| |W1| sizes of sizes [batch, features] >= 0, [batch, classes], rounded up."""
        return raised(self.head.spread(raised(sizes @ self.first.weight.abs().T, MANY)), MANY)

    @cached_property
    def through_norms(self) -> Tensor:
        """Norms of the rows of |W2| |W1|, [classes], rounded up."""
        first = self.first.weight.abs()
        head = self.head
        rows = head.weight if head.magnitude is None else head.magnitude
        parts = [(rows[part].abs() @ first).norm(dim=1) for part in head.parts()]
        return raised(torch.cat(parts), 2 * MANY)

    @cached_property
    def through_bias(self) -> Tensor:
        """|W2| (|b1| + log 2) + |b2|, [classes], rounded up; and |W2| 1."""
        size = self.first.bias_magnitude.expand(self.first.out_shape).reshape(-1)
        inner = self.head.spread(size + math.log(2.0))
        return raised(inner + self.head.bias_magnitude, MANY)

    @cached_property
    def row_sums(self) -> Tensor:
        """|W2| 1, [classes], rounded up."""
        return raised(self.head.spread(torch.ones_like(self.bias)), MANY)

    def deployed(self, rounding: Rounding) -> tuple[float, float]:
        """(relative, absolute): a deployed logit is within relative (|W2| (|W1| |h| + |b1| + log 2)
        + |b2|) + absolute (|W2| 1) of the real one, beside the floor of the last layer.

        With q = |W1| |h| + |b1|: the first map is off by d <= g1 q + floor, so its value is at most
        (1 + g1) q + floor; softplus by its own error there; the last map by g2 of its magnitude.
        """
        if not rounding.is_sound:
            return 0.0, 0.0
        first, last = (rounding.deployed_gamma(n) for n in (self.first.terms, self.head.terms))
        kernel, relative = softplus_error(rounding)
        growth = (1.0 + first) * (1.0 + relative) * (1.0 + last) - 1.0
        floor = rounding.underflow * self.first.floor
        return growth * ROOM, (kernel + (1.0 + relative) * floor) * (1.0 + last) * ROOM

    def curvature(
        self, label: int, other: int, rough: float | None = None, clock: Clock = UNLIMITED
    ) -> float:
        """m of the pair, proved: at most 1/4 of the largest eigenvalue of W1^T diag(relu(-a)) W1,
        a = W2[label] - W2[other], and at most ``rough``, where that is known. Raises OutOfTime."""
        key = f"{label},{other}"
        if key not in self.curvatures:
            falling = (self.head.weight[other] - self.head.weight[label]).clamp_min(0.0)
            used = falling > 0
            rows = self.first.weight[used] * falling[used].sqrt()[:, None]
            self.curvatures[key] = raised(0.25 * largest_eigenvalue(rows, clock))
        rough = self.rough(label)[other].item() if rough is None else rough
        return min(self.curvatures[key], rough)

    def rough(self, label: int) -> Tensor:
        """The same for every other class, [classes], at no cost: the largest entry and |W1|^2."""
        own = self.head.weight[label]
        falling = [(self.head.weight[part] - own).amax(1) for part in self.head.parts()]
        return raised(torch.cat(falling).clamp_min(0.0) * (0.25 * self.spectral**2))


_HEADS: OrderedDict[tuple[str, float, float], SmoothHead] = OrderedDict()


def boundary_distances(
    smooth: SmoothHead,
    features: Tensor,
    labels: Tensor,
    rounding: Rounding,
    *,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch] float64 on the distance from the features to another answer.

    features [batch, n] and labels [batch] on the CPU. 0 where the label does not lead, with its
    rounding. Of all other classes the nearest counts: pairs that the cheap bounds show to be
    farther than one that is solved need not be. Where the time is over, the cheap bounds stand.
    """
    batch, classes = len(features), len(smooth.head.weight)
    sample = torch.arange(batch).repeat_interleave(classes)
    other = torch.arange(classes).repeat(batch)
    found = torch.full((batch, classes), math.inf, dtype=torch.float64)
    rows = (other != labels[sample]).nonzero().flatten()
    size = max(1, BLOCK // smooth.first.weight.shape[0])
    rough = {label: smooth.rough(label) for label in set(labels.tolist())}
    curved = torch.stack([rough[label] for label in labels.tolist()])
    sizes = smooth.through(features.abs())
    for part in rows.split(size):
        clock.check()
        i, j = sample[part], other[part]
        these = Pairs(features[i], labels[i], j, sizes[i, labels[i]] + sizes[i, j])
        found[i, j] = _cheap(smooth, _boundary(smooth, these, curved[i, j], rounding))
    solved = labels[:, None] == torch.arange(classes)
    nearest = torch.full((batch,), math.inf, dtype=torch.float64)
    known = len(smooth.curvatures)
    with contextlib.suppress(OutOfTime):
        while True:
            # No boundary at 0: the label does not lead there, and nothing will help.
            wanted = ~solved & (found < nearest[:, None]) & (found.amin(1) > 0)[:, None]
            ranked = torch.where(wanted, found, torch.inf).argsort(1)[:, :TOGETHER]
            chosen = torch.zeros_like(wanted).scatter_(1, ranked, True) & wanted
            i, j = chosen.nonzero(as_tuple=True)
            if not i.numel():
                break
            for part in torch.arange(len(i)).split(size):
                at, to = i[part], j[part]
                pairs = zip(labels[at].tolist(), to.tolist(), strict=True)
                made = [
                    smooth.curvature(label, other, float(curved[row, other]), clock)
                    for row, (label, other) in zip(at.tolist(), pairs, strict=True)
                ]
                clock.check()
                proved = torch.tensor(made, dtype=torch.float64)
                these = Pairs(features[at], labels[at], to, sizes[at, labels[at]] + sizes[at, to])
                boundary = _boundary(smooth, these, proved, rounding)
                for better in (closed_form(boundary, proved), distance(boundary, clock=clock)):
                    found[at, to] = torch.maximum(found[at, to], better)
                solved[at, to] = True
            nearest = torch.where(solved & torch.isfinite(found), found, torch.inf).amin(1)
    smooth.keep(known)
    return found.amin(1)


def _cheap(smooth: SmoothHead, boundary: Boundary) -> Tensor:
    """The better of the closed form with a rough curvature and f / (|W1| |a|), [pairs]."""
    errors = boundary.errors
    start = boundary.at(torch.zeros_like(boundary.centre), torch.zeros_like(boundary.m))
    value = lowered(start.value - raised(errors.own_fixed) - errors.fixed)
    steepest = raised(smooth.spectral * boundary.a.norm(dim=1), MANY) + errors.per_length
    linear = torch.where(value > 0, lowered(value / nonzero(steepest)), 0.0)
    return torch.maximum(closed_form(boundary, boundary.m), linear.nan_to_num(nan=0.0))


@dataclass(frozen=True)
class Pairs:
    """features [pairs, n], labels and others [pairs]; size [pairs]: (|W2_y| + |W2_j|) |W1| |h|."""

    features: Tensor
    labels: Tensor
    others: Tensor
    size: Tensor


def _boundary(smooth: SmoothHead, pairs: Pairs, m: Tensor, rounding: Rounding) -> Boundary:
    """The pairs' boundaries, all in float64, with their errors."""
    head, first = smooth.head, smooth.first
    features, labels, others = pairs.features, pairs.labels, pairs.others
    a = head.weight[labels] - head.weight[others]
    constant = head.bias[labels] - head.bias[others]
    relative, absolute = smooth.deployed(rounding)
    own = Rounding.sound(torch.float64).own_gamma(sum(first.weight.shape) + 64)
    size = raised(pairs.size + smooth.through_bias[labels] + smooth.through_bias[others], MANY)
    per_length = raised(smooth.through_norms[labels] + smooth.through_norms[others])
    sums = smooth.row_sums[labels] + smooth.row_sums[others]
    # Of the gradient: W1^T (a s'(t)) where t is off by own times |W1| |h + d| + |b1|, s'' <= 1/4.
    inner = features.abs() @ first.weight.abs().T + first.bias_magnitude.expand(first.out_shape)
    steep = smooth.absolute * a.norm(dim=1) * (2 * own)
    errors = Errors(
        fixed=relative * size + absolute * sums + head.min_lead(rounding),
        per_length=relative * per_length,
        own_fixed=2 * own * size + 2e-14 * sums + 1e-300,
        own_per_length=2 * own * per_length,
        gradient_fixed=steep * (1.0 + inner.amax(1)) + 1e-300,
        gradient_per_length=raised(steep * smooth.first.row_norms().max()),
    )
    return Boundary(first.weight, smooth.bias, features, a, constant, m, errors)


def crc_radius(
    compiled: CompiledNetwork,
    x: Tensor,
    labels: Tensor,
    *,
    norm: str,
    rounding: Rounding,
    dtype: torch.dtype,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Radius [batch] float64 in ``norm`` and pixel units within which the label cannot change.

    As ``lipschitz_radius``, with the distance to the class boundaries of the smooth head in the
    place of the margin over its Lipschitz constant. Raises OutOfTime before the cheap distances
    are there.
    """
    dense = _first_dense(compiled)
    if dense is None:
        return lipschitz_radius(
            compiled, x, labels, norm=norm, rounding=rounding, dtype=dtype, clock=clock
        )
    (place,) = compiled.steps[dense].sources
    walked = walk(compiled, x, rounding, dtype, keep=place, clock=clock)
    assert walked.kept is not None
    features = walked.kept.flatten(1).to("cpu", torch.float64)
    smooth = SmoothHead.of(compiled)
    allowed = boundary_distances(smooth, features, labels.cpu(), rounding, clock=clock)
    epsilon = walked.epsilon(place, allowed.to(x.device))
    if rounding.is_sound:
        final = walked.epsilon(len(compiled.steps), head_cap(compiled, walked.final))
        epsilon = torch.minimum(epsilon, final)
    return walked.radius(epsilon, norm)
