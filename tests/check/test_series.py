"""Series of one skew map: a norm that is proved, every stage's roundings, and no forgery passes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from check.network import Affine, Series
from check.network import Network as CheckedNetwork
from check.norms import deployed, own, series_norm
from models.layers.activations import MaxMin
from models.layers.base import Layer
from models.layers.kinds import Add, Linear, Reshape
from models.layers.one_lipschitz.skew import SkewConv2d
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from models.skew_chains import skew_series_at
from tests.check.forger import Forgery, certified_by, chain, proves
from workers.jobs.report.certificate import _layers

EPSILONS = [Fraction(1, 100)]
SHAPE = (3, 12, 12)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def skew(channels: int, out: int, *, bias: bool = True, degree: int = 8) -> SkewConv2d:
    most = max(channels, out)
    weight, tall, flat = normal(most, most, 3, 3), normal(3 * most), normal(most)
    shift = normal(out) / 10 if bias else None
    return SkewConv2d(weight, tall, flat, shift, channels=channels, out=out, degree=degree)


def network() -> Network:
    """From 3 channels to 8, to 8, to 4: wider, as wide, narrower."""
    layers: list[Layer] = [skew(3, 8), MaxMin(), skew(8, 8, bias=False, degree=12), MaxMin()]
    layers += [skew(8, 4), Reshape(shape=(576,)), Linear(normal(3, 576) / 24, normal(3))]
    return chain(SHAPE, layers)


def samples(count: int = 4) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((count, *SHAPE)).astype(np.float32)


@torch.no_grad()
def certified(found: Network, norm: str = "l2") -> bytes:
    x = samples()
    label = found(torch.from_numpy(x)).argmax(1).numpy()
    made = certified_by(found, x, label, norm=norm, epsilons=EPSILONS)
    assert made is not None
    return made


@torch.no_grad()
def checked(found: Network) -> CheckedNetwork:
    written = _layers(found.deployed())
    assert written is not None
    rows, tensors = written
    return CheckedNetwork([*found.input_shape], rows, None, dict(tensors))


@pytest.mark.parametrize("uploaded", [False, True])
def test_a_network_of_skew_convolutions_has_a_certificate(uploaded: bool) -> None:
    found = network()
    if uploaded:
        found = import_onnx_bytes(export_onnx(found.deployed()))
    made = certified(found)
    assert proves(made) is None
    forgery = Forgery(made)
    kinds = [row["kind"] for row in forgery.document["layers"]]
    assert kinds.count("skew-series") == 3
    assert {"permute", "pad", "slice", "shift"} <= {*kinds}
    radius = forgery.tensors["rows.radius"]
    assert (radius > 0).all()
    # All layers are of norm 1: the radius is nearly what the margin over the rows' distance is.
    head = _row_of(forgery, "linear")
    weight = forgery.tensors[head["weight"]].astype(np.float64)
    with torch.no_grad():
        logits = found.double()(torch.from_numpy(samples()).double()).numpy()
    for row, some in enumerate(logits):
        first = int(some.argmax())
        gaps = [
            (some[first] - some[j]) / np.linalg.norm(weight[first] - weight[j])
            for j in range(3)
            if j != first
        ]
        assert 0.9 * min(gaps) < radius[row] <= min(gaps)
    assert not forgery.tensors["rows.margin"].any()


@torch.no_grad()
def test_each_series_is_the_map_that_is_deployed_within_its_own_error() -> None:
    found = network()
    layers = [layer for _, layer in checked(found).layers if isinstance(layer, Affine)]
    series = [layer for layer in layers if isinstance(layer, Series)]
    assert [len(part.out_shape) for part in series] == [3, 3, 3]
    assert [part.stages for part in series] == [8, 12, 8]
    for layer, channels, degree in zip(series, (8, 8, 8), (8, 12, 8), strict=True):
        norm, absolute = layer.norms()
        assert 0.9 < norm <= 1.0 + 1e-5
        # The file of this layer alone, where every channel is an output.
        one = skew(channels, 8, bias=False, degree=degree)
        body: list[Layer] = [one, Reshape(shape=(8 * 144,))]
        alone = chain((8, 12, 12), body)
        (_, only), *_ = checked(chain((8, 12, 12), [*body, Linear(normal(2, 8 * 144))])).layers
        assert isinstance(only, Series)
        absolute = only.norms()[1]
        x = normal(6, 8, 12, 12).numpy()
        there = OnnxRuntimeModel(export_onnx(alone.deployed()), (8, 12, 12))(x)
        off = there.astype(np.float64) - only.apply(x.astype(np.float64)).reshape(6, -1)
        allowed = (deployed(only.terms) + own(only.steps)) * absolute
        assert np.linalg.norm(off, axis=1).max() > 0
        assert (
            np.linalg.norm(off, axis=1) <= allowed * np.linalg.norm(x.reshape(6, -1), axis=1)
        ).all()


@pytest.mark.parametrize("norm", [0.0, 0.5, 2.0, 3.3, 6.0])
@pytest.mark.parametrize("divisors", [(1,), (2, 1), (8, 7, 6, 5, 4, 3, 2, 1), (3, 3, 7)])
def test_the_norm_of_a_series_is_that_of_its_polynomial(
    norm: float, divisors: tuple[int, ...]
) -> None:
    points = 1j * np.linspace(0.0, norm, 20001)
    value = np.ones_like(points)
    for divisor in divisors:
        value = 1.0 + points * value / divisor
    largest = float(np.abs(value).max())
    found = series_norm(norm, divisors)
    assert largest <= found <= largest * (1.0 + 1e-4)


def test_the_norm_bounds_skew_matrices() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        matrix = random.normal(size=(7, 7)) * random.uniform(0.1, 1.0)
        matrix = matrix - matrix.T
        size = float(np.linalg.norm(matrix, 2))
        divisors = tuple(int(c) for c in random.integers(1, 9, random.integers(1, 9)))
        z = np.eye(7)
        for divisor in divisors:
            z = np.eye(7) + matrix @ z / divisor
        assert np.linalg.norm(z, 2) <= series_norm(size * (1 + 1e-12), divisors) * (1 + 1e-12)


def _series(forged: Forgery) -> dict[str, Any]:
    found: dict[str, Any] = next(
        row for row in forged.document["layers"] if row["kind"] == "skew-series"
    )
    return found


def _not_skew(forged: Forgery) -> None:
    forged.tensors[_series(forged)["weight"]][1, 0, 0, 0] += np.float32(1e-3)


def _on_the_diagonal(forged: Forgery) -> None:
    weight = forged.tensors[_series(forged)["weight"]]
    weight[0, 0, 1, 1] += np.float32(1e-3)


def _larger(forged: Forgery) -> None:
    forged.tensors[_series(forged)["weight"]] *= np.float32(1.5)


def _divisor(forged: Forgery) -> None:
    _series(forged)["divisors"][0] = 9


def _fewer(forged: Forgery) -> None:
    del _series(forged)["divisors"][0]


def _none(forged: Forgery) -> None:
    _series(forged)["divisors"] = []


def _no_number(forged: Forgery) -> None:
    _series(forged)["divisors"][0] = 8.0


def _levels(forged: Forgery) -> None:
    _series(forged)["levels"] = [3]


def _norm(forged: Forgery) -> None:
    _series(forged)["norm"] *= 1.0 - 2.0**-15


def _absolute(forged: Forgery) -> None:
    _series(forged)["absolute"] *= 0.5


def _row_of(forged: Forgery, kind: str) -> dict[str, Any]:
    return next(row for row in forged.document["layers"] if row["kind"] == kind)


def _shifted(forged: Forgery) -> None:
    forged.tensors[_row_of(forged, "shift")["value"]] *= np.float32(3.0)


def _shift_norm(forged: Forgery) -> None:
    _row_of(forged, "shift")["norm"] = 0.5


def _axes(forged: Forgery) -> None:
    _row_of(forged, "permute")["axes"] = [0, 0, 1]


def _padding(forged: Forgery) -> None:
    _row_of(forged, "pad")["value"] = 1.0


def _cut(forged: Forgery) -> None:
    row = _row_of(forged, "slice")
    row |= {"start": row["start"] + 1, "stop": row["stop"] + 1}


def _radius(forged: Forgery) -> None:
    forged.tensors["rows.radius"] *= 1.001


CHANGES = [
    *(_not_skew, _on_the_diagonal, _larger, _divisor, _fewer, _none, _no_number, _levels),
    *(_norm, _absolute, _shifted, _shift_norm, _axes, _padding, _cut, _radius),
]


@pytest.fixture(scope="module")
def true() -> bytes:
    return certified(network())


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_certificate_is_refused(true: bytes, change: Any) -> None:
    forged = Forgery(true)
    change(forged)
    forged.seal()
    assert proves(forged.pack()) is not None


@torch.no_grad()
def test_what_is_no_series_is_none() -> None:
    rows = network().deployed()
    places = [place for place in range(len(rows.nodes)) if skew_series_at(rows, place) is not None]
    found = [series for place in places if (series := skew_series_at(rows, place))]
    assert [math.prod(series.divisors) for series in found[:1]] == [math.factorial(8)]
    # Read in between: the sum of the third stage also goes to the end.
    nodes = [(n.name, rows.layer(n.name), n.inputs) for n in rows.nodes]
    inner = next(name for name, _, _ in nodes if name.endswith("sum6"))
    last, layer, inputs = nodes[-1]
    other = [
        *nodes[:-1],
        (last, layer, inputs),
        ("more", Reshape(shape=(8 * 144,)), (inner,)),
        ("less", Linear(normal(3, 8 * 144)), ("more",)),
        ("both", Add(), (last, "less")),
    ]
    cut = Network(SHAPE, other)
    first = skew_series_at(cut, places[0])
    assert first is None or first.last < found[0].last
    assert _layers(cut) is None
