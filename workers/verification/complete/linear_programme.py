"""The linear programme of a domain, by HiGHS: its duals are hints for slopes and multipliers.

Nothing that the solver says is believed: its numbers go through ``DomainBounds.proved`` like any
others, and a programme that it calls infeasible gives no hint at all.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from workers.verification.complete.condensed_network import CondensedNetwork
from workers.verification.complete.domains import Domains
from workers.verification.region import Region

__all__ = ["solved"]

#: Entries of a programme that is worth solving.
LARGEST = 2**20
MOST_ITERATIONS = 20_000


def solved(network: CondensedNetwork, region: Region, domains: Domains) -> Tensor | None:
    """Numbers for the domains, as ``Domains.numbers`` has them; where the solver found none, as
    they are. None: too large, or the region is no box."""
    wide = network.inputs + network.count
    held = (network.units.weight, network.objectives.weight, network.lower, network.upper)
    finite = all(bool(torch.isfinite(numbers).all()) for numbers in held)
    sized = 0 < network.count * wide <= LARGEST
    if region.norm != "linf" or not sized or not finite:
        return None
    numbers = domains.numbers.clone()
    for row in range(len(domains)):
        found = _one(network, region, domains, row)
        if found is not None:
            numbers[row] = torch.from_numpy(found).to(numbers)
    return numbers


def _one(
    network: CondensedNetwork, region: Region, domains: Domains, row: int
) -> np.ndarray | None:
    """Variables: inputs, units after the activation, units before it."""
    units, inputs = network.count, network.inputs
    weight = network.units.weight.cpu().numpy()
    objective = network.objectives.weight[domains.objective[row]].cpu().numpy()
    sides = domains.sides[row].cpu().numpy()
    lines = network.lines
    cost = np.concatenate([objective, np.zeros(units)])
    equal = sparse.csr_matrix(np.concatenate([-weight, np.eye(units)], axis=1))
    below, above = (end.flatten().cpu().numpy() for end in region.box(torch.float64))
    low, high = network.lower.cpu().numpy(), network.upper.cpu().numpy()
    one = sparse.identity(units, format="csr")
    nothing = sparse.csr_matrix((units, inputs))

    def number(held: Tensor) -> np.ndarray:
        return np.where(sides == 0, held.cpu().numpy(), 0.0)

    active = (sides > 0).astype(np.float64)
    # a <= slope z + intercept; a >= z times the largest slope; a >= z times the least.
    least = np.where(lines.free.cpu().numpy(), lines.least_slope.cpu().numpy(), 0.0)
    least = np.where(sides == 0, least, active)
    most = np.where(lines.free.cpu().numpy(), 1.0, lines.lower_slope.cpu().numpy())
    most = np.where(sides == 0, most, active)
    chord = np.where(sides == 0, lines.upper_slope.cpu().numpy(), active)
    rows = sparse.vstack(
        [
            sparse.hstack([nothing, one, -sparse.diags(chord)]),
            sparse.hstack([nothing, -one, sparse.diags(most)]),
            sparse.hstack([nothing, -one, sparse.diags(least)]),
        ],
        format="csr",
    )
    shift = -number(lines.lower_intercept)
    limits = np.concatenate([number(lines.upper_intercept), shift, shift])
    z_low = np.where(sides > 0, np.maximum(low, 0.0), low)
    z_high = np.where(sides < 0, np.minimum(high, 0.0), high)
    free = np.full(units, np.inf)
    answer = linprog(
        cost,
        A_ub=rows,
        b_ub=limits,
        A_eq=equal,
        b_eq=network.units.constant.cpu().numpy(),
        bounds=np.stack(
            [np.concatenate([below, -free, z_low]), np.concatenate([above, free, z_high])], axis=1
        ),
        method="highs",
        options={"maxiter": MOST_ITERATIONS},
    )
    if answer.status != 0:
        return None
    ends = np.asarray(answer.lower.marginals), -np.asarray(answer.upper.marginals)
    if any(len(end) != inputs + 2 * units for end in ends):
        return None
    # Of the two lower lines of an undecided unit: the share of the upper one is the slope.
    marginals = -np.asarray(answer.ineqlin.marginals)
    upper_share, least_share = marginals[units : 2 * units], marginals[2 * units :]
    total = upper_share + least_share
    share = np.where(total > 0, upper_share / np.where(total > 0, total, 1.0), 0.0)
    slopes = least + share * (most - least)
    multipliers = np.where(sides > 0, ends[0][-units:], ends[1][-units:]).clip(0.0)
    return np.where(sides == 0, slopes, multipliers)
