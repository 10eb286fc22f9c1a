"""Zonotopes (DeepZ, Singh et al. 2018) with COLT's learnt slopes (Balunovic and Vechev 2020).

First with the slope of least area at every unstable neuron; where that leaves classes open and is
not far away, with slopes learnt for the sample. Both passes are proofs of their own.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from workers.verification.block_sizes import ROW_BYTES
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.forward.margins import centre_margins, margin_lower_bounds
from workers.verification.forward.zonotope_pass import ZonotopePass, zonotope_margins_at_head
from workers.verification.forward.zonotope_slopes import learned_slopes
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["ITERATIONS", "zonotope_margins", "zonotope_memory", "zonotope_room"]

#: Steps in the slopes.
ITERATIONS = 20
#: Slopes are learnt where the least margin lacks at most this share of the margin at the centre.
NEAR = 2.0
#: Classes of a sample that slopes are learnt for, the hardest ones, at most.
HARDEST = 256
#: Numbers in all terms of one sample at most, beside the input's own; at least so many terms.
NUMBERS, LEAST_ROOM = 2**24, 512


def zonotope_room(compiled: CompiledNetwork) -> int:
    """How many terms neurons of one sample may begin: the rest goes into the slack."""
    largest = max([1, *(math.prod(step.shape) for step in compiled.steps)])
    return max(LEAST_ROOM, NUMBERS // largest - math.prod(compiled.input_shape))


def zonotope_memory(compiled: CompiledNetwork) -> float:
    """Bytes for one sample: terms of a value, of the next one, and in the making."""
    largest = max(math.prod(shape) for shape in _shapes(compiled))
    terms = math.prod(compiled.input_shape) + zonotope_room(compiled)
    return 8.0 * 4.0 * largest * terms


def _shapes(compiled: CompiledNetwork) -> list[tuple[int, ...]]:
    return [compiled.input_shape, *(step.shape for step in compiled.steps)]


def zonotope_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    clock: Clock = UNLIMITED,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region; the label's column is inf.

    Nowhere below those of ball and box. Sound for every row, in the deployed network too
    (``rounding``). iterations: of the slopes (0: least area alone). A sample's result does not
    depend on the others. Raises OutOfTime before the first margins of any sample are there; of
    samples that were not reached nothing is proved.
    """
    batch = region.x.shape[0]
    found = torch.full((batch, compiled.head.classes), -math.inf, dtype=torch.float64)
    found = found.to(region.x.device)
    numbers = max(math.prod(shape) for shape in _shapes(compiled)) * math.prod(region.x.shape[1:])
    width = max(1, ROW_BYTES[region.x.device.type] // (numbers * dtype.itemsize))
    for start in range(0, batch, width):
        rows = slice(start, start + width)
        try:
            found[rows] = _margins(
                compiled,
                region.part(rows, region.x.device),
                labels[rows],
                (rounding, dtype),
                clock,
                iterations,
            )
        except OutOfTime:
            if not start:
                raise
            break
    return found


def _margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    arithmetic: tuple[Rounding, torch.dtype],
    clock: Clock,
    iterations: int,
) -> Tensor:
    rounding, dtype = arithmetic
    first = ZonotopePass(compiled, region, rounding, dtype, zonotope_room(compiled), clock=clock)
    enclosure, state = first.run()
    boxed = margin_lower_bounds(compiled.head, enclosure, labels, rounding, clock=clock)
    # Rows of -inf: what may overflow float32 certifies nothing.
    concluded = (enclosure.valid & ~torch.isneginf(boxed).any(1))[:, None]
    if not bool(concluded.any()):
        return boxed

    def improved(bounds: Tensor, found: Tensor) -> Tensor:
        result = torch.fmax(bounds, found.masked_fill(~concluded, -torch.inf))
        return result.scatter(1, labels[:, None], torch.inf)

    bounds = improved(boxed, zonotope_margins_at_head(compiled.head, state, labels, rounding))
    centre = centre_margins(compiled.head, enclosure.centre, labels, rounding).margin
    near = centre.scatter(1, labels[:, None], torch.inf).amin(1) * NEAR
    open_pairs = ~(bounds > 0) & concluded & (bounds.amin(1) > -near)[:, None]
    if not iterations or not bool(open_pairs.any()):
        return bounds
    if bounds.shape[1] > HARDEST:
        least = bounds.masked_fill(~open_pairs, torch.inf).topk(HARDEST, 1, largest=False).indices
        open_pairs = open_pairs & torch.zeros_like(open_pairs).scatter_(1, least, True)
    with contextlib.suppress(OutOfTime):
        slopes = learned_slopes(first, labels, open_pairs, iterations, clock=clock)
        if slopes:
            again = ZonotopePass(
                compiled,
                region,
                rounding,
                dtype,
                first.room,
                slopes,
                dict(first.boxes),
                dict(first.terms),
                clock,
            )
            _, state = again.run()
            found = zonotope_margins_at_head(compiled.head, state, labels, rounding, clock=clock)
            bounds = torch.where(open_pairs.any(1)[:, None], improved(bounds, found), bounds)
    return bounds
