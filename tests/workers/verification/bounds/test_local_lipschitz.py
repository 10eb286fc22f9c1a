"""Local Lipschitz bounds: norms above the true ones, margins that hold, never worse than BCP."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.activations import AtLeast, AtMost, Clip, MaxMin, ReLUTheta
from models.layers.kinds import Layer, LeakyReLU, PReLU, ReLU
from models.network import Network
from tests.extent import examples, part
from tests.workers.verification.bounds.masked_maps import masked_case, random_map
from tests.workers.verification.certification import arithmetic
from tests.workers.verification.networks import (
    adversarial_float32,
    dense_network,
    random_network,
    saturated_network,
)
from tests.workers.verification.regions import points_of
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.local_lipschitz import local_margins
from workers.verification.forward.local_pass import LocalPass
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.layers.pairs.sorting import paired_slopes
from workers.verification.layers.registry import anchored_slopes
from workers.verification.norms.spectral import materialize
from workers.verification.region import Region
from workers.verification.rounding import Rounding

DTYPES = [torch.float32, torch.float64]


@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 1e-4, 1e4, 1e-20, 1e20]),
)
@settings(max_examples=examples(40), deadline=None)
def test_every_norm_is_at_least_the_largest_singular_value(
    dtype: torch.dtype, seed: int, scale: float
) -> None:
    op = random_map(seed, scale)
    masked, slopes, exact = masked_case(op, seed, dtype)
    infinite = torch.full_like(exact, torch.inf)
    assert bool((masked.frobenius(slopes) >= exact).all())
    assert bool((masked.schur(slopes, infinite) >= exact).all())
    for row in range(len(exact)):
        norm, _ = masked.gram(row, slopes, 1e12)
        assert norm >= exact[row] * (1 - 1e-12)
        assert norm <= exact[row] * (1 + 1e-6) + scale * 1e-9
    # Norms of the masked rows, which the boxes use.
    matrix = materialize(op.linear, op.in_shape).T
    for row in range(len(exact)):
        part = matrix * masked.mask[row].double().flatten()
        rows = masked.rows.expand(5, *op.out_shape)[row].double().flatten() * masked.scale
        assert bool((rows >= part.norm(dim=1) * (1 - 1e-12)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_schur_skips_could_not_have_helped(dtype: torch.dtype) -> None:
    for seed in range(20):
        masked, slopes, exact = masked_case(random_map(seed, 1.0), seed, dtype)
        full = masked.schur(slopes, torch.full_like(exact, torch.inf))
        best = torch.minimum(masked.frobenius(slopes), full * 1.1)
        least = torch.minimum(full, best)
        found = torch.minimum(masked.schur(slopes, best), best)
        # Zero operators keep what underflow might have hidden.
        assert torch.allclose(found, least, rtol=1e-6, atol=1e-20)


ACTIVATIONS: list[Layer] = [
    ReLU(),
    LeakyReLU(slope=0.2),
    LeakyReLU(slope=0.0),
    PReLU(torch.tensor([0.7])),
    PReLU(torch.tensor([1.0])),
    Clip(low=-0.5, high=1.0),
    Clip(high=0.3),
    Clip(low=0.1),
    ReLUTheta(torch.tensor([0.5])),
    ReLUTheta(torch.tensor([0.0])),
    AtLeast(torch.tensor([0.2])),
    AtMost(torch.tensor([0.4])),
]


@pytest.mark.parametrize("layer", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_anchored_slopes_bound_every_secant_from_the_centre(
    layer: Layer, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 4000
    size = 10.0 ** (torch.rand(3, count, generator=generator) * 8 - 6)
    ends = (torch.randn(2, count, generator=generator) * size[:2]).to(dtype)
    special = torch.tensor([0.0, 0.5, 1.0, 0.3, -0.5, 0.1], dtype=dtype)
    ends[0, :600] = special.repeat(100)
    lower, upper = ends.amin(0), ends.amax(0)
    lower[-300:] = upper[-300:]
    centre = lower + (upper - lower) * torch.rand(count, generator=generator).to(dtype)
    centre[::3] += (torch.randn(count, generator=generator) * size[2]).to(dtype)[::3]
    centre[1::7] = special.repeat(count)[: centre[1::7].numel()]
    with torch.no_grad():
        slopes = anchored_slopes(layer, centre, lower, upper)
        assert slopes is not None
        assert bool(((slopes >= 0) & (slopes <= 1)).all())
        exact = layer.double()
        before, a = exact(centre.double()), centre.double()
        for share in torch.linspace(0, 1, 101).double():
            t = lower.double() + (upper.double() - lower.double()) * share
            t = torch.minimum(torch.maximum(t, lower.double()), upper.double())
            moved = (exact(t) - before).abs()
            room = 4 * 2.0**-53 * (before.abs() + exact(t).abs())
            assert bool((moved <= slopes.double() * (t - a).abs() + room).all())
        layer.float()
    odd = torch.tensor([torch.nan, 0.0, -1.0, 1.0], dtype=dtype)
    wild = anchored_slopes(layer, odd, odd - 1, torch.full_like(odd, torch.inf))
    assert wild is not None
    assert bool((wild[0] == 1) | torch.isnan(wild[0]))


@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    epsilon=st.sampled_from([0.0, 1e-9, 1e-3, 0.05, 0.5]),
    scale=st.sampled_from([1.0, 1e-4, 1e4]),
)
@settings(max_examples=examples(30), deadline=None)
def test_margins_hold_for_every_float32_evaluation(
    dtype: torch.dtype, seed: int, norm: str, clip: bool, epsilon: float, scale: float
) -> None:
    network = random_network(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 8, 8, generator=generator)
    reach = torch.tensor([epsilon, 2 * epsilon, epsilon / 3], dtype=torch.float64)
    region = Region(x, reach, norm, clip)
    compiled = CompiledNetwork.compile(network)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        lowest = local_margins(compiled, region, labels, Rounding.sound(dtype), dtype)
        for point in points_of(region, generator, 4):
            for value in (adversarial_float32(network, point, generator), network(point).double()):
                found = value.gather(1, labels[:, None]) - value
                found = found.scatter(1, labels[:, None], torch.inf)
                assert bool((found >= lowest).all())


@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
    ceiling=st.sampled_from([0.0, 0.3, 2.0, torch.inf]),
    floor=st.sampled_from([0.0, -0.3, -2.0, 0.5, -torch.inf]),
    width=st.sampled_from([1e-3, 0.1, 1.0, 5.0]),
)
@settings(max_examples=examples(40), deadline=None)
def test_slopes_of_sorted_pairs_bound_how_far_a_pair_moves(
    dtype: torch.dtype, seed: int, ceiling: float, floor: float, width: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, 60, 4, 2, generator=generator) * width
    ends = (ends + torch.randn(60, 4, 2, generator=generator)).to(dtype)
    lower, upper = ends.amin(0), ends.amax(0)
    centre = lower + (upper - lower) * torch.rand(lower.shape, generator=generator).to(dtype)
    limits = torch.tensor(ceiling), torch.tensor(floor)
    slopes = paired_slopes(centre, lower, upper, *limits)
    assert bool((slopes[:, :2] == slopes[:, 2:]).all())
    assert bool(((slopes >= 0) & (slopes <= 1)).all())

    def activation(z: torch.Tensor) -> torch.Tensor:
        first, second = z.chunk(2, dim=1)
        high = torch.maximum(first, second).clamp_max(ceiling)
        return torch.stack([high, torch.minimum(first, second).clamp_min(floor)])

    before = activation(centre.double())
    for corner in range(40):
        share = torch.rand(lower.shape, generator=generator).double()
        share = share.round() if corner % 2 else share
        t = lower.double() + (upper.double() - lower.double()) * share
        moved = (activation(t) - before).norm(dim=0)
        away = torch.stack((t - centre.double()).chunk(2, dim=1)).norm(dim=0)
        room = 1e-15 * (1 + activation(t).abs().nan_to_num(posinf=0).sum(0))
        assert bool((moved <= slopes[:, :2].double() * away + room).all())


@pytest.mark.parametrize(
    "activation", [ReLU(), LeakyReLU(slope=0.1), MaxMin(), ReLUTheta(torch.tensor(0.4))]
)
def test_hidden_values_lie_in_the_local_ball_and_box(activation: Layer) -> None:
    for seed in range(examples(4)):
        dtype = DTYPES[seed % 2]
        network = saturated_network(seed, activation)
        body = Network(
            network.input_shape,
            [(n.name, network.layer(n.name), n.inputs) for n in network.nodes[:-1]],
        )
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(3, 2, 8, 8, generator=generator)
        region = Region(x, torch.tensor([0.3, 0.01, 1e-6], dtype=torch.float64), "l2", True)
        compiled = CompiledNetwork.compile(body)
        with torch.no_grad():
            run = LocalPass(compiled, region, Rounding.sound(dtype), dtype, exact=True)
            state = run.run()
            assert state.lower is not None
            assert state.upper is not None
            for point in points_of(region, generator, 8):
                value = adversarial_float32(body, point, generator)
                assert bool((value >= state.lower.double()).all())
                assert bool((value <= state.upper.double()).all())
                distance = (value - state.centre.double()).flatten(1).norm(dim=1)
                assert bool((distance <= state.radius).all())


@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(slope=0.1)])
def test_local_norms_are_never_above_the_global_ones_and_often_below(activation: Layer) -> None:
    below = 0
    for seed in range(8):
        compiled = CompiledNetwork.compile(saturated_network(seed, activation))
        x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
        region = Region(x, torch.full((3,), 0.1, dtype=torch.float64), "l2", True)
        rounding = Rounding.sound(torch.float64)
        with torch.no_grad():
            run = LocalPass(compiled, region, rounding, torch.float64, exact=True)
            run.run()
        assert len(run.norms) == 3
        for index, norm in run.norms.items():
            norms = compiled.steps[index].norms
            assert norms is not None
            assert bool((norm <= norms.spectral).all())
            below += int((norm < 0.9 * norms.spectral).sum())
    assert below > 20


def test_clamped_sorting_masks_what_lies_beyond_its_thresholds() -> None:
    """Clamped MaxMin as it is deployed: MaxMin, then a threshold on each half."""
    better = 0
    for seed in range(6):
        clamped = MaxMin(), AtMost(torch.tensor(0.05)), AtLeast(torch.tensor(-0.3))
        compiled = CompiledNetwork.compile(saturated_network(seed, *clamped))
        x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
        region = Region(x, torch.full((3,), 0.05, dtype=torch.float64), "l2", True)
        rounding = Rounding.sound(torch.float64)
        with torch.no_grad():
            run = LocalPass(compiled, region, rounding, torch.float64, exact=True)
            run.run()
        for index, norm in run.norms.items():
            norms = compiled.steps[index].norms
            assert norms is not None
            assert bool((norm <= norms.spectral).all())
            better += int((norm < 0.9 * norms.spectral).sum())
    assert better > 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_everything_that_bcp_decides_is_decided_and_more(norm: str) -> None:
    more = 0
    # In linf little more is decided: of the first twenty networks, on one.
    for seed in part(range(20), *range(6), 13):
        dtype = DTYPES[seed // 2 % 2]
        network = random_network(seed) if seed % 2 else saturated_network(seed, ReLU())
        compiled = CompiledNetwork.compile(network)
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(1, 2, 8, 8, generator=generator).expand(12, -1, -1, -1)
        label = network(x[:1]).argmax(1).expand(12)
        epsilon = torch.logspace(-3, 0, 12, dtype=torch.float64)
        if norm == "linf":
            epsilon = epsilon / 10
        region = Region(x, epsilon, norm, True)
        with torch.no_grad():
            before = bcp_margins(compiled, region, label, *arithmetic(dtype)) > 0
            after = local_margins(compiled, region, label, *arithmetic(dtype)) > 0
        assert bool((after >= before).all())
        more += int(after.all(1).sum() - before.all(1).sum())
    assert more > 0


def test_a_sample_alone_or_in_a_batch_gets_the_same_bounds() -> None:
    for seed in range(examples(4)):
        network = random_network(seed) if seed % 2 else saturated_network(seed, ReLU())
        compiled = CompiledNetwork.compile(network)
        x = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
        epsilon = torch.tensor([0.2, 0.03, 0.5, 0.001], dtype=torch.float64)
        labels = torch.tensor([0, 1, 2, 3])
        with torch.no_grad():
            region = Region(x, epsilon, "l2", True)
            together = local_margins(compiled, region, labels, *arithmetic(torch.float64))
            for row in range(4):
                one = slice(row, row + 1)
                alone = local_margins(
                    compiled,
                    Region(x[one], epsilon[one], "l2", True),
                    labels[one],
                    *arithmetic(torch.float64),
                )
                assert torch.allclose(alone[0], together[row], rtol=1e-9, atol=1e-12)


def test_weights_that_are_not_finite_prove_nothing() -> None:
    for value in (torch.nan, torch.inf):
        network = dense_network([4, 5, 3], 0)
        with torch.no_grad():
            network.layer("n0").weight[0, 0] = value
        compiled = CompiledNetwork.compile(network)
        region = Region(torch.rand(2, 4), torch.full((2,), 0.01, dtype=torch.float64), "l2", True)
        for dtype in DTYPES:
            with torch.no_grad():
                found = local_margins(compiled, region, torch.tensor([0, 1]), *arithmetic(dtype))
            assert not bool((found > 0).all(1).any())
