"""Exponentials, logarithms, reciprocals, roots: rules that hold within the domain, none beyond."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import Tensor

from models.layers.activations import Softplus
from models.layers.curves import Exp, Log, Power, Reciprocal, Sqrt, Within
from models.layers.joins import Product
from models.layers.kinds import Layer, Linear, Multiply, Shift
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import Asked, import_onnx_bytes, read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import graph_of
from tests.workers.verification.layers.boxes import DTYPES, boxes, grid
from tests.workers.verification.layers.smooth.chains import chain, number
from workers.verification.bounds.alpha_crown import alpha_crown_margins
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crown import cap_margins, crown_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.bounds.zonotope import zonotope_margins
from workers.verification.enclosure import Enclosure
from workers.verification.forward.margins import logit_enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import apply_layer, rules_of
from workers.verification.layers.smooth.steep import CURVES
from workers.verification.region import Region
from workers.verification.rounding import Rounding

LAYERS: list[Layer] = [
    *(Exp(), Log(), Reciprocal(), Sqrt(), Within(low=-2.0, high=3.0), Within(high=88.0)),
    Within(low=-2.0, off=1e-3),
]
BOUNDS: list[Callable[..., Tensor]] = [
    *(interval_margins, bcp_margins, crown_margins, cap_margins),
    *(zonotope_margins, alpha_crown_margins),
]


def drawn(random: np.random.Generator, layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Boxes of every size, mostly in the domain; some end at its end, or a number beyond it."""
    lower, upper = boxes(random, 64, dtype)
    start, end = CURVES[type(layer)](layer).domain
    inner = torch.from_numpy(random.random(64) < 0.8)[None]
    lower = torch.where(inner, lower.clamp(start, end), lower)
    upper = torch.where(inner, upper.clamp(start, end), upper)
    for place, limit in enumerate((start, end)):
        if math.isfinite(limit):
            beyond = np.nextafter(np.float32(limit), np.float32([-np.inf, np.inf][place]))
            ends = torch.tensor([limit, float(beyond)], dtype=dtype)
            (lower, upper)[place][0, 2 * place : 2 * place + 2] = ends
    return torch.minimum(lower, upper), torch.maximum(lower, upper)


@given(
    layer=st.sampled_from(LAYERS),
    dtype=st.sampled_from(DTYPES),
    rule=st.sampled_from(["crown", "cap"]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(25), deadline=None)
@torch.no_grad()
def test_lines_and_boxes_hold_in_the_domain_and_are_infinite_beyond(
    layer: Layer, rule: str, dtype: torch.dtype, seed: int
) -> None:
    curve, rules = CURVES[type(layer)](layer), rules_of(layer)
    lower, upper = drawn(np.random.default_rng(seed), layer, dtype)
    outside = ((lower < curve.domain[0]) | (upper > curve.domain[1]))[0]
    assert bool(outside.any())
    z = grid(lower, upper)
    values = apply_layer(layer, z)
    assert rules.relax is not None
    assert rules.forward is not None
    for rounding in (Rounding.sound(dtype), Rounding.ignored()):
        error = curve.absolute + curve.per_value * values.abs()
        error = error if rounding.is_sound else torch.zeros_like(z)
        lines = rules.relax(layer, lower, upper, rule, rounding)
        assert lines.lower_intercept is not None
        for slope, intercept, side in (
            (lines.upper_slope, lines.upper_intercept, 1),
            (lines.lower_slope, lines.lower_intercept, -1),
        ):
            assert bool((side * intercept[0, outside] == math.inf).all())
            line = slope.double() * z
            noise = (2.0**-50 if rounding.is_sound else 2.0**-18) * (
                1.0 + values.abs() + z.abs() + line.abs()
            )
            room = side * (line + intercept.double() - values) + noise - error
            assert bool((room >= 0)[:, ~outside].all())
        step = GraphStep("f", layer, (0,), tuple(lower.shape[1:]))
        radius = torch.full((1,), math.inf, dtype=torch.float64)
        state = Enclosure(lower, radius, lower, upper, torch.ones(1, dtype=torch.bool))
        boxed = rules.forward(step, [state], rounding)
        assert boxed.lower is not None
        assert boxed.upper is not None
        assert not bool(boxed.valid)
        assert bool((boxed.lower[0, outside] == -math.inf).all())
        assert bool((boxed.upper[0, outside] == math.inf).all())
        noise = 0.0 if rounding.is_sound else 2.0**-18 * (1.0 + values.abs())
        inside = (values - error + noise >= boxed.lower) & (values + error - noise <= boxed.upper)
        assert bool(inside[:, ~outside].all())


@given(layer=st.sampled_from(LAYERS), seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES))
@settings(max_examples=examples(25), deadline=None)
@torch.no_grad()
def test_no_value_leaves_the_ball_behind(layer: Layer, seed: int, dtype: torch.dtype) -> None:
    """Points of a ball, of a box in it, and of both: their values are within the new radius."""
    random = np.random.default_rng(seed)
    curve, rule = CURVES[type(layer)](layer), rules_of(layer).forward
    assert rule is not None
    start, end = (float(np.clip(number, -50, 50)) for number in curve.domain)
    size = min(float(10.0 ** random.uniform(-3, 0.5)), (end - start) / 4)
    centre = torch.from_numpy(random.uniform(start + 2 * size, end - size, (1, 5))).float()
    centre = centre.clamp(start + size, end)
    moves = torch.from_numpy(random.standard_normal((200, 5)))
    moves = size * moves / moves.norm(dim=1, keepdim=True)
    points = (centre.double() + moves * torch.from_numpy(random.random((200, 1)))).float().double()
    box = size * random.uniform(0.1, 1.0)
    lower, upper = (centre + sign * box for sign in (-1, 1))
    points = points[((points >= lower) & (points <= upper)).all(1)]
    radius = torch.tensor([size * (1 + 1e-6)], dtype=torch.float64)
    state = Enclosure(
        *(centre.to(dtype), radius, lower.to(dtype), upper.to(dtype)),
        torch.ones(1, dtype=torch.bool),
    )
    step = GraphStep("f", layer, (0,), (5,))
    found = rule(step, [state], Rounding.sound(dtype))
    values = apply_layer(layer, points)
    error = curve.absolute + curve.per_value * values.abs()
    away = ((values - found.centre.double()).abs() + error).norm(dim=1)
    if bool(found.valid):
        assert bool((away <= found.radius).all())


#: By name: layers of one input in [0, 1].
CHAINS: dict[str, Callable[[], list[Layer]]] = {
    "bells": lambda: [number(Multiply, 3.0), Power(), number(Multiply, -2.0), Exp()],
    "near the end of float32": lambda: [number(Multiply, 87.9), Exp(), number(Multiply, 1e-38)],
    "beyond it": lambda: [number(Multiply, 90.0), Exp(), number(Multiply, 1e-38)],
    "far below": lambda: [number(Multiply, -300.0), Exp(), number(Multiply, 1e38)],
    "softplus in parts": lambda: [number(Multiply, 9.0), Exp(), number(Shift, 1.0), Log()],
    "a root of small numbers": lambda: [number(Multiply, 1e-20), number(Shift, 1e-24), Sqrt()],
    "a logarithm of no number": lambda: [number(Shift, -0.5), Log()],
    "a division by 0": lambda: [number(Shift, -0.5), Reciprocal()],
    "a reciprocal": lambda: [Softplus(), Reciprocal(), Sqrt()],
}
#: Those without values somewhere, and one whose factor shows how float64 errs beside numbers of 1.
LOOSE = ("beyond it", "far below", "a logarithm of no number", "a division by 0")


@pytest.mark.parametrize("name", CHAINS)
@torch.no_grad()
def test_brute_force_on_one_input(name: str) -> None:
    """Boxes in [0, 1]: the least of ONNX Runtime's margins is not below what any bound says; where
    a value overflows or is none, nothing is proved."""
    network = chain(*CHAINS[name]())
    deployed = OnnxRuntimeModel(export_onnx(network), (1,))
    compiled = CompiledNetwork.compile(network)
    x = torch.tensor([[0.2], [0.97]])
    for width in (1e-3, 0.3):
        region = Region(x, torch.full((2,), width, dtype=torch.float64), "linf", True)
        low, high = region.box(torch.float64)
        points = low + (high - low) * torch.linspace(0, 1, 401, dtype=torch.float64)[:, None, None]
        points = points.float().double().clamp(low, high).float()
        seen = torch.from_numpy(deployed(points.reshape(-1, 1).numpy())).reshape(401, 2, 2)
        label = torch.zeros(2, dtype=torch.long)
        least = (seen[..., 0] - seen[..., 1]).double().amin(0)
        undefined = ~torch.isfinite(seen).all(2).all(0)
        proved = torch.full((2,), -math.inf, dtype=torch.float64)
        for bound in BOUNDS:
            for dtype in DTYPES:
                margins = bound(compiled, region, label, Rounding.sound(dtype), dtype)[:, 1]
                assert not bool((margins > -math.inf)[undefined].any()), bound
                assert bool((~(margins > least)).all()), bound
                proved = torch.fmax(proved, margins)
        if name in LOOSE:
            continue
        assert not bool(undefined.any())
        size = seen.abs().amax(0).amax(1).double() + 1e-30
        assert bool(((least - proved) <= (0.2 if width < 0.01 else 2.5) * size).all())


@torch.no_grad()
def test_a_quotient_is_a_product_with_a_reciprocal() -> None:
    """x / (1 + x^2) around its largest value, two inputs of it at once."""
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("square", Power(), ("input",)),
        ("more", number(Shift, 1.0), ("square",)),
        ("under", Reciprocal(), ("more",)),
        ("y", Product(), ("input", "under")),
        ("head", Linear(torch.tensor([[1.0, 1.0], [0.0, 0.0]])), ("y",)),
    ]
    network = Network((2,), rows).eval()
    compiled = CompiledNetwork.compile(network)
    x = torch.tensor([[0.9, 0.4]])
    region = Region(x, torch.tensor([0.05], dtype=torch.float64), "linf", False)
    axis = torch.linspace(-0.05, 0.05, 41)
    points = x + torch.cartesian_prod(axis, axis)
    least = float((points / (1 + points.square())).sum(1).min())
    best = 0.0
    for bound in BOUNDS:
        for dtype in DTYPES:
            found = bound(compiled, region, torch.tensor([0]), Rounding.sound(dtype), dtype)
            assert 0.0 < float(found[0, 1]) <= least, bound
            best = max(best, float(found[0, 1]))
    assert best > least - 0.1


def written_out(name: str) -> bytes:
    """A file of two inputs whose middle is written with exponentials and quotients."""
    node = helper.make_node
    first = node("MatMul", ["x", "w"], ["z"])
    middle = {
        "sigmoid": [
            *(node("Neg", ["z"], ["a"]), node("Exp", ["a"], ["b"])),
            *(node("Add", ["b", "one"], ["c"]), node("Div", ["one", "c"], ["y"])),
        ],
        "softmax": [
            *(node("Exp", ["z"], ["e"]), node("ReduceSum", ["e", "axis"], ["s"], keepdims=1)),
            node("Div", ["e", "s"], ["y"]),
        ],
        "softplus": [
            *(node("Exp", ["z"], ["e"]), node("Add", ["e", "one"], ["c"])),
            node("Log", ["c"], ["y"]),
        ],
        "bells": [
            *(node("Mul", ["z", "z"], ["a"]), node("Neg", ["a"], ["b"])),
            node("Exp", ["b"], ["y"]),
        ],
        "lengths": [
            *(node("Mul", ["z", "z"], ["a"]), node("ReduceSum", ["a", "axis"], ["s"], keepdims=1)),
            *(node("Add", ["s", "one"], ["t"]), node("Sqrt", ["t"], ["r"])),
            node("Div", ["z", "r"], ["y"]),
        ],
    }[name]
    nodes = [first, *middle, node("MatMul", ["y", "v"], ["logits"])]
    random = np.random.default_rng(3)
    constants = {
        "w": 2.0 * random.standard_normal((2, 4)).astype(np.float32),
        "v": random.standard_normal((4, 3)).astype(np.float32),
        "one": np.array(1.0, np.float32),
        "axis": np.array([1]),
    }
    return graph_of(nodes, (2,), constants, output="logits").SerializeToString()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
@pytest.mark.parametrize("name", ["sigmoid", "softmax", "softplus", "bells", "lengths"])
@torch.no_grad()
def test_nothing_wins_in_what_is_certified_of_a_file(name: str, scale: float) -> None:
    """Every bound's largest certified box of a few, on a grid of 101 x 101 in ONNX Runtime. At 20
    exponents reach hundreds: where the file gives NaN, nothing is certified."""
    data = written_out(name)
    network = import_onnx_bytes(data)
    deployed = OnnxRuntimeModel(data, (2,))
    compiled = CompiledNetwork.compile(network)
    x = scale * torch.tensor([[0.9, -0.4], [-2.0, 3.0]])
    labels = torch.from_numpy(deployed(x.numpy()).argmax(1))
    axis = torch.linspace(-1, 1, 101)
    square = torch.cartesian_prod(axis, axis)
    certified = 0
    for width in (1e-4 * scale, 0.03 * scale):
        region = Region(x, torch.full((2,), width, dtype=torch.float64), "linf", False)
        points = x[:, None] + width * (1 - 1e-6) * square
        logits = torch.from_numpy(deployed(points.reshape(-1, 2).numpy())).reshape(2, -1, 3)
        own = logits.gather(2, labels[:, None, None].expand(2, len(square), 1))
        least = (own - logits).amin(1)
        for bound in BOUNDS:
            for dtype in DTYPES:
                margins = bound(compiled, region, labels, Rounding.sound(dtype), dtype)
                others = torch.ones_like(margins).scatter(1, labels[:, None], 0.0).bool()
                assert bool((~(margins > least) | ~others).all()), bound
                assert not bool((margins > -math.inf)[least.isnan() & others].any()), bound
                certified += int(((margins > 0) | ~others).all(1).sum())
    assert certified > 8 or scale > 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 300])
@pytest.mark.parametrize("kind", ["LogSoftmax", "ReduceLogSumExp"])
@torch.no_grad()
def test_the_runtime_keeps_to_what_is_allowed_of_logarithms_of_sums(kind: str, count: int) -> None:
    """Numbers of all sizes up to 55, alike or far apart, all below 0 or above: ONNX Runtime's
    values lie in the box at epsilon 0. Beyond 55, or all below -40, nothing is certified."""
    more = {"axis": 1} if kind == "LogSoftmax" else {"axes": [1], "keepdims": 1}
    inner = helper.make_node(kind, ["x"], ["h"], **more)
    nodes = [inner, helper.make_node("Mul", ["h", "two"], ["y"])]
    data = graph_of(nodes, (count,), {"two": np.array(2.0, np.float32)}).SerializeToString()
    network = read_onnx_bytes(data, asked=Asked(classifier=False)).network
    deployed = OnnxRuntimeModel(data, (count,))
    random = np.random.default_rng(count)
    shape = (400, 1)
    x = 10.0 ** random.uniform(-6, 1.9, shape) * random.standard_normal((400, count))
    x = np.where(random.random(shape) < 0.3, random.uniform(-10, 53, shape) + 1e-3 * x, x)
    x = np.where(random.random(shape) < 0.2, 0.01 * x - 11.0, x)
    x = np.where(random.random(x.shape) < 0.1, 10.0 * x, x)
    x[:, 0] = x[:, 0].clip(-12)
    x = np.clip(x, -3000, 54).astype(np.float32)
    compiled = CompiledNetwork.compile(network, norms=False)
    found = torch.from_numpy(deployed(x)).double()
    for dtype in DTYPES:
        rounding = Rounding.sound(dtype)
        beyond = torch.tensor([[56.0], [-40.0]]).expand(2, count)
        for rows, valid in ((torch.from_numpy(x), True), (beyond, False)):
            region = Region(rows, torch.zeros(len(rows), dtype=torch.float64), "linf", False)
            state = propagate(compiled, region, rounding=rounding, dtype=dtype, ball=False)
            logits, room = logit_enclosure(compiled.head, state, rounding)
            if not valid:
                assert bool((room[0] < 0).all())
                assert bool((room[1] < 0).all()) or count == 300
                continue
            known = (room >= 0).all(1)
            assert float(known.double().mean()) > (0.9 if count < 300 else 0.5)
            assert bool(((found - logits).abs() <= room)[known].all())
            assert bool((room <= 2e-4 * (1 + rows.abs().amax(1, keepdim=True))).all())


@pytest.mark.parametrize("norm", ["L1", "L2"])
@torch.no_grad()
def test_a_normalizer_stays_in_its_box_where_squares_underflow(norm: str) -> None:
    """Features down to denormal ones beside ordinary ones, and lengths near the least that is
    taken: ONNX Runtime's values lie in the box at epsilon 0."""
    node = helper.make_node
    nodes = [
        node("Normalizer", ["x"], ["h"], domain="ai.onnx.ml", norm=norm),
        node("Mul", ["h", "two"], ["y"]),
    ]
    model = graph_of(nodes, (3,), {"two": np.array(2.0, np.float32)})
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    data = model.SerializeToString()
    compiled = CompiledNetwork.compile(import_onnx_bytes(data), norms=False)
    random = np.random.default_rng(0)
    x = 10.0 ** random.uniform(-45, 3, (600, 3)) * random.choice([-1.0, 1.0], (600, 3))
    x = np.where(random.random((600, 1)) < 0.4, x / np.abs(x).max(1, keepdims=True) * 2e-6, x)
    x = x.astype(np.float32)
    found = torch.from_numpy(OnnxRuntimeModel(data, (3,))(x)).double()
    region = Region(torch.from_numpy(x), torch.zeros(600, dtype=torch.float64), "linf", False)
    for dtype in DTYPES:
        rounding = Rounding.sound(dtype)
        state = propagate(compiled, region, rounding=rounding, dtype=dtype, ball=False)
        logits, room = logit_enclosure(compiled.head, state, rounding)
        known = (room >= 0).all(1)
        assert 0.4 < float(known.double().mean()) < 1.0
        assert bool(((found - logits).abs() <= room)[known].all())
        assert bool((room <= 1e-4)[known].all())
