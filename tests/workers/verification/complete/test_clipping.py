"""Boxes of domains: they hold every execution that may still be wrong, and are narrow."""

from __future__ import annotations

import pytest
import torch

from tests.extent import examples
from tests.workers.verification.complete.boxes import Tally, try_boxes
from tests.workers.verification.complete.samples import Sample, sample_of
from tests.workers.verification.networks import dense_network
from workers.verification.complete.clipping import clip_inputs, refine_units
from workers.verification.complete.domain_bounds import DomainBounds
from workers.verification.complete.domains import Domains
from workers.verification.complete.search import roots, within_inputs
from workers.verification.rounding import Rounding

F64 = torch.float64


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def climbed(sample: Sample) -> tuple[DomainBounds, Domains]:
    """Bounds that prove, and the whole region for every class with good numbers."""
    bounds = DomainBounds(sample.condensed, sample.region, Rounding.sound(F64), F64)
    guide = DomainBounds(sample.condensed, sample.region, Rounding.ignored(), torch.float32)
    domains = roots(sample.condensed, torch.float32)
    if sample.region.norm == "linf":
        domains = within_inputs(domains, sample.region)
    guide.climb(domains, 50, (0.2, 0.2), 0.96, torch.full_like(domains.bound, torch.inf))
    return bounds, domains


def test_boxes_hold_every_execution_that_may_still_be_wrong() -> None:
    """Weights of all sizes, denormal boxes, duplicate and dead units, splits, l2 and linf."""
    tally = Tally()
    for seed in range(examples(60)):
        try_boxes(seed, tally)
    assert tally.wrong == []
    assert tally.networks > 10
    assert tally.checks > 5000
    assert tally.cut > tally.checks
    assert tally.decided > 0


def test_a_side_of_a_box_moves_to_where_the_plane_reaches_the_number() -> None:
    sample = sample_of(dense_network([3, 7, 6, 3], 1), torch.full((1, 3), 0.5), 0.5)
    bounds, domains = climbed(sample)
    part = domains.some(torch.zeros(2, dtype=torch.int64))
    part.low, part.high = torch.zeros(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64)
    planes = torch.tensor([[2.0, -4.0, 0.0], [0.5, -1.0, 1e-300]], dtype=F64)
    clip_inputs(bounds, part, torch.tensor([-1.0, -torch.inf]), planes, torch.zeros(2, dtype=F64))
    assert torch.allclose(part.high[0], torch.tensor([0.5, 1.0, 1.0], dtype=F64))
    assert torch.allclose(part.low[0], torch.tensor([0.0, 0.75, 0.0], dtype=F64))
    assert bool((part.high[0] >= torch.tensor([0.5, 1.0, 1.0])).all())
    assert bool((part.low[0] <= torch.tensor([0.0, 0.75, 0.0])).all())
    # No bound, no cut.
    assert bool((part.low[1] == 0).all() & (part.high[1] == 1).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_units_get_narrower_boxes_and_sides_and_the_bound_grows(norm: str) -> None:
    gained, decided = 0.0, 0
    for seed in range(6):
        x = torch.rand(1, 6, generator=torch.Generator().manual_seed(seed))
        bounds, domains = climbed(sample_of(dense_network([6, 16, 12, 3], seed), x, 0.2, norm))
        before = bounds.proved(domains)
        domains = domains.some(before < 0)
        if not len(domains):
            continue
        before, old = before[before < 0], domains.some(torch.arange(len(domains)))
        empty, rows = refine_units(bounds, domains, torch.zeros_like(before))
        assert rows > 0
        assert bool((domains.lower >= old.lower).all() & (domains.upper <= old.upper).all())
        assert bool(((old.sides == 0) | (domains.sides == old.sides)).all())
        kept = (domains.sides > 0) <= (domains.lower >= 0)
        assert bool((kept & ((domains.sides < 0) <= (domains.upper <= 0))).all())
        decided += int((domains.sides != old.sides).sum())
        after = bounds.proved(domains)[~empty]
        gained += float((after - before[~empty]).clamp_min(0.0).sum())
    assert decided > 0
    assert gained > 0
