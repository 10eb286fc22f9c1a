"""What float32 may take from the real network's margins over a region, carried backward.

Any bound on the REAL network's margins, less this budget, is a bound on the deployed network's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.verification.backward.intermediate_bounds import plain_bound, rows_at_once, widest
from workers.verification.backward.linear_form import LinearForm
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.deviation.rows import DeviationRows
from workers.verification.deviation.walk import DeviationWalk
from workers.verification.enclosure import Enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.per_sample import costliest
from workers.verification.numerics import MANY, raised, rounding_error
from workers.verification.region import Region
from workers.verification.rounding import Rounding, overflow_ceiling, unit_roundoff

__all__ = ["margin_budget"]

#: Rows of a sample's own margins at most.
FEW_CLASSES = 256


def margin_budget(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    *,
    real: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Upper bounds [batch, classes] float64 on |deployed (f_y - f_j) - real (f_y - f_j)|.

    For every input of the region and every float32 execution there; the label's column is 0, and
    infinite are all columns of a sample at which float32 may overflow. real [batch, classes]: the
    real margins, a guess: of more than ``FEW_CLASSES`` classes so many get rows of their own,
    those whose margins stand a plain sum least. Raises OutOfTime.
    """
    walk = _walked(compiled, region, clock)
    rows, head = walk.rows, compiled.head.on(region.x.device)
    value = len(compiled.steps)
    reach = walk.reach(value).flatten(1)
    far = rows.far[value].flatten(1)
    size = head.sizes(reach)
    gamma = walk.rounding.deployed_gamma(head.terms) if head.terms else 0.0
    ceiling = overflow_ceiling(head.terms)
    valid = walk.valid & (size < ceiling).all(1)
    valid = valid & (reach.amax(1) < head.inner.max_input(ceiling))
    # The head's own rounding, and that of the coefficients w_y - w_j below.
    lost = rounding_error(size, gamma, terms=head.features + 2)
    lost = lost + walk.rounding.underflow * head.floor
    lost = lost + rounding_error(head.spread(far), 4 * unit_roundoff(rows.dtype))
    both = lost + lost.gather(1, labels[:, None])
    shape = compiled.steps[-1].shape if compiled.steps else compiled.input_shape
    others = torch.ones_like(both, dtype=torch.bool).scatter_(1, labels[:, None], False)
    if head.classes > FEW_CLASSES:
        # Of the others the sum over |w_y| + |w_j|.
        moved = head.spread(far)
        plain = raised(both + moved + moved.gather(1, labels[:, None]), MANY)
        guess = real if real is not None else plain.new_zeros(both.shape)
        lead = (guess - plain).masked_fill(~others, torch.inf)
        least = lead.topk(FEW_CLASSES, 1, largest=False).indices
        others &= torch.zeros_like(others).scatter_(1, least, True)
        both = torch.where(others, both, plain)
    sample, other = (others & valid[:, None]).nonzero(as_tuple=True)
    width = rows_at_once(widest(compiled), costliest(compiled), region.x.device, plain_bound)
    for start in range(0, sample.numel(), width):
        b, j = sample[start : start + width], other[start : start + width]
        weight = head.differences(labels[b], j).to(rows.dtype)
        form = LinearForm(weight.reshape(-1, *shape), shape, None if len(labels) == 1 else b)
        both[b, j] = raised(both[b, j] + rows.most(value, form), 3)
    both = torch.where(valid[:, None], both, torch.inf).nan_to_num(torch.inf, torch.inf)
    return both.scatter(1, labels[:, None], 0.0)


def _walked(compiled: CompiledNetwork, region: Region, clock: Clock) -> DeviationWalk:
    values: list[Enclosure | None] = []
    # Without norms there is no ball, and boxes must not be made of it.
    maps = [step for step in compiled.steps if isinstance(step.op, Affine)]
    last = propagate(
        compiled,
        region,
        rounding=Rounding.real(torch.float64),
        dtype=torch.float64,
        ball=all(math.isfinite(step.norms.spectral) for step in maps),
        refine=lambda index, values: None,
        values=values,
        clock=clock,
    )
    # Coefficients need few digits: what they lose is paid as a share of the deviation alone. But
    # kernels of a GPU may leave the error model of float32.
    quick = compiled.float32_safe and region.x.device.type == "cpu"
    dtype = torch.float32 if quick else torch.float64
    rows = DeviationRows(compiled, region, dtype, clock)
    walk = DeviationWalk(rows, [held for held in values if held is not None], last.valid)
    walk.run()
    return walk
