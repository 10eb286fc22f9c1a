"""Softmax inside a network: boxes, planes, and what ONNX Runtime may be off by."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.kinds import Layer, Permute
from models.layers.normalization import Softmax
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.linear_form import LinearForm
from workers.verification.enclosure import Enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.layers.smooth.curves import KERNEL_ERROR
from workers.verification.layers.smooth.softmax import RULES
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F64 = torch.float64


def softmax_of(size: int) -> Network:
    """A softmax of ``size`` numbers, and a view after it: the last layer would be cut off."""
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("z", Softmax(axes=(0,)), ("input",)),
        ("y", Permute(axes=(0,)), ("z",)),
    ]
    return Network((size,), rows).eval()


def numbers(random: np.random.Generator, count: int, size: int) -> torch.Tensor:
    """Of all sizes: ties, one far above, all far apart, huge, denormal."""
    x = random.standard_normal((count, size)) * 10.0 ** random.uniform(-3, 3, (count, 1))
    kind = random.integers(0, 5, count)
    x[kind == 1, 0] += 80.0
    x[kind == 2] = 0.3
    x[kind == 3] *= 1e4
    x[kind == 4] *= 1e-42
    return torch.from_numpy(x.astype(np.float32))


@given(
    size=st.sampled_from([1, 2, 3, 7, 16, 100, 1000]),
    wide=st.sampled_from([0.0, 1e-4, 0.1, 3.0, 300.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(30), deadline=None)
@torch.no_grad()
def test_the_runtime_stays_in_the_enclosure(
    size: int, wide: float, dtype: torch.dtype, seed: int
) -> None:
    random = np.random.default_rng(seed)
    network = softmax_of(size)
    deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    x = numbers(random, 16, size)
    region = Region(x, torch.full((16,), wide, dtype=F64), "linf", False)
    compiled = CompiledNetwork.compile(network)
    found = propagate(compiled, region, rounding=Rounding.sound(dtype), dtype=dtype)
    assert found.lower is not None
    assert found.upper is not None
    assert bool(found.valid.all())
    for corner in (False, True, True):
        shift = torch.from_numpy(random.uniform(-wide, wide, x.shape))
        moved = (x + (shift.sign() * wide if corner else shift)).float()
        moved = torch.where((moved.double() - x.double()).abs() > wide, x, moved)
        y = torch.from_numpy(deployed(moved.numpy())).to(F64)
        assert bool(((y >= found.lower) & (y <= found.upper)).all())
        assert bool(((y - found.centre.double()).norm(dim=1) <= found.radius).all())


@given(
    size=st.integers(1, 6),
    spread=st.sampled_from([1.0, 30.0, 400.0, 1000.0, 1e6]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(30), deadline=None)
@torch.no_grad()
def test_corners_stay_in_the_box_of_wide_boxes_that_differ(
    size: int, spread: float, seed: int
) -> None:
    """Of boxes far apart, and so wide that exp of their differences is 0."""
    random = np.random.default_rng(seed)
    ends = torch.from_numpy(random.standard_normal((2, 8, size)) * spread)
    low, high = ends.amin(0), ends.amax(0)
    lower, upper = RULES[Softmax].image(Softmax(axes=(0,)), [(low, high)])
    for choice in itertools.product((False, True), repeat=size):
        exact = torch.softmax(torch.where(torch.tensor(choice), high, low), 1)
        assert bool((exact >= lower * (1 - 1e-12)).all())
        assert bool((exact <= upper * (1 + 1e-12)).all())


@torch.no_grad()
def test_kernels_are_as_good_as_stated() -> None:
    """Half of what is allowed is seen at most, of sums of 2 to 1000 numbers."""
    random = np.random.default_rng(0)
    for size in (2, 5, 16, 200, 1000):
        network = softmax_of(size)
        deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
        x = torch.cat([numbers(random, 400, size), 8 * torch.randn(400, size)])
        exact = torch.softmax(x.double(), 1)
        for y in (torch.from_numpy(deployed(x.numpy())), torch.softmax(x, 1)):
            allowed = KERNEL_ERROR + exact * Rounding.sound(F64).deployed_gamma(2 * size + 8)
            assert float(((y.double() - exact).abs() / allowed).max()) < 0.5


@torch.no_grad()
def test_rows_lose_the_square_of_a_small_box_and_no_more_than_the_box_of_a_wide_one() -> None:
    size = 12
    network, generator = softmax_of(size), torch.Generator().manual_seed(4)
    x = torch.randn(4, size, generator=generator)
    compiled = CompiledNetwork.compile(network)
    rows = torch.randn(4, size, generator=generator, dtype=F64)
    lost = []
    for epsilon in (0.2, 0.05, 50.0, 1e6):
        region = Region(x, torch.full((4,), epsilon, dtype=F64), "linf", False)
        backward = BackwardPass(compiled, region, [], Rounding.ignored(), F64)

        def keep(
            index: int, values: list[Enclosure | None], backward: BackwardPass = backward
        ) -> None:
            backward.values = values

        propagate(compiled, region, rounding=Rounding.ignored(), dtype=F64, refine=keep)
        found = backward.lower_bound(1, LinearForm(rows, (size,), torch.arange(4)))
        seen, point = torch.full((4,), torch.inf, dtype=F64), x.double()
        for _ in range(60):
            at = point.clone().requires_grad_(True)
            with torch.enable_grad():
                value = (rows * torch.softmax(at, 1)).sum(1)
                (step,) = torch.autograd.grad(value.sum(), at)
            seen = torch.minimum(seen, value.detach())
            point = (point - 0.3 * epsilon * step.sign()).clamp(x - epsilon, x + epsilon)
        assert bool((found <= seen).all())
        lost.append(float((seen - found).max()))
    assert 0.0 < lost[1] < lost[0] / 8
    # Every number in [0, 1].
    assert max(lost[2:]) <= float(rows.abs().sum(1).max())
