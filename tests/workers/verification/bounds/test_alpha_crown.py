"""Optimised slopes: every bound sound, never below what it starts from, each row for itself."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.kinds import Add, LeakyReLU, ReLU
from models.network import Network
from tests.extent import examples
from tests.workers.verification.networks import (
    Builder,
    adversarial_float32,
    dense_network,
    random_network,
)
from tests.workers.verification.regions import points_of
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.intermediate_bounds import neuron_bounds, unit_forms
from workers.verification.bounds.alpha_crown import Slopes, alpha_crown_margins, optimized_bound
from workers.verification.bounds.alpha_crown_intermediate import (
    alpha_crown_intermediate_margins,
    tightened,
)
from workers.verification.bounds.crown import final_forms, refined_pass
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

DOUBLE = (Rounding.sound(torch.float64), torch.float64)
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def images(seed: int) -> Tensor:
    return torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def reach(*epsilons: float) -> Tensor:
    return torch.tensor(epsilons, dtype=torch.float64)


def residual(seed: int) -> Network:
    """Convolutions with padding and strides, a residual sum, ReLU and leaky ReLU: rows are patches
    in the early layers."""
    b = Builder((2, 8, 8), seed)
    b.conv(3, 3, padding=1)
    b.add(ReLU())
    before = b.last
    b.conv(3, 3, padding=1)
    b.add(LeakyReLU(slope=0.1))
    b.conv(3, 3, padding=1)
    b.add(Add(), b.last, before)
    b.add(ReLU())
    b.conv(3, 3, stride=2)
    b.add(ReLU())
    b.flatten()
    b.linear(4)
    return b.build()


def passes(compiled: CompiledNetwork, region: Region) -> tuple[BackwardPass, BackwardPass]:
    """CROWN's pass, and the one with boxes optimised in a few steps."""
    before, _ = refined_pass(compiled, region, LABELS[: len(region.x)], *DOUBLE, "crown")
    return before, tightened(before, torch.arange(len(region.x)), 3)


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    epsilon=st.sampled_from([1e-3, 0.02, 0.1, 0.5]),
    scale=st.sampled_from([1.0, 1e-4, 1e4]),
)
@settings(max_examples=examples(10), deadline=None)
def test_margins_hold_for_every_float32_evaluation_and_grow_from_one_bound_to_the_next(
    dtype: torch.dtype, seed: int, norm: str, clip: bool, epsilon: float, scale: float
) -> None:
    network = random_network(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    region = Region(images(seed), reach(epsilon, 2 * epsilon, epsilon / 3), norm, clip)
    arithmetic = (Rounding.sound(dtype), dtype)
    compiled = CompiledNetwork.compile(network)
    last = alpha_crown_margins(compiled, region, LABELS, *arithmetic)
    all_layers = alpha_crown_intermediate_margins(compiled, region, LABELS, *arithmetic)
    assert bool((all_layers >= last).all())
    for point in points_of(region, generator, 4):
        for value in (adversarial_float32(network, point, generator), network(point).double()):
            found = value.gather(1, LABELS[:, None]) - value
            found = found.scatter(1, LABELS[:, None], torch.inf)
            assert bool((found >= all_layers).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("build", [residual, random_network])
def test_boxes_only_shrink_and_hold_every_value(build: object, norm: str) -> None:
    shrunk = 0
    for seed in range(3):
        network = build(seed)  # type: ignore[operator]
        epsilon = (0.02, 0.05, 0.1) if norm == "linf" else (0.2, 0.5, 1.0)
        region = Region(images(seed), reach(*epsilon), norm, True)
        before, after = passes(CompiledNetwork.compile(network), region)
        generator = torch.Generator().manual_seed(seed)
        for point in points_of(region, generator, 6):
            values = [point.double()]
            for step in before.compiled.steps:
                values.append(forward_step(step, [values[source] for source in step.sources]))
            for number, value in enumerate(values):
                lower, upper = after.box(number)
                assert bool(((lower <= value) & (value <= upper)).all())
        for number in range(len(before.values)):
            (wide_lower, wide_upper), (lower, upper) = before.box(number), after.box(number)
            assert bool((lower >= wide_lower).all())
            assert bool((upper <= wide_upper).all())
            shrunk += int((upper - lower < 0.99 * (wide_upper - wide_lower)).sum())
    assert shrunk > 30


@pytest.mark.parametrize(("seed", "epsilon"), [(1, 0.35), (10, 0.25), (12, 0.25)])
def test_optimised_boxes_certify_what_the_last_slopes_alone_do_not(
    seed: int, epsilon: float
) -> None:
    network = dense_network([2, 20, 20, 20, 3], seed)
    x = torch.full((1, 2), 0.5)
    labels = network(x).argmax(1)
    region = Region(x, reach(epsilon), "linf", True)
    compiled = CompiledNetwork.compile(network)
    last = alpha_crown_margins(compiled, region, labels, *DOUBLE).amin()
    all_layers = alpha_crown_intermediate_margins(compiled, region, labels, *DOUBLE).amin()
    side = torch.linspace(0.5 - epsilon, 0.5 + epsilon, 201)
    logits = network(torch.cartesian_prod(side, side))
    others = logits.clone()
    others[:, labels] = -torch.inf
    least = (logits[:, labels][:, 0] - others.amax(1)).amin()
    assert last < 0 < all_layers < least


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("build", [residual, random_network])
def test_a_sample_alone_or_in_a_batch_gets_the_same_boxes_and_margins(
    build: object, norm: str
) -> None:
    for seed in range(examples(1)):
        compiled = CompiledNetwork.compile(build(seed))  # type: ignore[operator]
        x = images(seed)
        epsilon = reach(0.01, 0.1, 0.05) * (1.0 if norm == "linf" else 6.0)
        _, together = passes(compiled, Region(x, epsilon, norm, True))
        bounds = torch.full((3, 4), -1e300, dtype=torch.float64)
        margins = final_forms(together, LABELS, bounds, optimized_bound)
        for row in range(3):
            one = slice(row, row + 1)
            _, alone = passes(compiled, Region(x[one], epsilon[one], norm, True))
            for number in range(len(alone.values)):
                for mine, theirs in zip(alone.box(number), together.box(number), strict=True):
                    assert torch.allclose(mine[0], theirs[row], rtol=1e-7, atol=1e-7)
            found = final_forms(alone, LABELS[one], bounds[one], optimized_bound)
            assert torch.allclose(found[0], margins[row], rtol=1e-7, atol=1e-7)


def unit_neurons(network: Network, count: int) -> tuple[BackwardPass, int, tuple[Tensor, ...]]:
    """CROWN's pass at one radius; the value before the last ReLU, and some of its neurons."""
    region = Region(images(0), reach(0.1, 0.05, 0.1), "linf", True)
    backward, _ = refined_pass(CompiledNetwork.compile(network), region, LABELS, *DOUBLE, "crown")
    steps = backward.compiled.steps
    value = max(step.sources[0] for step in steps if isinstance(step.op, ReLU))
    lower, upper = backward.box(value)
    places = ((lower < 0) & (upper > 0)).nonzero(as_tuple=True)
    assert places[0].numel() >= count
    return backward, value, tuple(axis[:count] for axis in places)


def test_a_row_that_stops_keeps_what_it_had_however_long_the_others_go_on() -> None:
    backward, value, places = unit_neurons(residual(0), 8)
    start, rows, _, _ = unit_forms(backward, value, places)
    plain = backward.lower_bound(start, rows)
    best = optimized_bound(backward, start, rows, torch.full_like(plain, torch.inf))
    assert bool((best >= plain).all())
    assert bool((best > plain).any())
    # Half of the rows stop on their way; the others at once, or not at all.
    needed = plain + 0.3 * (best - plain)
    needed[1::2] = -torch.inf
    short = optimized_bound(backward, start, rows, needed)
    needed[1::2] = torch.inf
    long = optimized_bound(backward, start, rows, needed)
    assert torch.equal(short[::2], long[::2])
    assert torch.equal(short[1::2], plain[1::2])
    assert torch.equal(long[1::2], best[1::2])


def test_only_slopes_of_unstable_neurons_move() -> None:
    backward, value, places = unit_neurons(residual(0), 8)
    start, rows, _, _ = unit_forms(backward, value, places)
    slopes = Slopes()
    with torch.enable_grad():
        backward.lower_bound(start, rows, slopes=slopes)
    before = {index: tensor.detach().clone() for index, tensor in slopes.tensors.items()}
    for tensor in slopes.tensors.values():
        tensor.grad = torch.ones_like(tensor)
    slopes.hold_stable()
    moved = 0
    for index, tensor in slopes.tensors.items():
        free = slopes.free[index]
        tensor.add_(tensor.grad, alpha=0.1)  # type: ignore[arg-type]
        assert torch.equal(tensor[~free], before[index][~free])
        moved += int((tensor[free] > before[index][free]).sum())
    assert moved > 0
    slopes.project()
    assert all(bool(((tensor >= 0) & (tensor <= 1)).all()) for tensor in slopes.tensors.values())


def test_slopes_of_patches_give_what_slopes_of_whole_maps_give() -> None:
    backward, value, places = unit_neurons(residual(0), 8)
    start, rows, _, _ = unit_forms(backward, value, places)
    assert rows.is_patch
    needed = torch.full((8,), torch.inf, dtype=torch.float64)
    patches = optimized_bound(backward, start, rows, needed)
    whole = optimized_bound(backward, start, rows.dense(), needed)
    assert torch.allclose(patches, whole, rtol=1e-9, atol=1e-9)


def test_what_is_kept_for_the_next_rows_does_not_grow_with_the_iterations() -> None:
    backward, value, places = unit_neurons(residual(0), 8)
    kept = []
    for iterations in (1, 4):
        solve = partial(optimized_bound, iterations=iterations)
        neuron_bounds(backward, value, places, kink=False, solve=solve)
        kept.append(len(backward.windows))
    assert kept[0] == kept[1]
