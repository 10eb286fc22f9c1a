"""From the enclosure before the head to lower bounds on the deployed network's margins."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.enclosure import Enclosure
from workers.verification.forward.box_ball import ball_box_maximum
from workers.verification.graph.compiled_network import Head
from workers.verification.numerics import MANY, ROOM, raised, rough_norm, up
from workers.verification.rounding import Rounding, overflow_ceiling
from workers.verification.summation import beyond_first_order

__all__ = [
    "CentreMargins",
    "centre_margins",
    "certified",
    "head_gammas",
    "logit_enclosure",
    "margin_lower_bounds",
    "margins_at_centre",
]

#: A class that lacks this share of the margin at the centre decides the sample by itself.
CLEAR_SHARE = 0.05

#: Pairs (sample, class) times features handled at once, in numbers.
PAIR_BLOCK = 4_000_000

#: Of more classes, so many of the hardest ones are solved before all the others are.
HARDEST = 256


class CentreMargins:
    """At the centre z = c, for label y and every class j, all [batch, classes] float64:

    margin: f_y - f_j, computed; rounding: its error plus the deployed head's rounding at c;
    slope: how much a step of Euclidean length one away from c can lower it, the deployed head's
    rounding included (the ball form, LMT: |w_y - w_j|).
    """

    def __init__(self, margin: Tensor, rounding: Tensor, slope: Tensor, logits: Tensor) -> None:
        self.margin = margin
        self.rounding = rounding
        self.slope = slope
        self.logits = logits


def head_gammas(head: Head, rounding: Rounding) -> tuple[float, float]:
    """(deployed, own) relative errors of the head: its own side is always float64."""
    if not rounding.is_sound:
        return 0.0, 0.0
    deployed = rounding.deployed_gamma(head.terms) if head.terms else 0.0
    return deployed, Rounding.sound(torch.float64).own_gamma(head.features + 4)


def centre_margins(head: Head, centre: Tensor, labels: Tensor, rounding: Rounding) -> CentreMargins:
    """Margins of the head at ``centre`` [batch, features] and how fast they may fall."""
    head = head.on(centre.device)
    centre = centre.flatten(1).to(torch.float64)
    deployed, own = head_gammas(head, rounding)
    logits = head.logits(centre)
    margin = logits.gather(1, labels[:, None]) - logits
    size = head.sizes(centre.abs())
    lost = _lost_at(head, centre, logits, size, rounding) + own * size
    lost = lost + lost.gather(1, labels[:, None])
    rows = head.row_norms
    slope = head.pair_norms_of(labels) + deployed * (rows[labels][:, None] + rows[None, :])
    floor = head.min_lead(rounding)
    return CentreMargins(margin, lost * ROOM + floor, slope, logits)


def _lost_at(
    head: Head, centre: Tensor, logits: Tensor, size: Tensor, rounding: Rounding
) -> Tensor:
    """What the deployed head may round at the centre, of each logit, [batch, classes]: the lesser
    of gamma_n (|w| |c| + |b|) = gamma_n size, and what its sums may round in any order.

    What it rounds at another point of a ball is at most this and gamma_n |w| times the distance:
    to first order it is linear in the leaves, and the rest is in proportion to their sizes.
    """
    deployed, own = head_gammas(head, rounding)
    least = deployed * size
    trees, squares = head.summation, head.bias_square
    if trees is None or squares is None or deployed == 0.0:
        return least
    unit = rounding.deployed
    spread = trees.spread() + trees.ahead * trees.leaves**0.5
    first = spread * head.root_of_squares(centre)
    # The sum of the leaves w_i c_i, as it was computed.
    first = first + trees.mean() * ((logits - head.bias).abs() + own * size)
    beside = (trees.ahead + trees.behind) * head.bias_magnitude
    first = unit * (first + trees.whole() * squares.sqrt() + beside)
    return torch.minimum(least, first + beyond_first_order(head.terms, unit) * size)


def margin_lower_bounds(
    head: Head,
    state: Enclosure,
    labels: Tensor,
    rounding: Rounding,
    *,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on the deployed f_y - f_j over the enclosure; label: +inf.

    The ball alone decides most pairs; the exact ball-and-box dual is solved for what stays open.
    Not valid: -inf everywhere.
    """
    head = head.on(state.centre.device)
    centre = state.centre.flatten(1).to(torch.float64)
    at_centre = centre_margins(head, centre, labels, rounding)
    radius = state.radius[:, None]
    bound = at_centre.margin - at_centre.rounding - raised(radius * at_centre.slope)
    if state.lower is not None and state.upper is not None:
        lower = state.lower.flatten(1).to(torch.float64)
        upper = state.upper.flatten(1).to(torch.float64)
        reach = torch.maximum(lower.abs(), upper.abs())
        head_size = head.sizes(reach)
        deployed, own = head_gammas(head, rounding)
        both = (head_size + head_size.gather(1, labels[:, None])) * deployed
        centre_size = head.sizes(centre.abs())
        both = both + (centre_size + centre_size.gather(1, labels[:, None])) * own
        slack = both * ROOM + head.min_lead(rounding)
        open_pairs = ~(bound > 0) & state.valid[:, None]
        open_pairs.scatter_(1, labels[:, None], False)
        bound = bound.scatter(1, labels[:, None], torch.inf)
        # The hardest class first: where it fails clearly, the others need not be solved.
        for chosen, decides in _hardest_first(bound):
            pairs = open_pairs & chosen
            drop = _pairwise_maximum(head, centre, lower, upper, state.radius, labels, pairs, clock)
            solved = at_centre.margin - slack - drop
            bound = torch.fmax(bound, solved)
            clear = (solved < -CLEAR_SHARE * at_centre.margin.abs()) & pairs
            open_pairs = open_pairs & ~(clear & decides).any(1, keepdim=True)
        # A box inside out can only come from an error of ours.
        bound = torch.where(((upper >= lower).all(1))[:, None], bound, -torch.inf)
    bound = torch.where(torch.isnan(bound), torch.full_like(bound, -torch.inf), bound)
    valid = state.valid & torch.isfinite(at_centre.logits).all(1)
    valid = valid & _head_fits(head, state, rounding)
    bound = torch.where(valid[:, None], bound, torch.full_like(bound, -torch.inf))
    return bound.scatter(1, labels[:, None], torch.inf)


def _hardest_first(bound: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(classes [batch, classes] bool to solve together, those that decide whether the next ones
    need be solved), by bounds so far."""
    worst = torch.zeros_like(bound, dtype=torch.bool)
    worst.scatter_(1, bound.argmin(1, keepdim=True), True)
    if bound.shape[1] <= 2 * HARDEST:
        return [(worst, worst), (~worst, worst)]
    hard = torch.zeros_like(worst).scatter_(1, bound.topk(HARDEST, 1, largest=False).indices, True)
    return [(worst, worst), (hard & ~worst, hard), (~hard & ~worst, hard)]


def _head_fits(head: Head, state: Enclosure, rounding: Rounding) -> Tensor:
    """Where the deployed head cannot overflow float32 anywhere in the enclosure, [batch] bool."""
    if not rounding.is_sound or not head.terms:
        return torch.ones_like(state.valid)
    # Partial sums, not logits: sum |w_i z_i| + |b| over the ball or the box; the largest |z_i|.
    centre = state.centre.flatten(1).to(torch.float64)
    size = head.sizes(centre.abs())
    size = size + state.radius[:, None] * head.row_norms
    largest = rough_norm(centre) + state.radius
    if state.lower is not None and state.upper is not None:
        reach = torch.maximum(state.lower.abs(), state.upper.abs()).flatten(1).to(torch.float64)
        size = torch.fmin(size, head.sizes(reach))
        largest = torch.fmin(largest, reach.amax(1))
    ceiling = overflow_ceiling(head.terms)
    return (size < ceiling).all(1) & (largest < head.inner.max_input(ceiling))


def _pairwise_maximum(
    head: Head,
    centre: Tensor,
    lower: Tensor,
    upper: Tensor,
    radius: Tensor,
    labels: Tensor,
    pairs: Tensor,
    clock: Clock,
) -> Tensor:
    """max (w_j - w_y).d over the enclosure, for the open pairs; +inf elsewhere."""
    result = torch.full_like(pairs, torch.inf, dtype=torch.float64)
    rows, classes = pairs.nonzero(as_tuple=True)
    step = max(1, PAIR_BLOCK // (2 if head.dense is None else head.features))
    for start in range(0, rows.numel(), step):
        clock.check()
        row, j = rows[start : start + step], classes[start : start + step]
        if head.dense is None:
            # Only two numbers of the values are in these rows; the others may as well be still.
            places = torch.stack([j, labels[row]], 1)
            w = centre.new_tensor([1.0, -1.0]).expand(len(row), 2)
            low, high, middle = (x[row[:, None], places] for x in (lower, upper, centre))
        else:
            w = head.dense[j] - head.dense[labels[row]]
            low, high, middle = lower[row], upper[row], centre[row]
        below, above = low - middle, high - middle
        slack = up(0) - 1.0
        below = below - slack * below.abs()
        above = above + slack * above.abs()
        result[row, j] = ball_box_maximum(w, below, above, radius[row])
    return result


def logit_enclosure(head: Head, state: Enclosure, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """(logits at the centre, reach), [batch, classes] float64: every deployed logit lies within.

    The reach is -1 where float32 may overflow.
    """
    head = head.on(state.centre.device)
    centre = state.centre.flatten(1).to(torch.float64)
    deployed, own = head_gammas(head, rounding)
    logits = head.logits(centre)
    size = head.sizes(centre.abs())
    reach = raised(state.radius[:, None] * head.row_norms)
    if state.lower is not None and state.upper is not None:
        lower = state.lower.flatten(1).to(torch.float64)
        upper = state.upper.flatten(1).to(torch.float64)
        corner = raised(torch.maximum(upper - centre, centre - lower), 3)
        reach = torch.fmin(reach, raised(head.spread(corner), MANY))
    reach = reach * (1.0 + deployed) + (deployed + own) * size * ROOM
    reach = reach + rounding.underflow * head.floor
    valid = (state.valid & _head_fits(head, state, rounding))[:, None]
    valid = valid & (reach >= 0) & torch.isfinite(reach) & torch.isfinite(logits)
    return logits, torch.where(valid, reach, torch.full_like(reach, -1.0))


def margins_at_centre(head: Head, state: Enclosure, labels: Tensor) -> Tensor:
    """About the least f_y - f_j at the centre, [batch] float64: a guess, without rounding."""
    head = head.on(state.centre.device)
    logits = head.logits(state.centre.flatten(1).to(torch.float64))
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(1)


def certified(bounds: Tensor) -> Tensor:
    """[batch] bool: every margin's lower bound is strictly positive (NaN is not)."""
    return (bounds > 0).all(1)
