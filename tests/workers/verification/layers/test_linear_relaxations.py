"""Lines and planes bound their layer over the whole box, and sigmoid and tanh as they are deployed.

Everything is compared in exact or float64 arithmetic on dense grids that hold ends and kinks.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from models.layers.activations import (
    STEPS,
    Abs,
    AtLeast,
    AtMost,
    Clip,
    ReLUTheta,
    Sigmoid,
    Softplus,
    Tanh,
)
from models.layers.kinds import Layer, LeakyReLU, PReLU, ReLU
from models.layers.normalization import LocalResponse
from models.layers.one_lipschitz import InexactPairs
from tests.extent import examples
from tests.workers.verification.layers.boxes import DTYPES, boxes, grid
from workers.verification.layers.pairs.sorting import maximum_planes, minimum_planes
from workers.verification.layers.registry import LAYERS, apply_layer, rules_of
from workers.verification.layers.rules import LinearRelaxation
from workers.verification.layers.smooth.curves import CURVES
from workers.verification.layers.smooth.s_shaped import KERNEL_ERROR, S_SHAPED, s_shaped
from workers.verification.layers.smooth.softplus import KERNEL_ERROR as SOFTPLUS_ERROR
from workers.verification.layers.smooth.softplus import curve
from workers.verification.layers.smooth.steep import CURVES as STEEP
from workers.verification.rounding import Rounding

THETA = torch.tensor(1.25)

TRIED: list[Layer] = [
    ReLU(),
    LeakyReLU(slope=0.1),
    PReLU(torch.tensor(0.3)),
    Clip(),
    Clip(low=-0.5, high=0.75),
    Clip(low=0.3, high=0.3),
    Clip(low=1e-30, high=1e30),
    Clip(low=-1.0),
    Clip(high=2.0),
    ReLUTheta(THETA),
    ReLUTheta(torch.tensor(0.0)),
    AtLeast(torch.tensor(-0.7)),
    AtMost(torch.tensor(0.4)),
    Sigmoid(),
    Softplus(),
    Tanh(),
    Abs(),
]


def relaxation(
    layer: Layer, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    relax = rules_of(layer).relax
    assert relax is not None
    return relax(layer, lower, upper, rule, rounding)


def deployed(kind: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes."""
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    assert isinstance(y, np.ndarray)
    return y


def exact(kind: str, x: NDArray[np.float32]) -> NDArray[np.float64]:
    half = np.tanh(x.astype(np.float64) * (0.5 if kind == "Sigmoid" else 1.0))
    return 0.5 + 0.5 * half if kind == "Sigmoid" else half


@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh"])
def test_the_runtime_keeps_the_stated_kernel_error(kind: str) -> None:
    """Every 509th finite float32 (every single one between 2^-13 and 32, once by hand: 1.8e-7 and
    3.3e-7)."""
    bits = np.arange(0, 0x7F800000, 509, dtype=np.uint32)
    for x in (bits.view(np.float32), -bits.view(np.float32)):
        error = np.abs(deployed(kind, x).astype(np.float64) - exact(kind, x)).max()
        assert error <= 0.5 * KERNEL_ERROR


def test_the_runtime_keeps_the_stated_error_of_softplus() -> None:
    """Every 509th finite float32, beside one of the two roundings that are allowed."""
    bits = np.arange(0, 0x7F800000, 509, dtype=np.uint32)
    for x in (bits.view(np.float32), -bits.view(np.float32)):
        z = x.astype(np.float64)
        found = deployed("Softplus", x).astype(np.float64)
        exactly = np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))
        assert (np.abs(found - exactly) - 2.0**-24 * np.maximum(z, 0.0)).max() <= (
            0.5 * SOFTPLUS_ERROR
        )
        own = np.abs(curve(torch.from_numpy(z)).numpy() - exactly)
        assert (own - 2.0**-52 * np.maximum(z, 0.0)).max() <= 1e-14


def test_anchored_slopes_of_softplus_hold() -> None:
    random = np.random.default_rng(0)
    for dtype in DTYPES:
        lower, upper = boxes(random, 4096, dtype)
        share = torch.from_numpy(random.random((1, 4096)) * 1.2 - 0.1)
        centre = torch.lerp(lower.double(), upper.double(), share).to(dtype)
        rule = rules_of(Softplus()).slopes
        assert rule is not None
        slopes = rule(Softplus(), centre, lower, upper).double()
        z, a = grid(lower, upper), centre.double()
        change, room = (curve(z) - curve(a)).abs(), 2.0**-51 * (1.0 + z.abs() + a.abs())
        assert bool((change <= slopes * (z - a).abs() + room).all())
        assert bool((slopes <= 1.0).all())
        assert float(slopes.mean()) < 0.8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh"])
def test_our_own_curves_are_exact_enough(kind: str, dtype: torch.dtype) -> None:
    x = np.concatenate([np.linspace(-40, 40, 20_001), np.logspace(-30, 30, 999)]).astype(np.float32)
    layer = Sigmoid() if kind == "Sigmoid" else Tanh()
    found = s_shaped(layer, torch.from_numpy(x).to(dtype)).double().numpy()
    room = 2.0**-24 if dtype == torch.float32 else 1e-14
    assert np.abs(found - exact(kind, x)).max() <= room
    steepest = np.abs(np.diff(exact(kind, x[:20_001])) / np.diff(x[:20_001].astype(np.float64)))
    assert steepest.max() <= S_SHAPED[type(layer)].steepest


@pytest.mark.parametrize("layer", TRIED, ids=lambda layer: f"{layer.kind}{layer.config()}")
@given(
    dtype=st.sampled_from(DTYPES),
    rule=st.sampled_from(["crown", "cap"]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(20), deadline=None)
@torch.no_grad()
def test_lines_hold_over_the_whole_box(
    layer: Layer, rule: str, dtype: torch.dtype, seed: int
) -> None:
    random = np.random.default_rng(seed)
    lower, upper = boxes(random, 64, dtype)
    for rounding in (Rounding.sound(dtype), Rounding.ignored()):
        lines = relaxation(layer, lower, upper, rule, rounding)
        z = grid(lower, upper)
        values = apply_layer(layer, z)
        # The line at z is evaluated here with an error of a few units in float64.
        noise = 2.0**-50 * (1.0 + values.abs() + z.abs())
        error: float | Tensor = 0.0
        if type(layer) in S_SHAPED:
            error = KERNEL_ERROR if rounding.is_sound else -1e-15
        if isinstance(layer, Softplus) and rounding.is_sound:
            error = SOFTPLUS_ERROR + 2.0**-23 * z.clamp_min(0.0)
        if not rounding.is_sound:
            noise = noise + 2.0**-18 * (1.0 + values.abs() + z.abs())
        above = lines.upper_slope.double() * z + lines.upper_intercept.double()
        assert bool((values + error <= above + noise).all())
        low = lines.lower_intercept
        below = lines.lower_slope.double() * z + (0.0 if low is None else low.double())
        assert bool((values - error >= below - noise).all())


@pytest.mark.parametrize("kind", ["Sigmoid", "Softplus", "Tanh"])
def test_lines_hold_for_the_deployed_kernel(kind: str) -> None:
    layer: Layer = {"Sigmoid": Sigmoid, "Softplus": Softplus, "Tanh": Tanh}[kind]()
    for seed in range(20):
        lower, upper = boxes(np.random.default_rng(seed), 64, torch.float32)
        z = grid(lower, upper)
        values = torch.from_numpy(deployed(kind, z.float().numpy().ravel())).reshape(z.shape)
        lines = relaxation(layer, lower, upper, "crown", Rounding.sound(torch.float32))
        noise = 2.0**-50 * (1.0 + z.abs())
        above = lines.upper_slope.double() * z + lines.upper_intercept.double()
        assert lines.lower_intercept is not None
        below = lines.lower_slope.double() * z + lines.lower_intercept.double()
        assert bool((values <= above + noise).all())
        assert bool((values >= below - noise).all())


def gap(layer: Layer, low: float, high: float) -> float:
    """Widest distance between the lines over a box."""
    ends = (torch.full((1, 1), value, dtype=torch.float64) for value in (low, high))
    lower, upper = ends
    lines = relaxation(layer, lower, upper, "crown", Rounding.ignored())
    z = torch.cat([lower, upper])
    assert lines.lower_intercept is not None
    below = lines.lower_slope * z + lines.lower_intercept
    return float((lines.upper_slope * z + lines.upper_intercept - below).max())


def test_lines_are_tight() -> None:
    """Exact where the layer is linear over the box; never looser than the box of its values."""
    assert gap(Clip(low=-1.0, high=1.0), -0.5, 0.9) == 0.0
    assert gap(Clip(low=-1.0, high=1.0), 3.0, 9.0) == 0.0
    assert gap(AtLeast(torch.tensor(0.5)), 0.6, 2.0) == 0.0
    # One kink: a triangle, as for ReLU.
    assert gap(ReLUTheta(torch.tensor(5.0)), -1.0, 1.0) <= 1.0
    assert gap(Softplus(), -1e3, 1e3) < 501.0
    for layer in (Sigmoid(), Softplus(), Tanh()):
        # A small box: second order in its width. A wide one: little more than the range.
        assert gap(layer, 0.4, 0.41) < 1e-4
        assert gap(layer, -0.41, -0.4) < 1e-4
        assert gap(layer, -0.01, 0.01) < 1e-4
        if type(layer) in S_SHAPED:
            assert gap(layer, -1e3, 1e3) < 2.1 * S_SHAPED[type(layer)].height


@given(dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10**6))
@settings(max_examples=examples(50), deadline=None)
def test_planes_hold_over_both_boxes(dtype: torch.dtype, seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = boxes(random, 64, dtype), boxes(random, 64, dtype)
    rounding = Rounding.sound(dtype)
    shares = [0.0, 1.0, *random.random(6)]
    for make, function in ((maximum_planes, torch.maximum), (minimum_planes, torch.minimum)):
        planes = make(*first, *second, rounding)
        assert bool((planes.lower_intercept <= 0).all())
        assert bool((planes.upper_intercept >= 0).all())
        for one in shares:
            for two in shares:
                a = torch.lerp(first[0].double(), first[1].double(), float(one))
                b = torch.lerp(second[0].double(), second[1].double(), float(two))
                a = a.clamp(first[0].double(), first[1].double())
                b = b.clamp(second[0].double(), second[1].double())
                value = function(a, b)
                noise = 2.0**-50 * (a.abs() + b.abs())
                below = planes.lower_first.double() * a + planes.lower_second.double() * b
                above = planes.upper_first.double() * a + planes.upper_second.double() * b
                assert bool((value >= below + planes.lower_intercept.double() - noise).all())
                assert bool((value <= above + planes.upper_intercept.double() + noise).all())
                alone = (first[0] >= second[1]) | (second[0] >= first[1])
                assert bool((value == below)[alone].all())
                assert bool((value == above)[alone].all())


def test_every_activation_with_lines_is_tried_here() -> None:
    """Curves, steps and folds are tried in files of their own."""
    others = {*CURVES, *STEEP, *STEPS, LocalResponse, InexactPairs}
    assert {type(layer) for layer in TRIED} | others == {
        layer for layer, rules in LAYERS.items() if rules.relax
    }
