"""CROWN (Zhang et al., NeurIPS 2018) and CAP (Wong and Kolter 2018) by one backward pass.

Boxes come from ball and box first. Only neurons that stay unstable get backward rows of their own,
layer by layer, and the next layer uses the boxes refined so (docs/soundness.md, "Backward bounds").
For l2 the pixel box is used too: each row is bounded over ball and box together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.intermediate_bounds import (
    Solve,
    before_turn,
    cut_by_pixels,
    from_input,
    neuron_bounds,
    open_places,
    plain_bound,
    rows_at_once,
    widest,
)
from workers.verification.backward.linear_form import LinearForm
from workers.verification.backward.retreat import retreat
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.forward.margins import margin_lower_bounds, margins_at_centre
from workers.verification.forward.propagation import Enclosure, propagate
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.turned_pairs import with_turned_pairs
from workers.verification.layers.registry import rules_of
from workers.verification.norms.per_sample import costliest
from workers.verification.numerics import (
    lost_in_coefficients,
    rounded_down,
    rounded_up,
    rounding_error,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding

#: Classes of a sample whose rows are carried back before others are, where there are more. Those
#: others are left where one of them lacks so many times the margin at the centre: no bound that
#: comes later is tried there.
TOGETHER, CLEAR_SHARE = 256, 0.5

__all__ = [
    "cap_margins",
    "crown_margins",
    "final_forms",
    "refine_boxes",
    "refined_pass",
    "tell_slack",
]


def crown_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    lost: Tensor | None = None,
    reached: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region, adaptive slopes (CROWN).

    lost [batch] float64: set to about what rounding has taken from the margins; reached [batch]
    float64: set to the largest smaller epsilon proved of what fails (``retreat``).

    Sound for every row, in the deployed network too (``rounding``); the label's column is inf, a
    row of -inf certifies nothing. Raises OutOfTime before the first margins are there; after that
    those that no row improved yet stay as the boxes alone give them.
    """
    backward, boxed = refined_pass(compiled, region, labels, rounding, dtype, "crown", clock=clock)
    bounds = final_forms(backward, labels, boxed)
    tell_slack(backward, lost)
    if reached is not None:

        def least(smaller: BackwardPass, wanted: Tensor) -> Tensor:
            asked = boxed.masked_fill(~wanted[:, None], torch.inf)
            return final_forms(smaller, labels, asked).amin(1)

        state = backward.values[-1]
        assert state is not None
        whole = margins_at_centre(compiled.head, state, labels)
        retreat(backward, least, bounds.amin(1), whole, reached)
    return bounds


def cap_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    lost: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """The same with the chord's slope below unstable neurons (CAP)."""
    backward, bounds = refined_pass(compiled, region, labels, rounding, dtype, "cap", clock=clock)
    bounds = final_forms(backward, labels, bounds)
    tell_slack(backward, lost)
    return bounds


def refined_pass(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    slopes: str,
    *,
    clock: Clock = UNLIMITED,
) -> tuple[BackwardPass, Tensor]:
    """Boxes of all values, refined by backward rows, and the margins that they give alone.

    The pass is over the network with its pairs turned (``with_turned_pairs``).
    """
    compiled = with_turned_pairs(compiled)
    backward = BackwardPass(compiled, region, [], rounding, dtype, slopes, clock=clock)

    def refine(index: int, values: list[Enclosure | None]) -> None:
        backward.values = values
        refine_boxes(backward, index)

    state = propagate(
        compiled,
        region,
        rounding=rounding,
        dtype=dtype,
        refine=refine,
        values=backward.values,
        clock=clock,
    )
    return backward, margin_lower_bounds(compiled.head, state, labels, rounding, clock=clock)


def refine_boxes(
    backward: BackwardPass, index: int, solve: Solve = plain_bound, *, again: bool = False
) -> None:
    """Tighten the boxes of step ``index``'s inputs, in place, where that makes the step tighter.

    again: CROWN has done so already, which is the best where one affine map leads to the input.
    """
    step, region = backward.compiled.steps[index], backward.region
    for source, unstable in open_places(backward, step):
        inner = before_turn(backward.compiled, source)
        first = from_input(backward.compiled, inner)
        turned = inner != source
        if first is not None and (again or (region.norm == "linf" and not turned)):
            # One affine map leads here: intervals are exact for linf, and no slope is in the way.
            continue
        if isinstance(first, Dense | Convolution) and not turned:
            unstable = unstable & cut_by_pixels(backward, first).reshape(unstable.shape)
        state = backward.values[source]
        assert state is not None
        assert state.lower is not None
        assert state.upper is not None
        valid = state.valid.reshape(-1, *([1] * (unstable.dim() - 1)))
        places = (unstable & valid).nonzero(as_tuple=True)
        if not places[0].numel():
            continue
        kink = rules_of(step.op).kink_at_zero
        chosen = solve if first is None else plain_bound
        low, high = neuron_bounds(backward, source, places, kink=kink, solve=chosen)
        lower = state.lower[places].to(torch.float64)
        upper = state.upper[places].to(torch.float64)
        state.lower[places] = rounded_down(torch.fmax(lower, low), backward.dtype)
        state.upper[places] = rounded_up(torch.fmin(upper, high), backward.dtype)


def final_forms(
    backward: BackwardPass, labels: Tensor, bounds: Tensor, solve: Solve = plain_bound
) -> Tensor:
    """``bounds`` [batch, classes] improved by backward rows for the classes still open.

    Of more than ``TOGETHER`` of them the hardest ones come first, and where one of these fails
    clearly the others are left. Where the time is over, those that no row improved yet stay as
    they were.
    """
    compiled = backward.compiled
    value = len(compiled.steps)
    state = backward.values[value]
    assert state is not None
    head = compiled.head
    device = state.centre.device
    # Rows of -inf: what the head itself ruled out (overflow) stays so.
    concluded = ~torch.isneginf(bounds).any(1)
    open_pairs = ~(bounds > 0) & (state.valid & concluded)[:, None]
    if not bool(open_pairs.any()):
        return bounds
    head = head.on(device)
    shape = tuple(state.centre.shape[1:])
    width = rows_at_once(widest(compiled), costliest(compiled), device, solve)
    bounds = bounds.clone()
    slack = head_rounding(backward, state)
    backward.slack = torch.zeros(len(labels), dtype=torch.float64, device=device)
    hopeless = -CLEAR_SHARE * margins_at_centre(head, state, labels).abs()
    for b, j in _hardest_first(open_pairs, bounds, hopeless, width):
        y = labels[b]
        coefficients = head.differences(y, j).to(backward.dtype).reshape(-1, *shape)
        rows = LinearForm(coefficients, shape, None if len(labels) == 1 else b)
        bias = head.bias[y] - head.bias[j]
        gained = bias - slack[b, y] - slack[b, j]
        # Of these rows; a ``solve`` with passes of its own leaves it so.
        backward.paid = torch.zeros(1, dtype=torch.float64, device=device)
        try:
            found = solve(backward, value, rows, -gained)
        except OutOfTime:
            break
        bounds[b, j] = torch.fmax(bounds[b, j], found + gained)
        lost = (backward.paid + slack[b, y] + slack[b, j]).expand(len(b))
        backward.slack.scatter_reduce_(0, b, lost, "amax")
    return bounds


def _hardest_first(
    open_pairs: Tensor, bounds: Tensor, hopeless: Tensor, width: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(samples, classes) of the open pairs, at most ``width`` at once, while ``bounds`` [batch,
    classes] are improved in place; hopeless [batch]: a bound below that is not worth others."""
    rounds = [open_pairs]
    if int(open_pairs.sum(1).amax()) > TOGETHER:
        order = bounds.masked_fill(~open_pairs, torch.inf).argsort(dim=1, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        last = int(open_pairs.sum(1).amax())
        starts = range(0, last, TOGETHER)
        rounds = [open_pairs & (rank >= at) & (rank < at + TOGETHER) for at in starts]
    going = torch.ones_like(hopeless, dtype=torch.bool)
    for asked in rounds:
        sample, other = (asked & going[:, None]).nonzero(as_tuple=True)
        for start in range(0, sample.numel(), width):
            yield sample[start : start + width], other[start : start + width]
        going = going & ~((bounds < hopeless[:, None]) & asked).any(1)


def tell_slack(backward: BackwardPass, lost: Tensor | None) -> None:
    """Set ``lost`` [batch], if it is asked for, to what rounding has taken from the margins."""
    if lost is not None and backward.slack is not None:
        lost.copy_(backward.slack)


def head_rounding(backward: BackwardPass, state: Enclosure) -> Tensor:
    """[batch, classes]: deployed rounding of the head, and of w_y - w_j in this arithmetic."""
    head, rounding = backward.compiled.head, backward.rounding
    assert state.lower is not None
    assert state.upper is not None
    reach = torch.maximum(state.lower.abs(), state.upper.abs()).flatten(1).to(torch.float64)
    if not rounding.is_sound:
        return reach.new_zeros(len(reach), head.classes)
    deployed = rounding.deployed_gamma(head.terms) if head.terms else 0.0
    size = head.on(reach.device).sizes(reach)
    both = deployed + rounding.own_gamma(4)
    lost = reach.sum(1, keepdim=True) * lost_in_coefficients(backward.dtype)
    error = rounding_error(size, both, terms=head.features)
    return error + head.min_lead(rounding) + lost
