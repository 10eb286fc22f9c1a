"""Executions against the boxes of domains that are clipped: small hostile networks at random.

A box may leave out an execution only where its objective exceeds what was asked, or where it is on
another side of a split.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from models.layers.kinds import Linear, ReLU
from models.network import Network
from tests.workers.verification.complete.samples import Sample, sample_of
from tests.workers.verification.networks import Builder
from workers.verification.backward.condensation import RowsOverflow
from workers.verification.complete import clipping
from workers.verification.complete.domain_bounds import DomainBounds
from workers.verification.complete.domains import Domains
from workers.verification.complete.search import roots, within_inputs
from workers.verification.rounding import Rounding

__all__ = ["Tally", "try_boxes"]

F64 = torch.float64
DOMAINS, POINTS, STAGES = 16, 120, 3
#: Beside those in use, 1: of a unit that is all of an objective both cancel.
SHARES = (*clipping.SHARES, 1.0)


@dataclass
class Tally:
    """checks: pairs of a domain and an execution that its boxes have to hold, at every stage; cut:
    those that they may leave out and do; wrong: what is false."""

    networks: int = 0
    checks: int = 0
    cut: int = 0
    empty: int = 0
    decided: int = 0
    wrong: list[str] = field(default_factory=list)


def _network(random: np.random.Generator) -> tuple[Network, int]:
    """Dense layers of very different sizes, with duplicate, dead and constant units."""
    inputs = int(random.integers(1, 6))
    widths = [inputs, *random.integers(1, 8, int(random.integers(1, 4))).tolist()]
    if random.integers(3) == 0:
        # So little that boxes are exact but for rounding.
        widths = [inputs, 1]
    builder = Builder((inputs,), int(random.integers(10**6)))
    carried = 1.0
    hostile = bool(random.integers(2))
    for number, (wide, out) in enumerate(zip(widths, [*widths[1:], 3], strict=True)):
        last = number == len(widths) - 1
        weight, bias = random.normal(size=(out, wide)) * wide**-0.5, 0.3 * random.normal(size=out)
        for row in range(1, out):
            kind = random.integers(8)
            if kind == 0:
                weight[row], bias[row] = weight[row - 1], bias[row - 1]
            elif kind == 1:
                weight[row], bias[row] = -weight[row - 1], -bias[row - 1]
            elif kind == 2 and not last:
                bias[row] -= 5.0
        scale = 10.0 ** random.uniform(-30, 30) if hostile else 1.0
        if not 1e-36 < carried * scale < 1e30:
            scale = 1.0 / carried
        # One unit far larger, or smaller, than the others.
        if hostile and random.integers(2):
            weight[random.integers(out)] *= 10.0 ** random.uniform(-6, 6)
        builder.add(
            Linear(
                torch.from_numpy(weight * scale).float(),
                torch.from_numpy(bias * scale * carried).float(),
            )
        )
        carried *= scale
        if not last:
            builder.add(ReLU())
    return builder.build(), inputs


def _sample(seed: int) -> Sample | None:
    random = np.random.default_rng(seed)
    network, inputs = _network(random)
    x = torch.from_numpy(random.random((1, inputs))).float()
    epsilon = float(random.choice([0.3, 0.1, 1e-3]))
    clip = bool(random.integers(2))
    if random.integers(5) == 0:
        # A denormal box, and around it the kinks of the first layer.
        x, epsilon = x * 2.0**-140, 2.0**-141
        first = network.layer(network.nodes[0].name)
        if isinstance(first, Linear):
            first.bias.zero_()
    norm = "l2" if random.integers(4) == 0 else "linf"
    try:
        return sample_of(network, x, epsilon, norm, clip=clip)
    except RowsOverflow:
        return None


def _domains(
    sample: Sample, before: Tensor, generator: torch.Generator, proof: DomainBounds
) -> Domains:
    """Around some executions: a few sides as they are there, numbers without any sense."""
    domains = within_inputs(roots(sample.condensed, torch.float32), sample.region)
    if sample.region.norm == "l2":
        domains = roots(sample.condensed, torch.float32)
    rows = torch.randint(len(domains), (DOMAINS,), generator=generator)
    domains = domains.some(rows)
    place = torch.randint(len(before), (DOMAINS,), generator=generator)
    sides = torch.where(before[place] >= 0, 1, -1).to(torch.int8)
    decided = torch.rand(sides.shape, generator=generator) < 0.3
    domains.sides = torch.where(decided & sample.condensed.lines.splits, sides, 0).to(torch.int8)
    domains.numbers = torch.rand(sides.shape, generator=generator)
    domains.numbers[::4] = domains.numbers[::4].round()
    if int(torch.randint(3, (1,), generator=generator)) == 0:
        domains.numbers *= 10.0 ** torch.randint(-9, 9, (DOMAINS, 1), generator=generator)
    else:
        # Of some sense: what a search begins with, a few steps on.
        guide = replace(proof, rounding=Rounding.ignored())
        guide.climb(domains, 5, (0.2, 0.2), 0.9, torch.full((DOMAINS,), torch.inf, dtype=F64))
    return domains


def _executions(sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
    """(input and units after the activation, units before it): as float32 has them, and as nearly
    real arithmetic has them, at the same points."""
    values, before, _ = sample.executed(POINTS, seed)
    inputs = sample.condensed.inputs
    flat, held = [], []
    state = values[:, :inputs]
    points = state
    units = sample.condensed.units
    # In the condensed network every unit is its own function: without any rounding, about.
    exact = torch.zeros(len(points), inputs + sample.condensed.count, dtype=F64)
    exact[:, :inputs] = points
    for block in sample.condensed.blocks:
        wide = inputs + block.start
        z = exact[:, :wide] @ units.weight[block, :wide].T + units.constant[block]
        held.append(z)
        exact[:, wide : inputs + block.stop] = z.clamp_min(0.0)
    flat = [values, exact]
    return torch.cat(flat), torch.cat([before, torch.cat([before[:, :0], *held], 1)])


def try_boxes(seed: int, tally: Tally) -> None:
    """One network, one region, ``DOMAINS`` domains, ``STAGES`` times clipped and refined."""
    sample = _sample(seed)
    if sample is None or not sample.condensed.count:
        return
    condensed = sample.condensed
    if not bool(torch.isfinite(condensed.objectives.constant + condensed.objectives.error).all()):
        return
    tally.networks += 1
    generator = torch.Generator().manual_seed(seed)
    proof = DomainBounds(condensed, sample.region, Rounding.sound(F64), F64)
    values, before = _executions(sample, seed)
    domains = _domains(sample, before, generator, proof)
    asked = condensed.objectives
    objective = values @ asked.weight.T + (asked.constant - asked.error)
    # Computed, so it may be off by a little itself.
    off = 1e-13 * (values.abs() @ asked.weight.abs().T + asked.constant.abs() + asked.error)
    value, off = objective[:, domains.objective].T, off[:, domains.objective].T
    # The asked number is that of an execution: the lowest, or another low one.
    place = torch.randint(len(values) // 3, (DOMAINS, 1), generator=generator)
    most = value.sort(1).values.gather(1, place)[:, 0]
    inside = (domains.sides[:, None].double() * before >= 0).all(2) & (value + off <= most[:, None])
    for stage in range(STAGES):
        if domains.low.shape[1]:
            found, planes = proof.planes(domains)
            clipping.clip_inputs(proof, domains, found, planes, most)
        undecided = int((domains.sides == 0).sum())
        with patch.object(clipping, "SHARES", SHARES):
            empty, _ = clipping.refine_units(proof, domains, most)
        tally.empty += int(empty.sum())
        tally.decided += undecided - int((domains.sides == 0).sum())
        held = (domains.lower[:, None] <= before) & (before <= domains.upper[:, None])
        held &= domains.sides[:, None].double() * before >= 0
        right = held.all(2) & ~empty[:, None]
        if domains.low.shape[1]:
            points = values[:, : condensed.inputs]
            right &= ((domains.low[:, None] <= points) & (points <= domains.high[:, None])).all(2)
        # What is bound over the boxes holds of what they hold.
        right &= proof.proved(domains)[:, None] <= value + off
        tally.checks += int(inside.sum())
        tally.cut += int((~right & ~inside).sum())
        if bool((inside & ~right).any()):
            tally.wrong.append(f"seed {seed}, stage {stage}: {int((inside & ~right).sum())}")
            return
