"""Local response normalisation: lines, boxes and balls hold for what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from models.errors import ModelError
from models.layers.kinds import Linear, ReLU, Reshape
from models.layers.normalization import LocalResponse
from models.network import Network
from models.onnx.deployed import DeployedNetwork
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes, read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import flattened, normal
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crown import cap_margins, crown_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.bounds.zonotope import zonotope_margins
from workers.verification.cascade.parity import check_parity
from workers.verification.clock import UNLIMITED
from workers.verification.enclosure import Enclosure
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of
from workers.verification.layers.smooth.local_response import POWER_ROUNDINGS
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F64, DTYPES = torch.float64, (torch.float32, torch.float64)
BOUNDS = (interval_margins, bcp_margins, crown_margins, cap_margins, zonotope_margins)


def drawn(random: np.random.Generator) -> LocalResponse:
    return LocalResponse(
        size=int(random.choice([1, 3, 5, 9])),
        alpha=float(random.choice([1e-9, 1e-4, 0.1, 3.0, 1e3])),
        beta=float(random.choice([0.25, 0.5, 0.75, 1.0, 2.0])),
        bias=float(random.choice([1e-5, 0.1, 1.0, 2.0, 1e3])),
    )


def runtime_of(layer: LocalResponse, channels: int) -> OnnxRuntimeModel:
    flat = Reshape(shape=(2 * channels,))
    network = Network((channels, 1, 2), [("n", layer, ("input",)), ("y", flat, ("n",))])
    return OnnxRuntimeModel(export_onnx(network), (channels, 1, 2))


def test_the_power_is_off_by_less_than_half_of_what_is_allowed() -> None:
    """One channel: nothing but the power, on sums of all sizes."""
    random = np.random.default_rng(0)
    worst = 0.0
    for beta in (0.25, 0.5, 0.75, 1.0, 2.0):
        layer = LocalResponse(size=1, alpha=1.0, beta=beta, bias=1e-5)
        x = (2.0 ** random.uniform(-10, 30, (4000, 1, 1, 2))).astype(np.float32)
        found = runtime_of(layer, 1)(x).reshape(x.shape).astype(np.float64)
        # The sum as float32 has it: its roundings are counted apart.
        sums = np.float32(1e-5) + x * x
        exact = x * sums.astype(np.float64) ** -beta
        worst = max(worst, float(np.abs(found / exact - 1.0).max()))
    assert worst <= 0.5 * POWER_ROUNDINGS * 2.0**-24


@pytest.mark.parametrize("seed", range(examples(40)))
@torch.no_grad()
def test_boxes_lines_and_balls_hold_for_the_runtime(seed: int) -> None:
    """Channels of very different sizes too: the sum that runs along keeps what large ones left."""
    random = np.random.default_rng(seed)
    layer, channels = drawn(random), int(random.choice([1, 4, 17]))
    rules, deployed = rules_of(layer), runtime_of(layer, channels)
    assert rules.forward is not None
    assert rules.relax is not None
    shape = (2, channels, 1, 2)
    sizes = 10.0 ** random.uniform(-4, 4, shape if random.integers(2) else (1, 1, 1, 1))
    centre = (sizes * random.standard_normal(shape)).astype(np.float32)
    if random.integers(2):
        centre = np.abs(centre)
    half = np.abs(centre) * 10.0 ** random.uniform(-8, 0.3)
    points = centre[:, None] + half[:, None] * random.uniform(-1, 1, (2, 60, *shape[1:]))
    points[:, :8] = centre[:, None] + half[:, None] * random.choice([-1, 1], (2, 8, *shape[1:]))
    points = points.astype(np.float32)
    lower, upper = (torch.from_numpy(np.stack([f(p, 0) for p in points])) for f in (np.min, np.max))
    seen = deployed(points.reshape(-1, *shape[1:])).reshape(points.shape)
    values = torch.from_numpy(seen).double()
    z = torch.from_numpy(points).double()
    off = (z - torch.from_numpy(centre).double()[:, None]).flatten(2).norm(dim=2).amax(1)
    for dtype in DTYPES:
        rounding, low, high = Rounding.sound(dtype), lower.to(dtype), upper.to(dtype)
        state = Enclosure(
            torch.from_numpy(centre).to(dtype), off * (1 + 1e-12), low, high, torch.ones(2) > 0
        )
        found = rules.forward(GraphStep("f", layer, (0,), shape[1:]), [state], rounding)
        assert found.lower is not None
        assert found.upper is not None
        known = found.valid
        inside = (values >= found.lower.double()[:, None]) & (
            values <= found.upper.double()[:, None]
        )
        assert bool(inside.flatten(1).all(1)[known].all())
        away = (values - found.centre.double()[:, None]).flatten(2).norm(dim=2).amax(1)
        assert bool((away <= found.radius)[known].all())
        for rule in ("crown", "cap"):
            lines = rules.relax(layer, low, high, rule, rounding)
            assert lines.lower_intercept is not None
            above = (
                lines.upper_slope.double()[:, None] * z + lines.upper_intercept.double()[:, None]
            )
            below = (
                lines.lower_slope.double()[:, None] * z + lines.lower_intercept.double()[:, None]
            )
            noise = 2.0**-50 * (1 + lines.upper_slope.double()[:, None]) * z.abs()
            # Where the sum that runs along may be below 0 nothing is known: it may be no number.
            assert bool(((values <= above + noise) | torch.isinf(above)).all())
            assert bool(((values >= below - noise) | torch.isinf(below)).all())


@torch.no_grad()
def test_brute_force_on_two_inputs() -> None:
    """The least margin of a grid is not below what any bound says, and not far above the best."""
    random = np.random.default_rng(1)
    rows = [
        ("h", Linear(torch.from_numpy(random.standard_normal((6, 2)).astype(np.float32))), "input"),
        ("v", Reshape(shape=(6, 1, 1)), "h"),
        ("r", ReLU(), "v"),
        ("n", LocalResponse(size=3, alpha=2.0, beta=0.75, bias=0.5), "r"),
        ("f", Reshape(shape=(6,)), "n"),
        ("y", Linear(torch.from_numpy(random.standard_normal((3, 6)).astype(np.float32))), "f"),
    ]
    network = Network((2,), [(name, layer, (source,)) for name, layer, source in rows]).eval()
    data = export_onnx(network)
    again = import_onnx_bytes(data)
    told = [again.layer(node.name).config() for node in again.nodes]
    assert told == [network.layer(node.name).config() for node in network.nodes]
    deployed, compiled = OnnxRuntimeModel(data, (2,)), CompiledNetwork.compile(network)
    x: NDArray[np.float32] = np.array([[0.6, 0.4], [0.1, 0.9]], np.float32)
    labels = torch.from_numpy(deployed(x).argmax(1))
    axis = np.linspace(-1, 1, 101)
    square = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    for width in (1e-3, 0.1):
        region = Region(torch.from_numpy(x), torch.full((2,), width, dtype=F64), "linf", False)
        points = (x[:, None] + width * (1 - 1e-6) * square).astype(np.float32)
        logits = torch.from_numpy(deployed(points.reshape(-1, 2))).reshape(2, -1, 3)
        own = logits.gather(2, labels[:, None, None].expand(2, len(square), 1))
        others = torch.ones(2, 3).scatter(1, labels[:, None], 0.0).bool()
        least = (own - logits).double().amin(1)
        best = torch.full((2, 3), -torch.inf, dtype=F64)
        for bound in BOUNDS:
            for dtype in DTYPES:
                margins = bound(compiled, region, labels, Rounding.sound(dtype), dtype)
                assert bool((~(margins > least) | ~others).all()), bound
                best = torch.fmax(best, margins)
        assert bool((least - best)[others].max() <= (0.01 if width < 0.01 else 1.0))


@pytest.mark.parametrize(
    "given", [{"size": 2}, {"size": 3, "alpha": 0.0}, {"size": 3, "bias": 0.0}, {"size": 0}]
)
def test_what_has_no_bound_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ModelError, match="local response") as caught:
        LocalResponse(**given)  # type: ignore[arg-type]
    assert caught.value.code == "invalid_network"


@pytest.mark.parametrize("seed", [30, 35])
def test_what_the_running_sum_keeps_is_no_other_network(seed: int) -> None:
    """One channel of the samples is 100 to 10,000 times as large: what is left of its square in
    the sums behind it is more than one rounding of their results."""
    rng = np.random.default_rng(seed)
    side, channels = int(rng.choice([1, 2, 3])), int(rng.choice([6, 8, 16]))
    nodes = [
        helper.make_node("LRN", ["x"], ["h"], alpha=1.0, beta=0.75, bias=1.0, size=3),
        helper.make_node("Flatten", ["h"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    constants = {"w": normal(seed, channels * side * side, 3), "b": normal(seed + 1, 3)}
    imported = read_onnx_bytes(flattened(nodes, (channels, side, side), constants))
    network = imported.network
    deployed = DeployedNetwork(imported.deployed, network.input_shape, None)
    x = rng.standard_normal((6, channels, side, side)).astype(np.float32)
    x[:, int(rng.integers(channels))] *= float(rng.choice([100, 1000, 1e4]))
    compiled = CompiledNetwork.compile(network, norms=False)
    options = {"clip": False, "batched": True, "seed": 0, "clock": UNLIMITED}
    assert check_parity(compiled, x, deployed(x), deployed, **options)["unchecked"] > 0
