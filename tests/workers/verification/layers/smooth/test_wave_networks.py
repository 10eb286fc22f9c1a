"""Networks of sines, cosines and inverse tangents: no bound is above what ONNX Runtime reaches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor

from models.layers.curves import Atan, Cos, Exp, Sin
from models.layers.kinds import Layer, Multiply, Shift
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import graph_of
from tests.workers.verification.layers.boxes import DTYPES
from tests.workers.verification.layers.smooth.chains import chain, number
from workers.verification.bounds.alpha_crown import alpha_crown_margins
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crown import cap_margins, crown_margins
from workers.verification.bounds.crown_ball import crown_ball_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.bounds.lipschitz import lipschitz_radius
from workers.verification.bounds.local_lipschitz import local_margins
from workers.verification.bounds.zonotope import zonotope_margins
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

BOUNDS: list[Callable[..., Tensor]] = [
    *(interval_margins, bcp_margins, crown_margins, cap_margins),
    *(zonotope_margins, alpha_crown_margins, local_margins),
]


#: By name: layers of one input in [0, 1].
CHAINS: dict[str, Callable[[], list[Layer]]] = {
    "a share of a period": lambda: [number(Multiply, 2.0), Sin(), number(Shift, 0.2)],
    "many periods": lambda: [number(Multiply, 300.0), Cos(), number(Shift, 1.1)],
    "large numbers": lambda: [number(Shift, 2.0**18), number(Multiply, 3.0), Sin()],
    "beyond the range": lambda: [number(Multiply, 6e6), Cos(), number(Shift, 1.1)],
    "a sine of a cosine": lambda: [number(Multiply, 9.0), Cos(), number(Multiply, 7.0), Sin()],
    "an angle": lambda: [number(Shift, -0.5), number(Multiply, 40.0), Atan(), number(Shift, 2.0)],
    "a sine of an exponential": lambda: [number(Multiply, 5.0), Exp(), Sin(), number(Shift, 1.1)],
}


@pytest.mark.parametrize("name", CHAINS)
@torch.no_grad()
def test_brute_force_on_one_input(name: str) -> None:
    """The least of ONNX Runtime's margins is not below what any bound says, and near to it; beyond
    the range nothing is proved."""
    network = chain(*CHAINS[name]())
    deployed = OnnxRuntimeModel(export_onnx(network), (1,))
    compiled = CompiledNetwork.compile(network)
    bounds = [*BOUNDS] if "exponential" not in name else BOUNDS[:-1]
    x = torch.tensor([[0.2], [0.5], [0.97]])
    label = torch.zeros(3, dtype=torch.long)
    for width in (1e-3, 0.3):
        region = Region(x, torch.full((3,), width, dtype=torch.float64), "linf", True)
        low, high = region.box(torch.float64)
        share = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None, None]
        points = (low + (high - low) * share).float().double().clamp(low, high).float()
        seen = torch.from_numpy(deployed(points.reshape(-1, 1).numpy())).reshape(-1, 3, 2)
        least = (seen[..., 0] - seen[..., 1]).double().amin(0)
        best = torch.full((3,), -math.inf, dtype=torch.float64)
        for bound in bounds:
            for dtype in DTYPES:
                margins = bound(compiled, region, label, Rounding.sound(dtype), dtype)[:, 1]
                assert bool((margins <= least).all()), bound
                best = torch.fmax(best, margins)
        if "beyond" in name:
            assert bool(torch.isneginf(best).all())
        elif "exponential" not in name:
            # Numbers of 2^19 are rounded to multiples of 2^-5, twice.
            room = 0.3 if "large" in name or "cosine" in name else 0.02
            assert bool((least - best <= (room if width < 0.01 else 1.5)).all())


def features(frequency: float) -> bytes:
    """A file of two inputs: sines and cosines of six of their sums, a dense layer, Atan, scores."""
    node = helper.make_node
    random = np.random.default_rng(5)
    nodes = [
        node("MatMul", ["x", "w"], ["z"]),
        *(node("Sin", ["z"], ["s"]), node("Cos", ["z"], ["c"])),
        node("Concat", ["s", "c"], ["f"], axis=1),
        *(node("MatMul", ["f", "v"], ["h"]), node("Atan", ["h"], ["a"])),
        node("MatMul", ["a", "u"], ["logits"]),
    ]
    constants = {
        "w": np.float32(frequency) * random.standard_normal((2, 6)).astype(np.float32),
        "v": random.standard_normal((12, 8)).astype(np.float32),
        "u": random.standard_normal((8, 3)).astype(np.float32),
    }
    return graph_of(nodes, (2,), constants, output="logits").SerializeToString()


@pytest.mark.parametrize("frequency", [1.0, 30.0, 1e4])
@torch.no_grad()
def test_nothing_wins_in_what_is_certified_of_fourier_features(frequency: float) -> None:
    """On a grid of 101 x 101 in ONNX Runtime, boxes and discs, by every bound."""
    data = features(frequency)
    network = import_onnx_bytes(data)
    deployed = OnnxRuntimeModel(data, (2,))
    compiled = CompiledNetwork.compile(network)
    x = torch.tensor([[0.9, -0.4], [-0.2, 0.3], [0.1, 0.6]])
    labels = torch.from_numpy(deployed(x.numpy()).argmax(1))
    axis = torch.linspace(-1, 1, 101)
    square = torch.cartesian_prod(axis, axis)
    others = torch.ones(3, 3).scatter(1, labels[:, None], 0.0).bool()
    certified = 0
    for norm in ("linf", "l2"):
        points = square if norm == "linf" else square[square.norm(dim=1) <= 1.0]
        for dtype in DTYPES:
            rounding = Rounding.sound(dtype)
            proved = lipschitz_radius(
                compiled, x, labels, norm=norm, rounding=rounding, dtype=dtype
            ).clamp_min(0.0)
            asked = [(None, proved)]
            for width in (1e-3 / frequency, 0.05 / frequency):
                radius = torch.full((3,), width, dtype=torch.float64)
                asked += [(bound, radius) for bound in BOUNDS]
                asked += [(crown_ball_margins, radius)] if norm == "l2" else []
            for bound, radius in asked:
                reach = radius.float()[:, None, None] * (1 - 1e-6)
                logits = torch.from_numpy(
                    deployed((x[:, None] + reach * points).reshape(-1, 2).numpy())
                )
                logits = logits.reshape(3, -1, 3)
                own = logits.gather(2, labels[:, None, None].expand(3, len(points), 1))
                least = (own - logits).amin(1)
                if bound is None:
                    assert bool(((least > 0) | ~others)[radius > 0].all())
                    continue
                region = Region(x, radius, norm, False)
                margins = bound(compiled, region, labels, rounding, dtype)
                assert bool((~(margins > least) | ~others).all()), bound
                certified += int(((margins > 0) | ~others).all(1).sum())
    assert certified > 30 or frequency > 100
