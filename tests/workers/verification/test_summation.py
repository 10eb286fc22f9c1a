"""What a sum may round in any order: every small tree, and the worst order of real maps."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.joins import ReduceMean
from models.layers.kinds import Conv2d, Linear, Multiply, Normalize, ReLU, Reshape, Shift
from models.layers.normalization import Centre
from models.layers.partial_sums import convolution_in_partial_sums, summed_convolution
from models.network import Network
from models.onnx.importer import import_onnx_bytes
from tests.extent import examples, part
from tests.workers.verification.networks import leaves_of, worst_order
from tests.workers.verification.uploads.wide_networks import image_network
from workers.verification.forward.sections import section_error
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.sections.forms import Kernel
from workers.verification.norms.spectral import materialize
from workers.verification.rounding import Rounding
from workers.verification.summation import Leaves, Summation, beyond_first_order

U = 2.0**-24
F64 = torch.float64
ROUNDING = Rounding.sound(F64)


@cache
def nodes_above(leaves: int) -> frozenset[tuple[int, ...]]:
    """D_1 ... D_n in order, for every tree of n leaves and every sign at its nodes."""
    if leaves == 1:
        return frozenset({(0,)})
    return frozenset(
        tuple(sorted(d + sign for d in (*first, *second)))
        for part in range(1, leaves // 2 + 1)
        for first in nodes_above(part)
        for second in nodes_above(leaves - part)
        for sign in (-1, 1)
    )


@pytest.mark.parametrize("leaves", range(1, 8))
def test_no_tree_and_no_signs_exceed_the_bounds(leaves: int) -> None:
    trees = Summation((float(leaves),))
    spread = max(math.dist(found, [sum(found) / leaves] * leaves) for found in nodes_above(leaves))
    # A map whose outputs are 0: |t| alone counts.
    assert spread <= trees.of_map(1.0, 0.0) <= 1.03 * spread + 1e-9
    for found in nodes_above(leaves):
        mean = sum(found) / leaves
        assert abs(mean) <= trees.mean()
        assert math.hypot(*(d - mean for d in found)) <= trees.spread()
        assert math.hypot(*found) <= trees.whole()
        # Factors behind the sum move all leaves alike.
        for behind in (3.0, -3.0):
            moved = [d + behind for d in found]
            assert abs(mean + behind) <= trees.before(3.0).mean()
            assert math.dist(moved, [mean + behind] * leaves) <= trees.before(3.0).spread()
            assert math.hypot(*moved) <= trees.before(3.0).whole()


def with_products(leaves: int) -> list[tuple[int, ...]]:
    """The same where each leaf has a sign of its own, too."""
    signs = [*itertools.product((-1, 1), repeat=leaves)]
    orders = {order for tree in nodes_above(leaves) for order in itertools.permutations(tree)}
    return [
        tuple(d + sign for d, sign in zip(order, chosen, strict=True))
        for order in orders
        for chosen in signs
    ]


@pytest.mark.parametrize("leaves", range(1, 8))
def test_trees_of_few_leaves_do_what_is_computed_and_hardly_less(leaves: int) -> None:
    """The largest error for leaves of any norm and sum, of every tree and all signs."""
    for products in (False, True) if leaves < 5 else (False,):
        above = with_products(leaves) if products else [*nodes_above(leaves)]
        depth = np.array(above, dtype=np.float64)
        mean = depth.mean(1)
        spread = np.linalg.norm(depth - mean[:, None], axis=1)
        trees = Summation((float(leaves),), ahead=float(products))
        for share in (0.0, 0.3, 0.7, 0.9, 1.0):
            # |t| = 1, and a share of the largest sum that such leaves have.
            total = share * leaves**0.5
            rest = max(0.0, 1.0 - total**2 / leaves) ** 0.5
            most = float((spread * rest + np.abs(mean) * total).max())
            assert most <= trees.of_map(1.0, total) * (1.0 + 1e-12)
            # One leaf is its sum. Trees of other shares together may reach a little more.
            if total <= 1.0 and (leaves > 1 or share == 1.0):
                assert trees.of_map(1.0, total) <= 1.2 * most + 1e-9


def test_errors_of_many_trees_are_bounded_together() -> None:
    """Some trees with much in their sums, others with nothing: only the totals are known."""
    generator = np.random.default_rng(0)
    above = np.array([*nodes_above(5)], dtype=np.float64)
    mean = np.abs(above.mean(1))
    spread = np.linalg.norm(above - above.mean(1)[:, None], axis=1)
    trees = Summation((5.0,))
    for _ in range(200):
        sizes, shares = generator.exponential(size=8), generator.random(8) ** 3
        totals = shares * (5.0 * sizes) ** 0.5
        rest = np.sqrt(np.maximum(0.0, sizes - totals**2 / 5.0))
        errors = (spread[:, None] * rest + mean[:, None] * totals).max(0)
        most = trees.of_map(float(sizes.sum() ** 0.5), float(np.linalg.norm(totals)))
        assert float(np.linalg.norm(errors)) <= most


def test_trees_under_trees_are_bounded_as_one() -> None:
    """Any three of one kind under any of another, the groups of another size each."""
    trees = Summation((4.0, 3.0))
    for over in nodes_above(3):
        for under in sorted(nodes_above(4))[::3]:
            # The worst groups turn against each other.
            found = [d + sign * e for d, sign in zip(over, (1, 1, -1), strict=True) for e in under]
            mean = sum(over) / 3
            assert math.hypot(*(d - mean for d in found)) <= trees.spread()
            assert math.hypot(*found) <= trees.whole()
            assert abs(mean) <= trees.mean()


def test_nothing_less_holds_in_any_order() -> None:
    """Leaves that grow evenly, added from the least up, and every node rounded up."""
    count = 600
    depth = torch.tensor([*range(count - 1, 0, -1)], dtype=F64)
    depth = torch.cat([depth[:1], depth])
    leaves = depth - depth.mean()
    trees = Summation((float(count),))
    assert float(depth @ leaves) >= (1 - 4 / count) * trees.spread() * float(leaves.norm())


def test_what_is_beyond_first_order_is_bounded() -> None:
    for terms in (1.0, 3.0, 1000.0):
        exact = math.expm1(terms * math.log1p(2.0**-10)) - terms * 2.0**-10
        assert exact <= beyond_first_order(terms, 2.0**-10) or terms == 1.0
    assert beyond_first_order(1e9, U) == math.inf


def compiled_map(layers: list[Layer], shape: tuple[int, ...]) -> Affine:
    """The layers as the one map that they are fused to."""
    rows: list[tuple[str, Layer, tuple[str, ...]]] = []
    last, after = "input", shape
    for index, layer in enumerate(layers):
        rows.append((f"l{index}", layer, (last,)))
        last, after = f"l{index}", layer.output_shape(after)
    size = math.prod(after)
    rows += [
        ("flat", Reshape(shape=(size,)), (last,)),
        ("relu", ReLU(), ("flat",)),
        ("out", Linear(torch.ones(2, size)), ("relu",)),
    ]
    (op,) = (
        step.op
        for step in CompiledNetwork.compile(Network(shape, rows), norms=False).steps
        if isinstance(step.op, Affine)
    )
    return op


def orthogonal(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0].float()


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))


def measured(op: Affine, error: Tensor, x: Tensor) -> float:
    """The error over what the map says that it may be."""
    share, constant = op.deployed_rounding(op.norms(), ROUNDING)
    return float(error.norm()) / (share * float(x.norm()) + constant)


def measured_each(op: Affine, error: Tensor, x: Tensor) -> Tensor:
    """Each output's error over what the map says of it."""
    sums, reach = op.linear(x).abs(), x.abs()
    claimed = op.output_rounding(reach, sums, ROUNDING)
    better = op.output_rounding(reach, sums, ROUNDING, exact=x)
    assert bool((better <= claimed * (1 + 1e-9)).all())
    assert bool((better >= 0).all())
    return error.reshape(claimed.shape) / better


@pytest.mark.parametrize(("size", "least"), [(8, 0.4), (96, 0.7), (300, 0.7)])
def test_the_worst_order_of_each_output_comes_near_what_is_said_of_it(
    size: int, least: float
) -> None:
    """By the squares of the leaves, about half of what the entrywise absolute value says."""
    weight = orthogonal(size)
    layer, x = Linear(weight, weight[0] * 3), image(size).double() - 0.4
    op = compiled_map([layer], (size,))
    found = measured_each(op, worst_order(leaves_of(layer, x)) * U, x)
    assert float(found.max()) <= 1
    assert float(found.mean()) >= least
    plain = ROUNDING.deployed_gamma(op.terms) * (op.absolute(x.abs()) + op.bias_magnitude)
    claimed = op.output_rounding(x.abs(), op.linear(x).abs(), ROUNDING)
    assert float((claimed / plain).mean()) <= (0.6 if size > 8 else 1.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e18])
def test_no_order_of_a_convolution_is_beyond_what_is_said_of_each_output(scale: float) -> None:
    """Few large numbers among small ones, large shifts, factors behind, all sizes."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 6, 3, 3, generator=generator) ** 3
    factor = torch.tensor(-0.37)
    for shift in (0.0, 2.0**-20, 10.0):
        conv = Conv2d(weight, torch.full((4,), shift), padding=(1, 1, 1, 1))
        op = compiled_map([conv, Multiply(factor)], (6, 5, 5))
        for power in (1, 7):
            x = (image(6, 5, 5, seed=power) - 0.5).double() ** power * scale
            leaves = leaves_of(conv, x) * float(factor)
            error = worst_order(leaves) + leaves.sum(-1).abs()
            assert float(measured_each(op, error * U, x.float().double()).max()) <= 1


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0, 100.0, 1e4])
@pytest.mark.parametrize("weights", [0.0, 1e-3, 1.0])
def test_what_is_said_of_outputs_covers_shifts_behind_their_sums(
    weights: float, shift: float
) -> None:
    """However large they are beside what is summed: they are no leaves of it."""
    dense = Linear(orthogonal(24) * weights, orthogonal(24)[0] * weights)
    conv = Conv2d(torch.randn(4, 6, 3, 3) * weights, padding=(1, 1, 1, 1))
    for layer, shape in ((dense, (24,)), (conv, (6, 5, 5))):
        op = compiled_map([layer, Shift(torch.tensor(shift))], shape)
        x = image(*shape).double() - 0.4
        leaves = leaves_of(layer, x)
        error = worst_order(leaves) + (leaves.sum(-1) + shift).abs()
        assert bool((op.output_rounding(x.abs(), op.linear(x).abs(), ROUNDING) >= error * U).all())
        better = op.output_rounding(x.abs(), op.linear(x).abs(), ROUNDING, exact=x)
        assert bool((better >= error * U).all())


def most_at_nodes(leaves: list[float]) -> float:
    """The largest sum of |v| over the nodes of any tree, v a node's own sum."""
    sums, most = [0.0], [0.0]
    for leaf in leaves:
        sums += [leaf + other for other in sums]
    for chosen in range(1, len(sums)):
        lowest = chosen & -chosen
        found, part = 0.0, chosen ^ lowest
        best = 0.0 if part == 0 else abs(sums[chosen])
        while part:
            found = max(found, most[part] + most[chosen ^ part])
            part = (part - 1) & (chosen ^ lowest)
        most.append(best + found)
    return most[-1]


@pytest.mark.parametrize("count", range(2, 9))
def test_no_tree_of_one_output_is_beyond_what_is_said_of_it(count: int) -> None:
    """Every tree of every leaves, whose sums and norms are known exactly, or by far too little."""
    generator = np.random.default_rng(count)
    kinds = [
        np.ones(count),
        np.where(np.arange(count) % 2, 1.0, -1.0),
        np.arange(count) - (count - 1) / 2,
        np.arange(count) + 1.0,
        2.0 ** -np.arange(count),
        (-0.5) ** np.arange(count),
        np.where(np.arange(count) == 0, 1.0 - count, 1.0),
        np.where(np.arange(count) < 2, [1.0, -1.0] * (count // 2) + [1.0] * (count % 2), 0.0),
        *generator.standard_normal((examples(4, 100), count)),
        *generator.standard_normal((examples(4, 100), count)) ** 5,
    ]
    for leaves in kinds:
        # Adding 0 rounds nothing.
        worst = most_at_nodes(list(leaves[leaves != 0]))
        for shifts, loose in itertools.product((0, 1), (False, True)):
            products, shift = leaves[shifts:], float(np.abs(leaves[:shifts]).sum())
            sides = (products[products > 0], products[products < 0])
            more = 1.0 + loose * generator.exponential(3.0, 4)
            known = [
                (float(np.abs(products).sum()) + shift) * more[0],
                abs(float(products.sum())) * more[1] + (more[1] - 1.0) * shift,
                float(np.linalg.norm(products)) * more[2],
                max(float(np.linalg.norm(side)) for side in sides) * more[3],
                shift,
                shift,
                float((leaves != 0).sum()),
            ]
            said = Leaves(*(torch.tensor([[number]], dtype=F64) for number in known))
            assert worst <= float(Summation((float(count),)).of_output(said)) * (1 + 1e-12)


def test_the_worst_order_of_a_matrix_comes_within_half_of_the_bound() -> None:
    """Each output in an order of its own, every rounding as large as it may be and upward."""
    weight = orthogonal(96)
    layer, x = Linear(weight, weight[0] * 3), image(96) - 0.4
    error = worst_order(leaves_of(layer, x.double())) * U
    op = compiled_map([Linear(weight, weight[0] * 3)], (96,))
    assert 0.5 <= measured(op, error, x) <= 1
    # The bound by the entrywise absolute value gives away as much again.
    share, _ = op.deployed_rounding(op.norms(), ROUNDING)
    assert 2 * share <= ROUNDING.deployed_gamma(op.terms) * op.norms().absolute


def test_the_worst_order_behind_a_normalisation_and_before_a_factor() -> None:
    """Leaves are weights times normalised numbers, shifts included; factors beside them round."""
    mean, std = torch.tensor([0.4, 0.6]), torch.tensor([0.1, 0.3])
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    conv, factor = Conv2d(weight, torch.ones(3), padding=(1, 1, 0, 0)), torch.tensor(-0.37)
    op = compiled_map([Normalize(mean, std), conv, Multiply(factor)], (2, 6, 6))
    for seed in range(3):
        x = image(2, 6, 6, seed=seed).double()
        inner = Normalize(mean.double(), std.double())(x)
        leaves = leaves_of(conv, inner) * float(factor)
        # Difference and quotient before each leaf's product, the factor behind the sum.
        error = worst_order(leaves) + 3 * leaves.abs().sum(-1)
        # Looser: x and the shift are bounded apart, and the factors of every layer are counted.
        assert 0.05 <= measured(op, error * U, x) <= 1


def test_shifts_and_factors_behind_a_sum_cost_as_much_as_its_result() -> None:
    weight, shift = orthogonal(96), image(96)[0]
    ended = [Linear(weight), Shift(shift), Multiply(torch.tensor(0.9)), Shift(shift)]
    plain, op = compiled_map(ended[:1], (96,)), compiled_map(ended, (96,))
    (share, constant), (alone, _) = (
        one.deployed_rounding(one.norms(), ROUNDING) for one in (op, plain)
    )
    # Each behind it is at most five roundings of the output, and one of each fused weight.
    assert share <= alone + 3 * (5 + 11) * U
    x = image(96, seed=2).double()
    leaves = leaves_of(ended[0], x)
    first = leaves.sum(-1) + shift
    last = first * float(torch.tensor(0.9)) + shift
    error = 0.9 * (worst_order(leaves) + first.abs()) + 0.9 * first.abs() + last.abs()
    assert 0.3 <= measured(op, error * U, x) <= 1
    # The constant alone pays for shifts that are much larger than what is summed.
    zero = torch.zeros_like(x)
    assert float((2 * 0.9 * shift.abs() + 1.9 * shift.abs()).norm()) * U <= constant
    assert float(op.linear(zero).norm()) == 0.0


def test_the_worst_order_of_partial_sums() -> None:
    weight = orthogonal(48)[:24].reshape(24, 48, 1, 1)
    parts = convolution_in_partial_sums(weight, None, (48, 3, 3), (0, 0, 0, 0))
    (op,) = [compiled_map([part.layer for part in parts], (48, 3, 3))]
    assert op.summation is not None
    block, groups = (int(size) for size in op.summation.sizes)
    x = image(48, 3, 3).double()
    leaves = leaves_of(Conv2d(weight), x).unflatten(-1, (groups, block))
    sums = leaves.sum(-1)
    error = worst_order(leaves).sum(-1) + worst_order(sums, products=False)
    assert 0.3 <= measured(op, error * U, x) <= 1


SIZES = [(16, 4), (4, 4, 4), (2, 8, 4), (8, 2, 2, 2), (32, 2)]


# By day two of the sizes with the larger kernel.
@pytest.mark.parametrize(
    ("kernel", "sizes"),
    part(list(itertools.product((1, 3), SIZES)), *range(len(SIZES) + 2)),
)
def test_the_worst_orders_of_all_levels_together(sizes: tuple[int, ...], kernel: int) -> None:
    """Inputs along which the sums of a level are as large as a map of norm 1 lets them be, too."""
    block, *levels = sizes
    groups, channels = math.prod(levels), 64
    weight = orthogonal(channels)[:, :, None, None]
    if kernel > 1:
        generator = torch.Generator().manual_seed(kernel)
        weight = torch.randn(channels, channels, kernel, kernel, generator=generator)
    conv = Conv2d(weight, padding=kernel // 2)
    parts = summed_convolution(conv, (channels, 4, 4), sizes)
    op = compiled_map([part.layer for part in parts], (channels, 4, 4))
    assert op.summation is not None
    assert op.summation.sizes[1:] == tuple(map(float, levels))
    for seed in range(4):
        x = image(channels, 4, 4, seed=seed).double() - (0.0, 0.3, 0.5, 0.5)[seed]
        if seed == 3:
            # One group alone: its sums are the whole output.
            x[:, block:] = 0.0
        leaves = leaves_of(conv, x).unflatten(-1, (groups, -1))
        error, sums = worst_order(leaves).sum(-1), leaves.sum(-1)
        for count in levels:
            sums = sums.unflatten(-1, (count, -1)).transpose(-1, -2)
            error = error + worst_order(sums, products=False).sum(-1)
            sums = sums.sum(-1)
        assert 0.02 <= measured(op, error * U, x) <= 1


def test_the_worst_order_of_a_mean() -> None:
    op = compiled_map([ReduceMean(axes=(1, 2))], (3, 8, 8))
    x = image(3, 8, 8).double() - 0.5
    leaves = x.flatten(2) / 64
    error = (worst_order(leaves, products=False) + leaves.sum(-1).abs()) * U
    assert 0.3 <= measured(op, error, x) <= 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (2, 2), (3, 2), ((1, 2), 1)])
def test_a_number_meets_the_taps_that_are_whole_strides_apart(
    stride: int | tuple[int, int], dilation: int, groups: int
) -> None:
    weight = torch.randn(4, 6 // groups, 3, 5, generator=torch.Generator().manual_seed(groups))
    conv = Conv2d(weight, stride=stride, padding=(3, 4, 3, 4), dilation=dilation, groups=groups)
    op = compiled_map([conv], (6, 14, 15))
    columns = materialize(op.linear, (6, 14, 15)).norm(dim=1)
    assert float(columns.max()) == pytest.approx(op.largest_column(), rel=1e-6)
    assert float(columns.max()) <= op.largest_column()


@torch.no_grad()
@pytest.mark.parametrize("side", [3, 4])
def test_the_worst_order_around_an_image_counts_none_of_its_numbers_twice(side: int) -> None:
    """What is laid around it makes the convolution's input longer, and no sum."""
    network = import_onnx_bytes(image_network(16, side, layers=2).onnx)
    steps = CompiledNetwork.compile(network).steps
    found = [step.section for step in steps if step.section is not None and step.section.whole]
    assert len(found) == 2
    section = found[0]
    last = steps[section.steps[-1]]
    weight = last.op.weights()[0].float()
    for seed in range(3):
        x = image(16, side, side, seed=seed).double() - (0.0, 0.5, 0.3)[seed]
        around = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
        leaves = leaves_of(Conv2d(weight), around)
        assert torch.allclose(leaves.sum(-1), last.affine.linear(around))
        error = float(worst_order(leaves).norm()) * U
        inside = {source for index in section.steps for source in steps[index].sources}
        sizes = {value: around.flatten(1).norm(dim=1) for value in inside}
        sizes[section.start] = x.flatten(1).norm(dim=1)
        whole = float(section_error(section, steps, sizes, ROUNDING))
        assert 0.4 * whole <= error <= whole
        by_steps = float(section_error(replace(section, whole=None), steps, sizes, ROUNDING))
        assert whole <= 0.75 * by_steps


def test_around_an_image_and_on_twice_some_numbers_count_twice() -> None:
    """A window that goes on over its own first places: no map of norm 1 is claimed."""
    weight = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    assert Kernel(weight, (4, 4), padding=(1, 1, 1, 1), circular=True).takes_once
    assert Kernel(weight, (4, 4), (2, 2), (1, 1, 1, 1), circular=True).takes_once
    assert not Kernel(weight, (4, 4), padding=(1, 1, 2, 1), circular=True).takes_once
    assert not Kernel(weight, (4, 4), (3, 3), (1, 1, 1, 1), circular=True).takes_once
    assert not Kernel(weight, (4, 4), padding=(1, 1, 1, 1)).takes_once


def _updated(x: Tensor) -> Tensor:
    """n times what a mean is off by that is updated number after number, in unit roundoffs."""
    sums = x.cumsum(-1)
    counts = torch.arange(1, x.shape[-1] + 1, dtype=F64)
    before = torch.cat([torch.zeros_like(x[..., :1]), (sums / counts)[..., :-1]], -1)
    return sums.abs().sum(-1) + 3.0 * (x - before).abs().sum(-1)


def _joined(x: Tensor, parts: int, *, pairs: bool) -> Tensor:
    """The same of parts that are joined."""
    pieces = list(x.unflatten(-1, (parts, -1)).unbind(-2))
    error = torch.stack([_updated(part) for part in pieces]).sum(0)
    sums = [part.sum(-1) for part in pieces]
    while len(sums) > 1:
        first, second, rest = sums[0], sums[1], sums[2:]
        error = error + (first + second).abs() + 4.0 * (first.abs() + second.abs())
        sums = [*rest, first + second] if pairs else [first + second, *rest]
    return error


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_no_way_of_computing_a_mean_makes_a_difference_worse_than_is_claimed(side: int) -> None:
    op, count = compiled_map([Centre(axes=(1, 2))], (3, side, side)), side * side
    for seed in range(4):
        x = image(3, side, side, seed=seed).double().flatten(2) - (0.0, 0.5, 0.5, 0.0)[seed]
        if seed == 2:
            x = x.sort(-1).values
        if seed == 3:
            # What one number after another makes the most of.
            x = torch.arange(count, 0, -1, dtype=F64).expand(1, 3, count)
        ways = [worst_order(x, products=False) + 3.0 * x.abs().sum(-1), _updated(x)]
        ways += [_joined(x, count // 4, pairs=True), _joined(x, max(1, count // 8), pairs=False)]
        for mean in ways:
            difference = x.abs() + 3.0 * x.mean(-1, keepdim=True).abs()
            difference = difference + (x - x.mean(-1, keepdim=True)).abs()
            error = mean[..., None] / count + difference
            assert measured(op, error * U, x) <= 1
    if side == 16:
        assert measured(op, ways[1][..., None].expand(1, 3, count) / count * U, x) >= 0.7
