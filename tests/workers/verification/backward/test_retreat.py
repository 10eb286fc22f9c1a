"""A bound that failed proves smaller epsilons with its boxes: what it says it proves holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.extent import examples
from tests.workers.verification.networks import adversarial_float32, random_network
from tests.workers.verification.regions import points_of
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.retreat import retreat, within
from workers.verification.bounds.crown import crown_margins, refined_pass
from workers.verification.bounds.crown_ball import crown_ball_margins
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F32, F64 = torch.float32, torch.float64
SOUND = Rounding.sound(F32), F32


def just_beyond(
    bound: Callable[..., Tensor], compiled: CompiledNetwork, region: Region, labels: Tensor
) -> Region:
    """The region at epsilons where the bound fails by little, sample by sample."""
    low, high = torch.zeros(len(labels), dtype=F64), torch.ones(len(labels), dtype=F64)
    for _ in range(7):
        middle = (low + high) / 2
        at = Region(region.x, middle, region.norm, region.clip)
        proved = (bound(compiled, at, labels, *SOUND) > 0).all(1)
        low, high = torch.where(proved, middle, low), torch.where(proved, high, middle)
    return Region(region.x, high, region.norm, region.clip)


@pytest.mark.parametrize(
    ("bound", "norm"), [(crown_margins, "linf"), (crown_margins, "l2"), (crown_ball_margins, "l2")]
)
def test_no_execution_within_what_is_reached_is_wrong(
    bound: Callable[..., Tensor], norm: str
) -> None:
    network = random_network(3)
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(4, 2, 8, 8, generator=generator)
    labels = network(x).argmax(1)
    compiled = CompiledNetwork.compile(network)
    start = Region(x, torch.ones(4, dtype=F64), norm, True)
    region = just_beyond(bound, compiled, start, labels)
    reached = torch.zeros(4, dtype=F64)
    margins = bound(compiled, region, labels, *SOUND, reached=reached)
    failed = ~(margins > 0).all(1)
    assert bool((reached[failed] < region.epsilon[failed]).all())
    assert bool((reached[~failed] == 0).all())
    # It is of use: of a near miss most is left.
    assert bool((reached > 0.5 * region.epsilon).any())
    inside = Region(x, reached, norm, True)
    for point in points_of(inside, generator, 6):
        for value in (adversarial_float32(network, point, generator), network(point).double()):
            lead = value.gather(1, labels[:, None]) - value
            lead.scatter_(1, labels[:, None], torch.inf)
            assert bool((lead.amin(1) > 0)[reached > 0].all())


@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "linf"]))
@settings(max_examples=examples(3), deadline=None)
@torch.no_grad()
def test_values_over_a_smaller_region_are_in_the_boxes_of_both(seed: int, norm: str) -> None:
    network = random_network(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 2, 8, 8, generator=generator)
    compiled = CompiledNetwork.compile(network)
    region = Region(x, torch.tensor([0.2, 0.4], dtype=F64), norm, True)
    labels = torch.zeros(2, dtype=torch.int64)
    whole, _ = refined_pass(compiled, region, labels, *SOUND, "crown")
    smaller = within(whole, region.epsilon / 3)
    assert torch.equal(smaller.region.epsilon, region.epsilon / 3)
    for point in points_of(smaller.region, generator, 4):
        # Turned pairs are real numbers: float32 would round them.
        values = [point.double()]
        for step in whole.compiled.steps:
            values.append(forward_step(step, [values[source] for source in step.sources]))
        for number, value in enumerate(values):
            low, high = smaller.box(number)
            assert bool((low <= value).all())
            assert bool((value <= high).all())
            wide_low, wide_high = whole.box(number)
            assert bool((wide_low <= low).all())
            assert bool((high <= wide_high).all())


def test_only_what_is_proved_is_reached() -> None:
    """Whatever the margins say of other epsilons: here each try but the second fails."""
    network = random_network(1)
    compiled = CompiledNetwork.compile(network)
    x, labels = torch.rand(1, 2, 8, 8), torch.zeros(1, dtype=torch.int64)
    region = Region(x, torch.tensor([0.1], dtype=F64), "linf", True)
    backward, _ = refined_pass(compiled, region, labels, *SOUND, "crown")
    told = iter([-0.01, 0.001, math.nan])
    tried: list[float] = []

    def least(smaller: BackwardPass, wanted: Tensor) -> Tensor:
        tried.append(float(smaller.region.epsilon))
        return torch.tensor([next(told)], dtype=F64)

    reached, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    retreat(backward, least, -0.05 * one, one, reached)
    assert len(tried) >= 2
    assert tried[1] < tried[0] < 0.1
    assert float(reached) == tried[1]
