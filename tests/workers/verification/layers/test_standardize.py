"""Layer normalisation: boxes, lines and planes that hold, every way of computing a variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import NodeProto, helper
from torch import Tensor

from models.layers.kinds import Layer, Linear
from models.layers.normalization import Centre, Standardize
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import graph_of
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.linear_form import LinearForm
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crown import crown_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.enclosure import Enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.layers.smooth.groups import Group, line_above
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F64, f32 = torch.float64, np.float32
Rows = list[tuple[str, Layer, tuple[str, ...]]]
Floats = NDArray[np.float32]


def norm_of(size: int, *, native: bool, eps: float = 1e-5) -> Network:
    """One layer normalisation of ``size`` numbers, the operator's or its nodes', as the logits."""
    rows: Rows = [
        ("c", Centre(axes=(0,)), ("input",)),
        ("z", Standardize(axes=(0,), eps=eps), ("c", "input" if native else "c")),
    ]
    return Network((size,), rows).eval()


def one_pass(x: Floats) -> tuple[Floats, Floats]:
    mean, square = np.zeros(len(x), f32), np.zeros(len(x), f32)
    for column in x.T:
        mean, square = mean + column, square + column * column
    mean, square = mean / f32(x.shape[1]), square / f32(x.shape[1])
    return mean, square - mean * mean


def two_passes(x: Floats) -> tuple[Floats, Floats]:
    mean, _ = one_pass(x)
    square = np.zeros(len(x), f32)
    for column in x.T:
        square = square + (column - mean) ** 2
    return mean, square / f32(x.shape[1])


def updated(x: Floats) -> tuple[Floats, Floats]:
    mean, sums = np.zeros(len(x), f32), np.zeros(len(x), f32)
    for k, column in enumerate(x.T, 1):
        step = column - mean
        mean = mean + step / f32(k)
        sums = sums + step * (column - mean)
    return mean, sums / f32(x.shape[1])


def in_parts(x: Floats) -> tuple[Floats, Floats]:
    """Four parts, updated one by one and joined."""
    size = x.shape[1]
    if size % 4:
        return updated(x)
    parts = [(size // 4, *updated(np.ascontiguousarray(x[:, lane::4]))) for lane in range(4)]
    count, mean, sums = parts[0][0], parts[0][1], parts[0][2] * f32(parts[0][0])
    for more, other, variance in parts[1:]:
        step, whole = other - mean, count + more
        mean = mean + step * f32(more / whole)
        sums = sums + variance * f32(more) + step * step * f32(count * more / whole)
        count = whole
    return mean, sums / f32(size)


#: Every way in which a mean and a variance are computed.
WAYS: list[Callable[[Floats], tuple[Floats, Floats]]] = [one_pass, two_passes, updated, in_parts]


def normalised(x: Floats, way: Callable[[Floats], tuple[Floats, Floats]], eps: float) -> Floats:
    """LayerNormalization in float32 by one way."""
    with np.errstate(all="ignore"):
        mean, variance = way(x)
        root = np.sqrt(variance + f32(eps))
        result: Floats = (x - mean[:, None]) / root[:, None]
    return result


def in_products(x: Floats, way: Callable[[Floats], tuple[Floats, Floats]], eps: float) -> Floats:
    """c x - c m with c = 1 / s, as InstanceNormalization and nodes in parts compute it; the mean
    that is taken away is another one than the variance's."""
    with np.errstate(all="ignore"):
        _, variance = way(x)
        mean, _ = (updated if way is not updated else one_pass)(x)
        factor = f32(1) / np.sqrt(variance + f32(eps))
        result: Floats = x * factor[:, None] + (f32(0) - mean * factor)[:, None]
    return result


def rows_of_numbers(random: np.random.Generator, count: int, size: int) -> Floats:
    """Means and deviations of all sizes; single spikes, two values, sorted, constant, denormal."""
    z = random.standard_normal((count, size))
    kind = random.integers(0, 6, count)
    z[kind == 1] = np.sort(z[kind == 1], 1)
    z[kind == 2] = np.sign(z[kind == 2])
    z[kind == 3] = 0.0
    z[kind == 3, -1] = 3.0
    z[kind == 4] = 0.0
    mean = 10.0 ** random.uniform(-3, 4, (count, 1)) * random.choice([0.0, 1.0, -1.0], (count, 1))
    x = mean + z * 10.0 ** random.uniform(-4, 2, (count, 1))
    x[kind == 5] *= 1e-41
    return x.astype(f32)


def enclosure(network: Network, x: Tensor, epsilon: float, dtype: torch.dtype) -> Enclosure:
    region = Region(x, torch.full((len(x),), epsilon, dtype=F64), "linf", False)
    compiled = CompiledNetwork.compile(network)
    return propagate(compiled, region, rounding=Rounding.sound(dtype), dtype=dtype)


@given(
    size=st.sampled_from([1, 2, 3, 5, 8, 16, 64, 256]),
    native=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-12, 1e-2, 1.0]),
    wide=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(40), deadline=None)
@torch.no_grad()
def test_no_way_of_computing_a_variance_leaves_the_enclosure(
    size: int, native: bool, eps: float, wide: float, seed: int
) -> None:
    """Ball and box, where anything is claimed; ONNX Runtime on the exported file among the ways."""
    random = np.random.default_rng(seed)
    network = norm_of(size, native=native, eps=eps)
    deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    x = rows_of_numbers(random, 24, size)
    found = enclosure(network, torch.from_numpy(x), wide, torch.float64)
    assert found.lower is not None
    assert found.upper is not None
    for _ in range(4):
        shift = random.uniform(-wide, wide, x.shape) * random.choice([1.0, 0.0], x.shape)
        moved = (x + (np.sign(shift) * wide if random.random() < 0.5 else shift)).astype(f32)
        off = np.abs(moved.astype(np.float64) - x) > wide
        moved[off] = x[off]
        results = [deployed(moved)]
        results += [normalised(moved, way, eps) for way in (WAYS if native else [two_passes])]
        if native and size > 1:
            results += [in_products(moved, way, eps) for way in WAYS]
        for result in results:
            y = torch.from_numpy(result).to(F64)
            inside = (y >= found.lower) & (y <= found.upper)
            inside &= ((y - found.centre).norm(dim=1) <= found.radius)[:, None]
            assert bool(inside[found.valid].all())


def in_parts_of(*, of_squares: bool) -> list[NodeProto]:
    """x c + (0 - m c), c = 1 / sqrt(variance + eps)."""
    node = helper.make_node
    numbers = "x" if of_squares else "d"
    less = [node("Mul", ["m", "m"], ["mm"]), node("Sub", ["q", "mm"], ["v"])]
    return [
        node("ReduceMean", ["x"], ["m"], axes=[-1], keepdims=1),
        *([] if of_squares else [node("Sub", ["x", "m"], ["d"])]),
        node("Mul", [numbers, numbers], ["s"]),
        node("ReduceMean", ["s"], ["q"], axes=[-1], keepdims=1),
        *(less if of_squares else []),
        node("Add", ["v" if of_squares else "q", "eps"], ["e"]),
        *(node("Sqrt", ["e"], ["r"]), node("Reciprocal", ["r"], ["c"])),
        *(node("Neg", ["m"], ["n"]), node("Mul", ["n", "c"], ["o"])),
        *(node("Mul", ["x", "c"], ["p"]), node("Add", ["p", "o"], ["y"])),
    ]


@given(
    size=st.sampled_from([2, 3, 5, 16, 64, 256]),
    form=st.sampled_from(["instance", "groups", "squares", "differences"]),
    eps=st.sampled_from([1e-5, 1e-12, 1e-2]),
    wide=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(40), deadline=None)
@torch.no_grad()
def test_groups_and_parts_stay_in_their_enclosures(
    size: int, form: str, eps: float, wide: float, seed: int
) -> None:
    """Two groups of one sample, by operators and in nodes, with ONNX Runtime as the judge."""
    random = np.random.default_rng(seed)
    scale = random.choice([-3.0, 1.0, 2.0**-74, 2.0**40, 0.0], 2).astype(f32)
    shift = (random.choice([0.0, 1.0, 100.0]) * random.standard_normal(2)).astype(f32)
    constants: dict[str, NDArray[Any]] = {"scale": scale, "shift": shift, "eps": f32([eps])}
    inputs = ["x", "scale", "shift"]
    nodes = in_parts_of(of_squares=form == "squares")
    if form == "instance":
        nodes = [helper.make_node("InstanceNormalization", inputs, ["y"], epsilon=eps)]
    if form == "groups":
        more = {"epsilon": eps, "num_groups": 2}
        nodes = [helper.make_node("GroupNormalization", inputs, ["y"], **more)]
    nodes.append(helper.make_node("Reshape", ["y", "flat"], ["z"]))
    constants["flat"] = np.array([-1, 2 * size])
    opset = 18 if form == "groups" else 13
    data = graph_of(nodes, (2, size), constants, opset=opset, output="z").SerializeToString()
    network = import_onnx_bytes(data)
    deployed = OnnxRuntimeModel(data, (2, size))
    x = rows_of_numbers(random, 24, size).reshape(12, 2, size)
    found = enclosure(network, torch.from_numpy(x), wide, torch.float64)
    assert found.lower is not None
    assert found.upper is not None
    for _ in range(4):
        moved = (x + random.uniform(-wide, wide, x.shape)).astype(f32)
        off = np.abs(moved.astype(np.float64) - x) > wide
        moved[off] = x[off]
        y = torch.from_numpy(deployed(moved)).to(F64)
        inside = (y >= found.lower) & (y <= found.upper)
        inside &= ((y - found.centre).norm(dim=1) <= found.radius)[:, None]
        assert bool(inside[found.valid].all())


def test_enough_is_claimed_where_the_variance_is_no_difference() -> None:
    """Numbers of one size are normalised to within the roundings of their sums; nodes anywhere."""
    random = np.random.default_rng(3)
    x = torch.from_numpy((1 + random.standard_normal((8, 64))).astype(f32))
    for native, most in ((True, 6e-4), (False, 2e-4)):
        found = enclosure(norm_of(64, native=native), x, 0.0, torch.float64)
        assert found.lower is not None
        assert found.upper is not None
        assert bool(found.valid.all())
        assert float((found.upper - found.lower).max()) < most
    constant = torch.full((1, 64), 3.0)
    assert bool(enclosure(norm_of(64, native=False), constant, 0.0, torch.float64).valid.all())
    assert not bool(enclosure(norm_of(64, native=True), constant, 0.0, torch.float64).valid.any())


@torch.no_grad()
def test_a_variance_that_cancels_certifies_nothing() -> None:
    """Around 1000.1 the difference of squares has no digit left: some runtimes divide by the root
    of a negative number there. The nodes have a margin, and are certified."""
    x = torch.full((1, 8), 1000.1)
    x[0, 0], x[0, 1] = 1000.12, 1000.08
    assert not np.isfinite(normalised(x.numpy(), one_pass, 1e-5)).all()
    region = Region(x, torch.zeros(1, dtype=F64), "linf", False)
    for native in (True, False):
        body = norm_of(8, native=native)
        rows: Rows = [(node.name, body.layer(node.name), node.inputs) for node in body.nodes]
        rows.append(("o", Linear(torch.eye(8)[:2]), ("z",)))
        compiled = CompiledNetwork.compile(Network((8,), rows).eval())
        for bound in (interval_margins, bcp_margins, crown_margins):
            margin = bound(compiled, region, torch.tensor([0]), Rounding.sound(F64), F64)
            assert bool(margin[0, 1] > 0) != native, bound


@given(
    size=st.integers(1, 6),
    eps=st.sampled_from([1e-5, 1e-12, 1.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(40), deadline=None)
@torch.no_grad()
def test_boxes_and_lines_hold_and_boxes_are_reached(size: int, eps: float, seed: int) -> None:
    """Corners, zeros and random points of boxes of all sizes."""
    random = np.random.default_rng(seed)
    middle = random.standard_normal((20, size)) * 10.0 ** random.uniform(-3, 3, (20, 1))
    half = 10.0 ** random.uniform(-6, 3, (20, size)) * (random.random((20, size)) < 0.9)
    low, high = torch.from_numpy(middle - half), torch.from_numpy(middle + half)
    layer = Standardize(axes=(0,), eps=eps)
    group = Group(layer, low, high)
    image, above = group.image(), line_above(group, low, high)
    slope, intercept = line_above(group, -high, -low)
    for _ in range(400):
        share = torch.from_numpy(random.random(low.shape))
        corner = torch.from_numpy(random.integers(0, 2, low.shape).astype(float))
        zero = torch.zeros_like(low).clamp(low, high)
        picked = torch.from_numpy(random.integers(0, 3, low.shape))
        t = low + torch.where(picked == 0, share, corner) * (high - low)
        t = torch.where(picked == 2, zero, t).clamp(low, high)
        y = layer(t, t)
        assert bool(((y >= image[0]) & (y <= image[1])).all())
        noise = 1e-14 * (1 + t.abs() * (slope + above[0]))
        assert bool((y <= above[0] * t + above[1] + noise).all())
        assert bool((y >= slope * t - intercept - noise).all())
    near, far = (
        torch.zeros_like(low).clamp(low, high),
        torch.where(low.abs() > high.abs(), low, high),
    )
    for place in range(size):
        end = high[:, place]
        t = torch.where(end[:, None] > 0, near, far)
        t[:, place] = end
        assert torch.allclose(layer(t, t)[:, place], image[1][:, place], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("native", [True, False])
@torch.no_grad()
def test_rows_are_near_what_is_there_in_small_boxes(native: bool, dtype: torch.dtype) -> None:
    """What a row loses shrinks with the square of the box."""
    size = 24
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(5))
    compiled = CompiledNetwork.compile(norm_of(size, native=native))
    rows = torch.randn(3, size, generator=torch.Generator().manual_seed(6), dtype=F64).to(dtype)
    lost = []
    for epsilon in (0.02, 0.005):
        region = Region(x, torch.full((3,), epsilon, dtype=F64), "linf", False)
        rounding = Rounding.ignored()
        backward = BackwardPass(compiled, region, [], rounding, dtype)

        def keep(
            index: int, values: list[Enclosure | None], backward: BackwardPass = backward
        ) -> None:
            backward.values = values

        propagate(compiled, region, rounding=rounding, dtype=dtype, refine=keep)
        form = LinearForm(rows, (size,), torch.arange(3))
        found = backward.lower_bound(2, form)
        seen = torch.full((3,), torch.inf, dtype=F64)
        layers = [compiled.steps[0].affine, Standardize(axes=(0,))]
        point = x.double()
        for _ in range(60):
            at = point.clone().requires_grad_(True)
            with torch.enable_grad():
                centred = layers[0].apply(at)
                value = (rows.double() * layers[1](centred, centred)).sum(1)
                (step,) = torch.autograd.grad(value.sum(), at)
            seen = torch.minimum(seen, value.detach())
            point = (point - 0.2 * epsilon * step.sign()).clamp(x - epsilon, x + epsilon)
        lost.append(float((seen - found).max()))
    assert 0.0 < lost[1] < lost[0] / 8


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(("size", "seed"), [(3, 0), (3, 1), (64, 0), (257, 2)])
@torch.no_grad()
def test_an_operator_and_nodes_beside_it_round_their_means_apart(
    size: int, seed: int, parts: bool
) -> None:
    """x less its mean by nodes, less s times what the operator makes of x, for its deviation s: in
    real arithmetic 0, where the first number is the mean; deployed each mean has its own last bits.
    So have the products in which parts take the very same mean off.
    """
    random = np.random.default_rng(seed)
    x = (30 + 10 * random.standard_normal(size)).astype(f32)
    x[0] = x[1:].astype(np.float64).mean()
    weight = np.zeros((2 * size, 2), f32)
    weight[0, 0], weight[size, 0] = 1.0, -math.sqrt(float(x.astype(np.float64).var()) + 1.0)
    node = helper.make_node
    operator = node("LayerNormalization", ["x", "scale"], ["l"], axis=-1, epsilon=1.0)
    written = [
        node("Mul", ["d", "d"], ["q"]),
        node("ReduceMean", ["q"], ["v"], axes=[-1], keepdims=1),
        *(node("Add", ["v", "one"], ["e"]), node("Sqrt", ["e"], ["r"])),
        *(node("Reciprocal", ["r"], ["f"]), node("Mul", ["x", "f"], ["p"])),
        *(node("Mul", ["m", "f"], ["o"]), node("Sub", ["p", "o"], ["l"])),
    ]
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[-1], keepdims=1),
        node("Sub", ["x", "m"], ["d"]),
        *(written if parts else [operator]),
        node("Concat", ["d", "l"], ["c"], axis=1),
        node("Gemm", ["c", "w"], ["y"]),
    ]
    constants = {"scale": np.ones(size, f32), "w": weight, "one": np.array(1, f32)}
    data = graph_of(nodes, (size,), constants, opset=17).SerializeToString()
    compiled = CompiledNetwork.compile(import_onnx_bytes(data))
    region = Region(torch.from_numpy(x[None]), torch.zeros(1, dtype=F64), "linf", False)
    first, second = OnnxRuntimeModel(data, (size,))(x[None])[0].astype(np.float64)
    for bound in (interval_margins, crown_margins):
        low = bound(compiled, region, torch.tensor([0]), Rounding.sound(F64), F64)[0, 1]
        high = -bound(compiled, region, torch.tensor([1]), Rounding.sound(F64), F64)[0, 0]
        assert float(low) <= first - second <= float(high), bound


@torch.no_grad()
def test_squares_that_overflow_under_a_factor_certify_nothing() -> None:
    """A factor of 2^20 on the way to the root, which is taken back: float32 divides by infinity."""
    node = helper.make_node
    nodes = [
        node("Mul", ["x", "x"], ["s"]),
        node("Mul", ["s", "up"], ["a"]),
        node("ReduceSum", ["a", "axis"], ["v"], keepdims=1),
        node("Mul", ["v", "down"], ["w"]),
        node("Add", ["w", "eps"], ["e"]),
        node("Sqrt", ["e"], ["r"]),
        node("Div", ["x", "r"], ["z"]),
        node("Gemm", ["z", "identity"], ["y"]),
    ]
    numbers = {"up": 2.0**20, "down": 2.0**-21, "eps": 1e-5, "identity": np.eye(2)}
    constants = {name: np.array(number, f32) for name, number in numbers.items()}
    model = graph_of(nodes, (2,), {**constants, "axis": np.array([1])}, opset=17)
    data = model.SerializeToString()
    network = import_onnx_bytes(data)
    assert "standardize" in [network.layer(row.name).kind for row in network.nodes]
    compiled = CompiledNetwork.compile(network)
    for size, certified in ((1e17, False), (1e14, True)):
        x = np.array([[size, 0.1 * size]], f32)
        y = OnnxRuntimeModel(data, (2,))(x)[0]
        assert (y[0] > y[1]) == certified
        region = Region(torch.from_numpy(x), torch.zeros(1, dtype=F64), "linf", False)
        for bound in (interval_margins, crown_margins):
            margin = bound(compiled, region, torch.tensor([0]), Rounding.sound(F64), F64)
            assert bool(margin[0, 1] > 0) == certified, bound


def test_slopes_of_means_and_squares_are_counted() -> None:
    """What the module says of the roundings of updated means: the sum of squares that it needs."""
    total = worst = 0.0
    for k in range(2, 100_000):
        total += k / (k - 1) * (1 + (3 * math.log(k) + 6) / k) ** 2
        worst = max(worst, math.sqrt(total) - math.sqrt(k))
    assert worst <= 10
