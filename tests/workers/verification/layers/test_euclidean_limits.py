"""Euclidean norms where squares are lost, overflow or round often: refused, or never certified."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from models.errors import ModelError
from models.layers.euclidean import L2Pool2d
from models.layers.joins import Add, Slice
from models.layers.kinds import Linear, Multiply, Reshape
from models.network import INPUT, Network
from models.onnx.importer import import_onnx_bytes
from tests.models.onnx.graphs import assert_agrees, flattened
from tests.workers.verification.certification import evaluate
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region

node = helper.make_node
T = torch.tensor


def cancelling(centre: float, slope: float, margin: float) -> Network:
    """|z| - slope * z_0 against 0, z = (3e-16 (x - centre), 0)."""
    scale = 3e-16
    rows: list[Any] = [
        ("z", Linear(T([[scale], [0.0]]), T([-scale * centre, 0.0])), (INPUT,)),
        ("window", Reshape(shape=(1, 1, 2)), ("z",)),
        ("norm", L2Pool2d(kernel=(1, 2), stride=(1, 2)), ("window",)),
        ("flat", Reshape(shape=(1,)), ("norm",)),
        ("first", Slice(axis=0, start=0, stop=1), ("z",)),
        ("less", Multiply(T(-slope)), ("first",)),
        ("sum", Add(), ("flat", "less")),
        ("y", Linear(T([[1.0], [0.0]]), T([0.0, -margin])), ("sum",)),
    ]
    return Network((1,), rows).eval()


@pytest.mark.parametrize("method", ["crown", "crown-ball", "alpha-crown", "ibp", "lipschitz"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_middle_whose_squares_are_lost_has_no_long_slope(method: str, dtype: torch.dtype) -> None:
    x, reach = np.array([[0.5]], np.float32), 0.4
    grid = np.linspace(0.1, 0.9, 401, dtype=np.float32)[:, None]
    for centre in (0.5, 0.49999997, 0.49999994, 0.4999999, 0.4999998):
        for slope in (1e3, 1e5, 1e6, 1e7, 2.6e7):
            network = cancelling(centre, slope, slope * 3e-16 * reach * 0.3)
            logits = evaluate(network, x)[0]
            label = int(logits.argmax())
            answers = evaluate(network, grid)
            wrong = bool((answers[:, label] <= answers[:, 1 - label]).any())
            problem = Problem(CompiledNetwork.compile(network), True, torch.device("cpu"), dtype)
            region = Region(torch.from_numpy(x), T([reach], dtype=torch.float64), "l2", True)
            found = BOUNDS[method].attempt(
                problem, region, T([label]), Budget(T([1.0], dtype=torch.float64))
            )
            assert not (wrong and bool(found.proved.any())), (centre, slope)


def refused(nodes: list[Any], constants: dict[str, Any], shape: tuple[int, ...] = (2,)) -> str:
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, shape, constants, opset=13))
    return caught.value.code


SQUARE, ROOT = node("Mul", ["x", "x"], ["s"]), node("Sqrt", ["t"], ["y"])


@pytest.mark.parametrize(
    "to",
    [
        *(TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL),
        *(TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE),
    ],
)
def test_squares_are_cast_to_nothing_else(to: int) -> None:
    back = node("Cast", ["c"], ["t"], to=TensorProto.FLOAT)
    assert refused([SQUARE, node("Cast", ["s"], ["c"], to=to), back, ROOT], {}) in (
        *("unsupported_operator", "unsupported_dtype"),
    )


@pytest.mark.parametrize("factors", [[2.0**60], [2.0**-60], [2.0**30, 2.0**-30], [1e-7], [1.5] * 9])
def test_factors_of_squares_are_few_and_moderate(factors: list[float]) -> None:
    """Others are no norm, but squares, products and a root, each by its own rules."""
    names = ["s", *(f"t{index}" for index in range(1, len(factors))), "t"]
    constants = {f"k{index}": np.array(value, np.float32) for index, value in enumerate(factors)}
    steps = [
        node("Mul", [names[index], f"k{index}"], [names[index + 1]])
        for index in range(len(factors))
    ]
    network = assert_agrees(flattened([SQUARE, *steps, ROOT], (2,), constants), samples=5)
    kinds = [network.layer(row.name).kind for row in network.nodes]
    assert kinds[0] == "power"
    assert "sqrt" in kinds
    assert "l2-pool2d" not in kinds


def test_a_few_moderate_factors_are_taken() -> None:
    constants = {"a": np.array(1024.0, np.float32), "b": np.array(0.125, np.float32)}
    steps = [node("Mul", ["s", "a"], ["u"]), node("Div", ["u", "b"], ["v"])]
    steps.append(node("Add", ["v", "b"], ["t"]))
    assert_agrees(flattened([SQUARE, *steps, ROOT], (2,), constants), samples=5)


def test_ranks_that_change_what_is_summed_are_refused() -> None:
    pooled = [node("Reshape", ["x", "to"], ["z"]), node("Mul", ["z", "z"], ["s"])]
    pooled += [node("GlobalAveragePool", ["s"], ["t"]), ROOT]
    for shape in ([-1, 1, 1, 1, 4], [-1, 4]):
        code = refused(pooled, {"to": np.array(shape, np.int64)}, (4,))
        assert code in ("unsupported_operator", "shape_mismatch")
    one = {
        "e": np.full((1, 1, 1, 1), 1e-6, np.float32),
        "two": np.full((1, 1, 1, 1), 2, np.float32),
    }
    # More axes move the batch.
    codes = ("unsupported_operator", "batch_dependent")
    for step in (node("Add", ["s", "e"], ["t"]), node("Mul", ["s", "e"], ["t"])):
        assert refused([SQUARE, step, ROOT], one, (2, 2)) in codes
    power = [node("Pow", ["x", "two"], ["t"]), ROOT]
    assert refused(power, one, (2, 2)) in codes
