"""Narrower boxes of a sample's units, by branch and bound on their own values (Tjeng et al., ICLR
2019; Singh et al., "Boosting robustness certification", ICLR 2019).

Both ends of a unit's box are least values of linear functions like any margin, so domains, their
numbers and their proofs are the same. Every unit that gets narrower makes all later bounds tighter.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workers.verification.backward.condensation import CondensedRows
from workers.verification.clock import rows_per_piece
from workers.verification.complete.branching import CANDIDATES, branch, split, undecided
from workers.verification.complete.condensed_network import CondensedNetwork
from workers.verification.complete.domain_bounds import DomainBounds
from workers.verification.complete.domains import Domains
from workers.verification.complete.search import CHILD, Effort, roots

__all__ = ["refined"]

#: Domains of a block of units together, and splits of one end, at most.
WIDEST, DEEPEST = 1024, 5
#: Splits go on where ends gain this share of themselves.
PAYS = 0.02
#: Of an end, before anything is split.
WHOLE = Effort(20, (0.2, 0.2), 0.93)
#: Rows of a domain that is split: its own, of its children's candidates, of the children.
ROWS = 2.0 + 2.0 * CANDIDATES + 2.0 * CHILD.ways


def refined(
    guide: DomainBounds, proof: DomainBounds, most: float = torch.inf
) -> tuple[CondensedNetwork, float]:
    """(the network over narrower boxes, rows that were carried back for it, at most ``most``).
    Block by block, each over the boxes of those before it; the first one's are exact but for
    rounding.

    Raises OutOfTime.
    """
    network, rows = proof.network, 0.0
    for block in network.blocks[1:]:
        units = torch.arange(block.start, block.stop, device=network.lower.device)
        units = units[network.lines.splits[units]]
        count = 2 * len(units)
        if not 0 < count <= WIDEST or WHOLE.ways * count > most - rows:
            continue
        asked = replace(network, objectives=_ends(network, units), classes=torch.cat([units] * 2))
        found, spent = _least(
            replace(guide, network=asked), replace(proof, network=asked), most - rows
        )
        rows += spent
        lower, upper = network.lower.clone(), network.upper.clone()
        lower[units] = torch.fmax(lower[units], found[: len(units)])
        upper[units] = torch.fmin(upper[units], -found[len(units) :])
        network = network.within(lower, upper, proof.rounding)
    return network, rows


def _ends(network: CondensedNetwork, units: Tensor) -> CondensedRows:
    """The units' values before the activation, and these times -1."""
    held = network.units
    weight, constant = held.weight[units], held.constant[units]
    return CondensedRows(
        torch.cat([weight, -weight]),
        torch.cat([constant, -constant]),
        torch.cat([held.error[units]] * 2),
    )


def _least(guide: DomainBounds, proof: DomainBounds, most: float) -> tuple[Tensor, float]:
    """Proved least values of every objective [objectives] float64, and rows carried back."""
    network = proof.network
    count = len(network.classes)
    domains = roots(network, guide.dtype)
    spent = _climb(guide, proof, domains, WHOLE)
    found = domains.bound.clone()
    for _ in range(min(DEEPEST, (WIDEST // count).bit_length() - 1)):
        # An end beyond 0 settles the unit: where, matters no more.
        going = undecided(guide, domains).any(1) & (found[domains.objective] <= 0)
        if not bool(going.any()) or spent + ROWS * int(going.sum()) > most:
            break
        rest, taken = domains.some(~going), domains.some(going)
        units, rows = branch(guide, taken, guide.traced(taken)[1])
        children = split(taken, units, 1)
        spent += rows + 2.0 * len(taken) + _climb(guide, proof, children, CHILD)
        domains = rest.followed_by(children)
        before, found = found, torch.full_like(found, torch.inf)
        found = found.scatter_reduce(0, domains.objective, domains.bound, "amin")
        if not float((found - before).sum()) > PAYS * float(before.abs().sum()):
            break
    return found, spent


def _climb(guide: DomainBounds, proof: DomainBounds, domains: Domains, effort: Effort) -> float:
    """Improve and prove all of them in place; rows carried back. A parent's bound stays valid."""
    network = proof.network
    together = rows_per_piece(3 * network.multiplications, network.lower.device)
    for rows in torch.arange(len(domains), device=network.lower.device).split(together):
        part = domains.some(rows)
        enough = torch.full_like(part.bound, torch.inf)
        guide.climb(part, effort.steps, effort.rates, effort.decay, enough)
        domains.numbers[rows] = part.numbers
        domains.bound[rows] = torch.maximum(part.bound, proof.proved(part))
    return effort.ways * len(domains)
