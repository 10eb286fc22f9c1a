"""Files that fold by a comparison: what float32 takes of the wrong side is in every enclosure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from models.layers.kinds import Linear
from models.network import Network
from models.onnx.importer import import_onnx_bytes, read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import graph_of, normal
from tests.models.onnx.operators.curved.folds import angles, masked
from tests.workers.verification.uploads.judged import judged
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

Array = NDArray[Any]
node = helper.make_node
F64 = torch.float64
METHODS = [
    *(("l2", name) for name in ("lipschitz", "local-lip", "bcp", "crown", "crown-ball")),
    *(("linf", name) for name in ("ibp", "crown", "alpha-crown", "zonotope", "auto")),
    *(("linf", name) for name in ("branch-and-bound", "milp")),
]


def two_folds() -> bytes:
    """Dense layers of norm 1, and folds between."""
    constants = {f"f1{name}": value for name, value in angles([1.2, 1.8, -0.5, 4.0], (8,)).items()}
    constants |= {f"f2{name}": value for name, value in angles([1.5, 0.1, 2.2, 5.0], (8,)).items()}
    for name, shape in (("w1", (6, 8)), ("w2", (8, 8)), ("w3", (8, 3))):
        wide = np.linalg.qr(normal(len(constants), 8, 8).astype(np.float64))[0]
        constants[name] = wide[: shape[0], : shape[1]].astype(np.float32)
    nodes = [node("MatMul", ["x", "w1"], ["h1"])]
    for index in (1, 2):
        for part in masked():
            renamed = [f"f{index}{name}" for name in part.input]
            part.input[:] = [f"h{index}" if name == f"f{index}x" else name for name in renamed]
            part.output[:] = [f"f{index}{name}" for name in part.output]
            nodes.append(part)
        out = "y" if index == 2 else "h2"
        nodes.append(node("MatMul", [f"f{index}y", f"w{index + 1}"], [out]))
    return graph_of(nodes, (6,), constants, opset=18).SerializeToString()


@pytest.mark.parametrize(("norm", "method"), METHODS)
def test_every_bound_certifies_what_the_file_answers(norm: str, method: str) -> None:
    data = two_folds()
    imported = read_onnx_bytes(data)
    deployed = OnnxRuntimeModel(data, (6,))
    x = 2.0 * normal(7, 12, 6)
    epsilons = ("1/20", "1/5", "1/2") if norm == "l2" else ("1/50", "1/10", "1/5")

    def decide(rows: Array) -> Array:
        return deployed(rows).argmax(1)

    found = judged(
        imported.network,
        deployed,
        decide,
        x,
        epsilons=epsilons,
        norm=norm,
        method=method,
        points=examples(200),
    )
    # Boxes lose most at a fold.
    assert found.certified[:, 0].sum() >= (3 if method == "ibp" else 8)


@torch.no_grad()
def test_what_float32_makes_of_points_at_the_line_lies_in_the_enclosure() -> None:
    """And not in that of the fold alone, which knows nothing of the file's own comparison."""
    pairs = 64
    theta = np.linspace(0.1, 6.2, pairs)
    constants = angles(theta, (2 * pairs,))
    data = graph_of(masked(), (2 * pairs,), constants, opset=18).SerializeToString()
    network = import_onnx_bytes(data)
    kept = [(n.name, network.layer(n.name), n.inputs) for n in network.nodes]
    assert kept[-1][1].kind == "inexact-pairs"
    last = Linear(torch.eye(2 * pairs))
    rng = np.random.default_rng(0)
    lengths = rng.uniform(0.5, 2.0, (200, pairs)) * rng.choice([-1, 1], (200, pairs))
    x = np.concatenate([lengths * np.cos(theta / 2), lengths * np.sin(theta / 2)], 1)
    x = x.astype(np.float32) + np.spacing(x.astype(np.float32)) * rng.integers(-2, 3, x.shape)
    rows = torch.from_numpy(x.astype(np.float32))
    given = torch.from_numpy(OnnxRuntimeModel(data, (2 * pairs,))(rows.numpy())).double()
    beside = []
    for layers in (kept, kept[:-1]):
        named = [*layers, ("y", last, (layers[-1][0],))]
        compiled = CompiledNetwork.compile(Network((2 * pairs,), named))
        region = Region(rows, torch.zeros(len(rows), dtype=F64), "l2", False)
        state = propagate(compiled, region, rounding=Rounding.sound(F64), dtype=F64)
        assert state.lower is not None
        assert state.upper is not None
        beside.append(int(((given < state.lower) | (given > state.upper)).sum()))
        if layers is kept:
            far = (given - state.centre).flatten(1).norm(dim=1)
            assert bool((far <= state.radius).all())
    assert beside[0] == 0
    assert beside[1] > 0


@torch.no_grad()
def test_where_products_may_overflow_nothing_is_enclosed() -> None:
    """The reflected pair may be infinite where the pair is not, and 0 times it is no number."""
    data = graph_of(masked(), (4,), angles([0.4, 2.5], (4,)), opset=18).SerializeToString()
    network = import_onnx_bytes(data)
    named = [(n.name, network.layer(n.name), n.inputs) for n in network.nodes]
    whole = Network((4,), [*named, ("y", Linear(torch.eye(4)), (named[-1][0],))])
    compiled = CompiledNetwork.compile(whole)
    x = torch.tensor([[3e38, 1.0, 3e38, 1.0], [1.0, 2.0, 3.0, 4.0]])
    found = OnnxRuntimeModel(data, (4,))(x.numpy())
    assert not np.isfinite(found[0]).all()
    region = Region(x, torch.zeros(2, dtype=F64), "l2", False)
    state = propagate(compiled, region, rounding=Rounding.sound(F64), dtype=F64)
    assert state.valid.tolist() == [False, True]
