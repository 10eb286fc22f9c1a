"""Branching rules: the unit of a domain that is split next.

In the manner of FSB (De Palma et al. 2021): a score that costs nothing chooses a few candidates,
and the bounds of their children, with the parent's numbers, choose among these. Guesses alone: any
choice is sound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.verification.complete.domain_bounds import DomainBounds, Trace
from workers.verification.complete.domains import Domains

__all__ = ["CANDIDATES", "branch", "split", "undecided"]

#: Children of so many units of a domain are bounded before one is chosen.
CANDIDATES = 4
#: Of the better child's bound, beside the worse one's.
BETTER_SHARE = 0.1


def undecided(bounds: DomainBounds, domains: Domains) -> Tensor:
    """[n, units] bool: units that may still be split."""
    return (domains.sides == 0) & bounds.lines.splits


def scores(bounds: DomainBounds, domains: Domains, trace: Trace) -> Tensor:
    """What the lines of each unit lose at the point that attains the bound, [n, units]; -1 where
    nothing may be split.

    With the coefficient c, the relaxed a and z there: c (relu(z) - a) >= 0, z cut with its box.
    """
    c, slopes = trace.coefficients, bounds.slopes(domains)
    low, high = domains.lower.to(c.dtype), domains.upper.to(c.dtype)
    z = torch.minimum(torch.maximum(trace.before, low), high)
    relaxed = torch.where(c > 0, slopes.below * z + slopes.low, slopes.above * z + slopes.high)
    lost = c * (z.clamp_min(0.0) - relaxed)
    return torch.where(undecided(bounds, domains), lost.nan_to_num(0.0).clamp_min(0.0), -1.0)


def branch(bounds: DomainBounds, domains: Domains, trace: Trace) -> tuple[Tensor, int]:
    """(units to split, best first [n, candidates], -1 where there are no more; rows that were
    bounded for it).

    Every domain has one that may be split.
    """
    found = scores(bounds, domains, trace)
    count = min(CANDIDATES, found.shape[1])
    value, unit = found.topk(count, dim=1)
    unit = unit.masked_fill(value < 0, -1)
    if count == 1:
        return unit, 0
    # Domains times candidates, in the order of the domains; what may not be split comes last.
    repeated = torch.arange(len(domains), device=unit.device).repeat_interleave(count)
    children = domains.some(repeated).split(unit.clamp_min(0).flatten())
    both = bounds.quick(children).reshape(2, len(domains), count).nan_to_num(-torch.inf)
    known = domains.bound[:, None]
    gain = torch.maximum(both, known).clamp_max(0.0)
    total = gain.amin(0) + BETTER_SHARE * gain.amax(0)
    # Where no child is better, the order stays: by what lines lose.
    better = total > (1.0 + BETTER_SHARE) * known.clamp_max(0.0)
    total = torch.where(better, total, -torch.inf).masked_fill(unit < 0, -torch.inf)
    order = total.argsort(dim=1, descending=True, stable=True)
    return unit.gather(1, order), len(children)


def split(domains: Domains, units: Tensor, depth: int) -> Domains:
    """The children by each domain's first ``depth`` units of ``units`` [n, candidates]."""
    rows = torch.arange(len(domains), device=units.device)
    for place in range(min(depth, units.shape[1])):
        chosen = units[rows, place]
        more = chosen >= 0
        parts = domains.some(more).split(chosen[more])
        domains = domains.some(~more).followed_by(parts)
        rows = torch.cat([rows[~more], rows[more], rows[more]])
    return domains
