"""Global Lipschitz radius (LMT, Tsuzuku et al. 2018; GloRo, Leino et al. 2021), per class pair.

One plain forward pass. The ball's radius grows by the operator norms alone and is affine in
epsilon, R(epsilon) = slope epsilon + offset, where the offset is what rounding adds; so the largest
certified epsilon has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.forward.ball import ball_rule, joined_radius, joined_slope, reads_norm
from workers.verification.forward.margins import centre_margins
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.affine import Affine, Inner
from workers.verification.graph.compiled_network import CompiledNetwork, GraphStep
from workers.verification.numerics import lowered, nonzero, raised, rough_norm
from workers.verification.rounding import Rounding, overflow_ceiling

__all__ = ["Walk", "head_cap", "lipschitz_constant", "lipschitz_radius", "walk"]

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
    for index, step in enumerate(compiled.steps):
        clock.check()
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
        centres.append(forward_step(step, inputs))  # type: ignore[arg-type]
        for source in set(step.sources):
            if last_use[source] == index and source != keep:
                centres[source] = None
    final = centres[-1]
    assert final is not None
    kept = None if keep is None else centres[keep]
    return Walk(final, kept, slopes, offsets, cap, math.prod(compiled.input_shape))


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
    at_centre = centre_margins(compiled.head, walked.final, labels, rounding)
    # margin - rounding - slope_j R > 0, strictly: R below this value for every class but the label.
    room = lowered(at_centre.margin - at_centre.rounding)
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
    reach = min((ceiling - bias) / nonzero(absolute), inner.max_input(ceiling))
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
        slopes.append(joined_slope(step, [slopes[source] for source in step.sources]) * factor)
    return slopes[-1]
