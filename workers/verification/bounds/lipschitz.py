"""Global Lipschitz radius (LMT, Tsuzuku et al. 2018; GloRo, Leino et al. 2021), per class pair.

One plain forward pass. The ball's radius grows by the operator norms alone and is affine in
epsilon, R(epsilon) = slope epsilon + offset, where the offset is what rounding adds; so the largest
certified epsilon has a closed form.
"""

from __future__ import annotations

import math

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

__all__ = ["lipschitz_constant", "lipschitz_radius"]

#: The least slope that is not zero.
MIN_SLOPE = 1e-290


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
            if last_use[source] == index:
                centres[source] = None
    final = centres[-1]
    assert final is not None
    at_centre = centre_margins(compiled.head, final, labels, rounding)
    # margin - rounding - slope_j R > 0, strictly: R below this value for every class but the label.
    room = lowered(at_centre.margin - at_centre.rounding)
    allowed = room / nonzero(at_centre.slope)
    allowed = torch.where((at_centre.slope == 0) & (room > 0), torch.inf, allowed)
    allowed = allowed.scatter(1, labels[:, None], torch.inf).amin(1)
    if rounding.is_sound and compiled.head.terms:
        allowed = torch.minimum(allowed, _head_cap(compiled, final))
    if slopes[-1] == 0.0:
        epsilon = torch.where(allowed > offsets[-1], torch.inf, -torch.inf)
    else:
        epsilon = (allowed - offsets[-1]) / slopes[-1]
    if norm == "linf":
        epsilon = epsilon / math.sqrt(math.prod(compiled.input_shape))
        cap = cap / math.sqrt(math.prod(compiled.input_shape))
    epsilon = torch.minimum(lowered(epsilon), cap)
    finite = torch.isfinite(final.flatten(1).sum(1)) & torch.isfinite(offsets[-1])
    finite = finite & torch.isfinite(at_centre.logits).all(1)
    return torch.where(finite & ~torch.isnan(epsilon), epsilon, torch.full_like(epsilon, -math.inf))


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


def _head_cap(compiled: CompiledNetwork, centre: Tensor) -> Tensor:
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
