"""Global Lipschitz radius (LMT, Tsuzuku et al. 2018; GloRo, Leino et al. 2021), per class pair.

One plain forward pass. The ball's radius grows by the operator norms alone and is affine in
epsilon, R(epsilon) = slope epsilon + offset, where the offset is what rounding adds; so the largest
certified epsilon has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.deviation.budget import margin_budget
from workers.verification.forward.ball import (
    ball_rule,
    joined_radius,
    joined_slope,
    largest_input,
    reads_norm,
)
from workers.verification.forward.margins import centre_margins
from workers.verification.forward.propagation import forward_step
from workers.verification.forward.sections import inner_values, section_error
from workers.verification.graph.affine import Affine, Inner
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep, Section
from workers.verification.numerics import lowered, nonzero, raised, rough_norm
from workers.verification.region import Region
from workers.verification.rounding import Rounding, overflow_ceiling

__all__ = [
    "Walk",
    "backward_lipschitz_radius",
    "head_cap",
    "lipschitz_constant",
    "lipschitz_radius",
    "walk",
]

#: Balls within which the deployed rounding is carried backward, as shares of the real network's
#: radius: the first says whether there is any hope, and how far the second may go; the others go
#: down.
SHARES = (2.0**-12, 1.0, 0.5, 0.125, 2.0**-6)

#: The least slope that is not zero.
MIN_SLOPE = 1e-290


@dataclass(frozen=True)
class Walk:
    """How far every value may be from its centre: slopes[i] epsilon + offsets[i], in l2.

    final, kept: the centres of the last value and of one that was asked for; cap [batch]: the
    largest epsilon at which no step can overflow float32.
    """

    final: Tensor
    kept: Tensor | None
    slopes: list[float]
    offsets: list[Tensor]
    cap: Tensor
    inputs: int

    def part(self, rows: Tensor) -> Walk:
        """The same of these samples alone."""
        kept = None if self.kept is None else self.kept[rows]
        offsets = [offset[rows] for offset in self.offsets]
        return Walk(self.final[rows], kept, self.slopes, offsets, self.cap[rows], self.inputs)

    def epsilon(self, value: int, allowed: Tensor) -> Tensor:
        """The largest epsilon at which the value is within ``allowed`` [batch] of its centre."""
        slope, offset = self.slopes[value], self.offsets[value]
        if slope == 0.0:
            return torch.where(allowed > offset, torch.inf, -torch.inf)
        return (allowed - offset) / slope

    def radius(self, epsilon: Tensor, norm: str) -> Tensor:
        """epsilon (l2) as a radius in ``norm``, capped and rounded down; -inf: nothing is sure."""
        cap = self.cap
        if norm == "linf":
            epsilon = epsilon / math.sqrt(self.inputs)
            cap = cap / math.sqrt(self.inputs)
        epsilon = torch.minimum(lowered(epsilon), cap)
        finite = torch.isfinite(self.final.flatten(1).sum(1)) & torch.isfinite(self.offsets[-1])
        sure = finite & ~torch.isnan(epsilon)
        return torch.where(sure, epsilon, torch.full_like(epsilon, -math.inf))


def walk(
    compiled: CompiledNetwork,
    x: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    keep: int | None = None,
    clock: Clock = UNLIMITED,
) -> Walk:
    """The ball's growth through all steps, from the centres x [batch, *shape]. Raises OutOfTime."""
    batch = x.shape[0]
    centres: list[Tensor | None] = [x.to(dtype)]
    slopes: list[float] = [1.0]
    offsets: list[Tensor] = [torch.zeros(batch, dtype=torch.float64, device=x.device)]
    cap = torch.full_like(offsets[0], torch.inf)
    last_use = {source: i for i, step in enumerate(compiled.steps) for source in step.sources}
    wanted = inner_values(compiled.steps)
    norms: dict[int, Tensor] = {}
    for index, step in enumerate(compiled.steps):
        clock.check()
        norms.update(_norms(wanted, step, centres, norms))
        inputs = [centres[source] for source in step.sources]
        centre_norm = torch.zeros_like(offsets[0])
        rounds = reads_norm(step.op)
        for centre in inputs if rounds else ():
            assert centre is not None
            centre_norm = centre_norm + rough_norm(centre)
        factor, offset = ball_rule(step, centre_norm, rounding)
        slope = joined_slope(step, [slopes[source] for source in step.sources])
        carried = joined_radius(step, [offsets[source] for source in step.sources])
        if rounding.is_sound and rounds:
            cap = torch.minimum(cap, _overflow_cap(step, centre_norm, slope, carried, factor))
        # Never below the normal numbers, where a product would be rounded down by more than u.
        slopes.append(max(raised(slope * factor), MIN_SLOPE if factor > 0.0 else 0.0))
        offsets.append(raised(carried * factor + offset))
        if step.section is not None:
            whole = _over_section(step.section, compiled.steps, norms, slopes, offsets, rounding)
            if whole[0] < slopes[-1]:
                slopes[-1], offsets[-1] = whole
        centres.append(forward_step(step, inputs))  # type: ignore[arg-type]
        for source in set(step.sources):
            if last_use[source] == index and source != keep:
                centres[source] = None
    final = centres[-1]
    assert final is not None
    kept = None if keep is None else centres[keep]
    return Walk(final, kept, slopes, offsets, cap, math.prod(compiled.input_shape))


def _norms(
    wanted: frozenset[int],
    step: GraphStep,
    centres: list[Tensor | None],
    known: dict[int, Tensor],
) -> dict[int, Tensor]:
    """Norms [batch] of those centres that the step reads, are wanted, and not known yet."""
    found = {}
    for source in wanted.intersection(step.sources).difference(known):
        centre = centres[source]
        if centre is not None:
            found[source] = rough_norm(centre)
    return found


def _over_section(
    section: Section,
    steps: Sequence[GraphStep],
    norms: dict[int, Tensor],
    slopes: list[float],
    offsets: list[Tensor],
    rounding: Rounding,
) -> tuple[float, Tensor]:
    """(slope, offset) behind a part that is known as a whole.

    Values of the part are at most norm + offset + slope epsilon in size, and what rounding adds
    grows with that affinely.
    """
    inside = {source for index in section.steps for source in steps[index].sources}
    sizes = {value: raised(norms[value] + offsets[value]) for value in inside}
    reach = {value: torch.tensor([slopes[value]], dtype=torch.float64) for value in inside}
    error = section_error(section, steps, sizes, rounding)
    grown = float(section_error(section, steps, reach, rounding))
    slope = max(raised(section.norm * slopes[section.start] + grown), MIN_SLOPE)
    return slope, raised(section.norm * offsets[section.start] + error)


def lipschitz_radius(
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

    Negative or zero: nothing is certified. Rounded down; sound in the deployed network too
    (``rounding``). x [batch, *shape]; labels [batch]. Raises OutOfTime.
    """
    walked = walk(compiled, x, rounding, dtype, clock=clock)
    return _radius(compiled, walked, labels, norm, rounding, None)


def backward_lipschitz_radius(
    compiled: CompiledNetwork,
    x: Tensor,
    labels: Tensor,
    *,
    norm: str,
    least: Tensor,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """The same on deep networks: the REAL network's radius, less what float32 may take.

    Within a ball of radius R the deployed margins are the real ones less a budget B(R) at most
    (``deviation.budget``), so that min(R, the closed form with B(R) subtracted) is certified for
    every R; ``SHARES`` of the real radius are tried. least [batch]: nothing below is of use (0: all
    is). Raises OutOfTime.
    """
    rounding = Rounding.real(torch.float64)
    walked = walk(compiled, x, rounding, torch.float64, clock=clock)
    real = _radius(compiled, walked, labels, norm, rounding, None)
    margins = centre_margins(compiled.head, walked.final, labels, rounding).margin
    best = torch.full_like(real, -math.inf)
    most, tried = torch.where(real >= least, real, 0.0), torch.full_like(real, torch.inf)
    for attempt, share in enumerate(SHARES):
        reach = torch.minimum(torch.maximum(share * most, least), most)
        # What is proved already, or was tried, is not tried again within a smaller ball.
        still = ((most > 0) & (best < reach) & (reach < tried)).nonzero().flatten()
        if not still.numel():
            break
        tried[still] = reach[still] if attempt else torch.inf
        inside = Region(x[still], reach[still], norm, False)
        lost = margin_budget(compiled, inside, labels[still], real=margins[still], clock=clock)
        found = _radius(compiled, walked.part(still), labels[still], norm, rounding, lost)
        best[still] = torch.fmax(best[still], torch.minimum(found, reach[still]))
        if not attempt:
            # A budget grows with the ball: no larger one leaves more than this one.
            useful = torch.where(found >= least[still], found, 0.0)
            most[still] = torch.fmin(most[still], useful.clamp_min(0.0))
    return best


def _radius(
    compiled: CompiledNetwork,
    walked: Walk,
    labels: Tensor,
    norm: str,
    rounding: Rounding,
    lost: Tensor | None,
) -> Tensor:
    """lost [batch, classes]: what the margins have less than ``walked`` says."""
    at_centre = centre_margins(compiled.head, walked.final, labels, rounding)
    # margin - rounding - slope_j R > 0, strictly: R below this value for every class but the label.
    room = lowered(at_centre.margin - at_centre.rounding)
    if lost is not None:
        room = lowered(room) - raised(lost)
    allowed = room / nonzero(at_centre.slope)
    allowed = torch.where((at_centre.slope == 0) & (room > 0), torch.inf, allowed)
    allowed = allowed.scatter(1, labels[:, None], torch.inf).amin(1)
    if rounding.is_sound and compiled.head.terms:
        allowed = torch.minimum(allowed, head_cap(compiled, walked.final))
    radius = walked.radius(walked.epsilon(len(compiled.steps), allowed), norm)
    finite = torch.isfinite(at_centre.logits).all(1)
    return torch.where(finite, radius, torch.full_like(radius, -math.inf))


def _overflow_cap(
    step: GraphStep, centre_norm: Tensor, slope: float, offset: Tensor, factor: float
) -> Tensor:
    """Largest Euclidean epsilon at which this step cannot overflow float32."""
    op = step.op
    if isinstance(op, Affine):
        assert step.norms is not None
        absolute, bias, inner = step.norms.absolute, op.bias_norm(), op.inner
    else:
        absolute, bias, inner = max(1.0, factor), 0.0, Inner()
    terms = op.terms if isinstance(op, Affine) else 2
    ceiling = overflow_ceiling(terms)
    reach = min(
        (ceiling - bias) / nonzero(absolute), inner.max_input(ceiling), largest_input(step.op)
    )
    room = reach - centre_norm - offset
    room = torch.where(room > 0, room, torch.full_like(room, -math.inf))
    return room / nonzero(slope)


def head_cap(compiled: CompiledNetwork, centre: Tensor) -> Tensor:
    """Largest radius around ``centre`` at which the head cannot overflow float32, [batch]."""
    head = compiled.head.on(centre.device)
    rows = nonzero(head.row_norms.max())
    ceiling = overflow_ceiling(head.terms)
    room = ((ceiling - head.bias_magnitude.max()) / rows).clamp_max(head.inner.max_input(ceiling))
    return room - rough_norm(centre)


def lipschitz_constant(compiled: CompiledNetwork) -> float:
    """Upper bound on the l2 Lipschitz constant before the head, rounding included."""
    slopes = [1.0]
    for step in compiled.steps:
        zero = torch.zeros(1, dtype=torch.float64)
        factor, _ = ball_rule(step, zero, Rounding.sound(torch.float64))
        slope = joined_slope(step, [slopes[source] for source in step.sources]) * factor
        if step.section is not None:
            slope = min(slope, step.section.norm * slopes[step.section.start])
        slopes.append(slope)
    return slopes[-1]
