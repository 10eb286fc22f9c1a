"""Chains of one skew kernel: found in any file, of a norm that is proved, with all roundings."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.architectures.published import build
from models.layers.affine import Conv2d, Divide, Linear, Multiply
from models.layers.joins import Add, ReduceSum
from models.layers.kinds import BatchNorm, Reshape
from models.layers.one_lipschitz.skew_kernels import exact_scale, skew
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.workers.verification.certification import certify
from tests.workers.verification.networks import leaves_of, worst_order
from workers.verification.backward.adjoint import adjoint
from workers.verification.backward.linear_form import LinearForm
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.forward.margins import logit_enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.skew.chains import MOST_STAGES
from workers.verification.graph.skew.series import SkewSeries
from workers.verification.norms.circulant import circulant_norm
from workers.verification.norms.spectral import materialize
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F64 = torch.float64
SHAPE = (4, 6, 5)
Rows = list[tuple[str, Any, tuple[str, ...]]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kernel(seed: int = 0, channels: int = 4, size: int = 3) -> Tensor:
    made = skew(normal(channels, channels, size, size, seed=seed))
    return made * torch.tensor(exact_scale(made), dtype=torch.float32)


def chain(degree: int, conv: Any = None, *, swap: bool = False) -> Rows:
    """z <- x + K z / i on the input, i = degree ... 1."""
    conv = conv or Conv2d(kernel(), padding=1)
    rows: Rows = []
    at = "input"
    for i in range(degree, 0, -1):
        rows.append((f"m{i}", conv, (at,)))
        rows.append((f"d{i}", Divide(torch.tensor(float(i))), (f"m{i}",)))
        pair = (f"d{i}", "input") if swap else ("input", f"d{i}")
        rows.append((f"s{i}", Add(), pair))
        at = f"s{i}"
    return rows


def network(rows: Rows, shape: tuple[int, ...] = SHAPE) -> Network:
    last = rows[-1][0]
    size = int(np.prod(shape))
    if len(shape) > 1:
        rows = [*rows, ("flat", Reshape(shape=(size,)), (last,))]
        last = "flat"
    head = Linear(normal(3, size, seed=7) * size**-0.5, normal(3, seed=8))
    return Network(shape, [*rows, ("head", head, (last,))]).eval()


def series_of(rows: Rows, shape: tuple[int, ...] = SHAPE) -> list[SkewSeries]:
    compiled = CompiledNetwork.compile(network(rows, shape), norms=False)
    return [step.op for step in compiled.steps if isinstance(step.op, SkewSeries)]


@pytest.mark.parametrize("degree", [1, 5, 8, 12])
@pytest.mark.parametrize("swap", [False, True])
def test_the_chain_is_found_again_behind_an_export(degree: int, swap: bool) -> None:
    model = network(chain(degree, swap=swap))
    for made in (model, import_onnx_bytes(export_onnx(model))):
        compiled = CompiledNetwork.compile(made)
        (op,) = (step.op for step in compiled.steps if isinstance(step.op, SkewSeries))
        # A factor 1 is written out here, or left out: both are the same polynomial.
        assert op.scales == tuple(Fraction(1, i) for i in range(1, degree + 1))
        matrix = materialize(op.linear, SHAPE).T
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        assert norm <= op.spectral() * (1 + 1e-13)
        assert op.spectral() == 1.0 if degree in (8, 12) else op.spectral() <= norm * 1.1
        assert bool((matrix.abs() <= materialize(op.absolute, SHAPE).T + 1e-12).all())
        assert bool((matrix.norm(dim=1) <= op.row_norms().flatten() * (1 + 1e-12)).all())
        assert torch.allclose(materialize(op.adjoint, SHAPE), matrix, atol=1e-12)
        x = torch.rand(2, *SHAPE).to(F64)
        for value in (op.linear(x), op.apply(x)):
            assert torch.allclose(value.flatten(1), x.flatten(1) @ matrix.T)
        form = LinearForm(normal(3, *SHAPE, seed=5).to(F64), SHAPE, None)
        back = adjoint(op, form).coefficients.flatten(1)
        assert torch.allclose(back, form.coefficients.flatten(1) @ matrix)


def test_a_skew_matrix_is_a_skew_map_too() -> None:
    matrix = normal(9, 9)
    matrix = (matrix - matrix.T) / 2
    matrix = matrix * (3.2 / torch.linalg.matrix_norm(matrix, 2))
    (op,) = series_of(chain(12, Linear(matrix)), (9,))
    assert op.spectral() == 1.0


def changed(**options: Any) -> Conv2d:
    return Conv2d(kernel(), padding=1, **options)


def one_step_off() -> Conv2d:
    weight = kernel()
    weight[0, 1, 0, 0] = torch.nextafter(weight[0, 1, 0, 0], torch.tensor(9.0))
    return Conv2d(weight, padding=1)


@pytest.mark.parametrize(
    "conv",
    [
        one_step_off(),
        changed(bias=torch.tensor([0.0, 0.0, 0.0, 1e-30])),
        Conv2d(kernel()[:, :, :, :1].contiguous(), padding=(1, 0)),
        Conv2d(normal(4, 4, 3, 3), padding=1),
        Conv2d(kernel(), padding=(2, 1, 0, 1)),
        Conv2d(kernel(), padding=2, dilation=2),
        Conv2d(kernel(size=2), padding=(0, 0, 1, 1)),
        Conv2d(kernel()[:, :2].contiguous(), padding=1, groups=2),
    ],
    ids=[
        *("one unit off", "bias", "not skew", "plain"),
        *("padding elsewhere", "dilated", "no middle", "in groups"),
    ],
)
@torch.no_grad()
def test_what_is_not_exactly_skew_is_taken_step_by_step(conv: Conv2d) -> None:
    rows = chain(8, conv)
    assert series_of(rows) == []
    whole = network(rows)
    basis = torch.eye(math.prod(whole.input_shape), dtype=torch.float64)
    points = torch.cat([torch.zeros_like(basis[:1]), basis]).reshape(-1, *whole.input_shape)
    values = copy.deepcopy(whole).to(torch.float64)(points)
    true = float(torch.linalg.matrix_norm(values[1:] - values[:1], 2))
    assert true <= lipschitz_constant(CompiledNetwork.compile(whole)) * (1 + 1e-12)


def test_the_longest_chain_of_the_same_map_counts() -> None:
    """Another kernel, a factor per channel or a reader in between ends it."""
    rows = chain(4)
    rows[3] = ("m3", Conv2d(kernel(seed=5), padding=1), ("s4",))
    found = series_of(rows)
    assert [len(op.scales) for op in found] == [1]
    rows = chain(4)
    rows[4] = ("d3", Divide(torch.tensor([1.0, 1.0, 1.0, 2.0])[:, None, None]), ("m3",))
    assert [len(op.scales) for op in series_of(rows)] == [1]
    rows = [*chain(4), ("more", Add(), ("s1", "s2"))]
    assert [len(op.scales) for op in series_of(rows)] == [3]
    rows = [*chain(4), ("more", Add(), ("s1", "d2"))]
    assert [len(op.scales) for op in series_of(rows)] == [2]


def test_factors_are_taken_as_they_are() -> None:
    """A product with the float32 next to 1 / 3 is no division by 3."""
    rows = chain(3)
    rows[1] = ("d3", Multiply(torch.tensor(1 / 3)), ("m3",))
    (op,) = series_of(rows)
    assert op.scales[2] == Fraction(float(torch.tensor(1 / 3)))
    assert op.scales[2] != Fraction(1, 3)
    rows[1] = ("d3", Divide(torch.tensor(3.3)), ("m3",))
    # 1 / 3.3 has no exact form here: not taken for one.
    assert series_of(rows) == []


@pytest.mark.parametrize("size", [1e3, 1e20, 1e37])
def test_a_series_beyond_all_numbers_certifies_nothing(size: float) -> None:
    """|p(it)|^2 holds |K|^24, a fraction that no float is as large as."""
    conv = Conv2d(kernel() * size, padding=1)
    (op,) = series_of(chain(12, conv))
    assert op.spectral() > 1e25
    assert float(op.row_norms_square()) > 1e50
    x = np.random.default_rng(0).random((3, *SHAPE)).astype(np.float32)
    for method in ("lipschitz", "ibp", "crown"):
        found = certify(network(chain(12, conv)), x, ("1/1000",), method=method, attack=None)
        assert not (np.asarray(found.radius) > 0).any()


def test_chains_of_many_stages_are_cut() -> None:
    """Rationals of degree 64 take half a minute; what is beyond the cut is taken step by step."""
    rows = chain(40)
    (op,) = series_of(rows)
    assert op.scales == tuple(Fraction(1, i) for i in range(40 - MOST_STAGES + 1, 41))


def in_groups(biases: Tensor | None = None) -> Rows:
    """The map of ``kernel()`` in two groups of channels, summed."""
    weight = kernel().reshape(4, 2, 2, 3, 3).transpose(0, 1).reshape(8, 2, 3, 3)
    return [
        ("groups", Conv2d(weight, biases, padding=1, groups=2), ("input",)),
        ("apart", Reshape(shape=(2, 4, 6, 5)), ("groups",)),
        ("m1", ReduceSum(axes=(0,)), ("apart",)),
        ("s1", Add(), ("m1", "input")),
    ]


def test_stages_that_round_otherwise_are_no_chain() -> None:
    """A stage of more rounding steps, biases that cancel, a batch norm in the place of a factor."""
    (op,) = series_of(in_groups())
    whole = kernel()
    assert torch.equal(op.kernel.weights()[0], whole.to(F64))
    assert op.kernel.terms < Conv2d(whole).weight[0].numel()
    mixed = [
        *in_groups(),
        ("m2", Conv2d(whole, padding=1), ("s1",)),
        ("s2", Add(), ("m2", "input")),
    ]
    assert [len(found.scales) for found in series_of(mixed)] == [1]
    cancels = torch.tensor([1.0] * 4 + [-1.0] * 4)
    assert series_of(in_groups(cancels)) == []
    rows = chain(2)
    ones = torch.ones(4)
    rows[1] = ("d2", BatchNorm(ones / 2, 0 * ones, 0 * ones, ones, eps=0.0), ("m2",))
    assert series_of(rows) == []


@pytest.mark.parametrize("size", [16, 20])
def test_the_torus_bounds_the_norm_tightly(size: int) -> None:
    for seed in range(3):
        a = kernel(seed, channels=3).to(F64)
        apply = lambda x: torch.nn.functional.conv2d(x, a, padding=1)  # noqa: B023,E731
        norm = float(torch.linalg.matrix_norm(materialize(apply, (3, size, size)), 2))
        bound = circulant_norm(a, (size + 2, size + 2))
        assert norm <= bound <= 1.02 * norm


def test_no_exported_layer_is_longer_than_its_bound() -> None:
    """A hundred random kernels, of norms below and above what a contraction allows, each by all of
    its singular values, which no estimate from below exceeds."""
    for seed in range(100):
        a = Conv2d(kernel(seed, channels=3) * (0.5 + seed % 25 / 12), padding=1)
        shape = (3, 3 + seed % 4, 6)
        written = export_onnx(network(chain(8 if seed % 2 else 12, a), shape))
        compiled = CompiledNetwork.compile(import_onnx_bytes(written), norms=False)
        (op,) = (step.op for step in compiled.steps if isinstance(step.op, SkewSeries))
        norm = float(torch.linalg.matrix_norm(materialize(op.linear, shape), 2))
        assert norm <= op.spectral() * (1 + 1e-12)
        assert op.spectral() >= 1.0


def test_every_summation_order_lies_in_the_enclosure() -> None:
    """Float32 as ONNX Runtime computes it, and with sums from the smallest share of a number up."""
    model = network(chain(12))
    data = export_onnx(model)
    compiled = CompiledNetwork.compile(model)
    x = torch.rand(6, *SHAPE) * torch.logspace(-3, 3, 6)[:, None, None, None]
    deployed = torch.from_numpy(OnnxRuntimeModel(data, SHAPE)(x.numpy())).to(F64)
    double = Network.from_description(model.description(), model.state_dict()).double()
    region = Region(x, torch.zeros(6, dtype=F64), "l2", False)
    for dtype in (torch.float32, F64):
        rounding = Rounding.sound(dtype)
        state = propagate(compiled, region, rounding=rounding, dtype=dtype)
        logits, room = logit_enclosure(compiled.head, state, rounding)
        exact = double(x.to(F64)).detach()
        for value in (deployed, exact):
            assert bool(((value - logits).abs() <= room).all())
        # Room for a worse order than ONNX Runtime's: ten times what is seen.
        assert bool((10 * (deployed - exact).abs() <= room).all())
        assert bool((room <= 2e-3 * (1 + x.flatten(1).norm(dim=1).to(F64))[:, None]).all())


def test_an_adversary_of_rounding_stays_in_the_ball() -> None:
    """Every stage's output moved by as much as its worst order may, always in the worst way."""
    (op,) = series_of(chain(12))
    unit = 2.0**-24
    k = op.kernel
    padding = k.geometry.padding
    conv = Conv2d(k.weight, padding=padding)
    x = normal(1, *SHAPE, seed=3).to(F64)
    for seed in range(20):
        z = x
        for scale in reversed(op.scales):
            sign = normal(*SHAPE, seed=seed).sign().to(F64)
            moved = worst_order(leaves_of(conv, z)) * unit
            image = (k.linear(z) + sign * moved) * float(scale) * (1 + unit)
            z = (x + image) * (1 + unit * sign)
        off = float((z - op.linear(x)).norm())
        assert off <= Rounding.sound(F64).deployed_gamma(op.terms) * float(x.norm())


def small_network() -> Network:
    layers: list[dict[str, object]] = [
        {"kind": "skew-conv2d", "out": 8},
        {"kind": "householder", "order": 2},
        {"kind": "skew-conv2d", "out": 8, "degree": 8},
        {"kind": "pair-max"},
        {"kind": "flatten"},
        {"kind": "normalized-linear", "out": 10},
    ]
    architecture = {"input": [1, 12, 12], "layers": layers}
    return build(architecture, generator=torch.Generator().manual_seed(1)).eval().deployed()


def test_a_network_of_them_has_norm_one_and_its_radii_survive_an_export() -> None:
    model = small_network()
    compiled = CompiledNetwork.compile(model)
    assert 0.999 < lipschitz_constant(compiled) < 1.003
    x = np.random.default_rng(0).random((6, 1, 12, 12)).astype(np.float32)
    again = import_onnx_bytes(export_onnx(model))
    options = {"method": "lipschitz", "attack": None}
    first, second = (certify(n, x, ("1/100",), **options) for n in (model, again))
    assert np.allclose(first.radius, second.radius, rtol=1e-5)
    head = model.layer(model.nodes[-1].name)
    assert isinstance(head, Linear)
    # Close to margin over |w_y - w_j|: what the norms of 1 deserve.
    logits = model(torch.from_numpy(x)).detach().to(F64)
    weight = head.weight.detach().to(F64)
    for row, radius in enumerate(first.radius):
        y = int(first.label[row])
        gaps = [
            float((logits[row, y] - logits[row, j]) / (weight[y] - weight[j]).norm())
            for j in range(10)
            if j != y
        ]
        assert radius <= min(gaps)
        if min(gaps) > 0.05:
            assert radius >= 0.95 * min(gaps)
