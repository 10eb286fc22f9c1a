"""Exponentials, logarithms, roots and quotients: taken, and read as one function where they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper

from models.errors import ModelError
from models.layers.curves import STEEP, Exp, Within
from models.layers.kinds import Layer, Linear
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import assert_agrees, flattened, normal

node = helper.make_node
NUMBERS = {
    **{name: np.array(value, np.float32) for name, value in (("one", 1.0), ("two", 2.0))},
    **{name: np.array(value, np.float32) for name, value in (("beta", 1.702), ("half", 0.5))},
    **{name: np.array(value, np.float32) for name, value in (("root", 0.5), ("inverse", -1.0))},
    "inverse root": np.array(-0.5, np.float32),
    "axis": np.array([2]),
}
FALLING = [node("Neg", ["x"], ["a"]), node("Exp", ["a"], ["b"])]
LOGISTIC = [*FALLING, node("Add", ["b", "one"], ["c"])]
RISING = [node("Exp", ["x"], ["e"])]
ABOVE = node("Softplus", ["x"], ["p"])
SUM = node("ReduceSum", ["e", "axis"], ["s"], keepdims=1)

#: Nodes from x to y, and the layers that they are read as.
FORMS: dict[str, tuple[list[NodeProto], list[str]]] = {
    "exp": ([node("Exp", ["x"], ["y"])], ["exp"]),
    "bell": (
        [node("Mul", ["x", "x"], ["a"]), node("Neg", ["a"], ["b"]), node("Exp", ["b"], ["y"])],
        ["power", "multiply", "exp"],
    ),
    "sigmoid": ([*LOGISTIC, node("Div", ["one", "c"], ["y"])], ["sigmoid"]),
    "sigmoid by a reciprocal": ([*LOGISTIC, node("Reciprocal", ["c"], ["y"])], ["sigmoid"]),
    "sigmoid by a power": ([*LOGISTIC, node("Pow", ["c", "inverse"], ["y"])], ["sigmoid"]),
    "twice a sigmoid": ([*LOGISTIC, node("Div", ["two", "c"], ["y"])], ["sigmoid", "multiply"]),
    "sigmoid from below": (
        [*RISING, node("Add", ["one", "e"], ["c"]), node("Div", ["e", "c"], ["y"])],
        ["within", "sigmoid"],
    ),
    "silu": ([*LOGISTIC, node("Div", ["x", "c"], ["y"])], ["silu"]),
    "silu of a factor": (
        [
            node("Mul", ["x", "beta"], ["z"]),
            node("Neg", ["z"], ["a"]),
            node("Exp", ["a"], ["b"]),
            node("Add", ["one", "b"], ["c"]),
            node("Div", ["x", "c"], ["y"]),
        ],
        ["multiply", "silu", "multiply"],
    ),
    "softplus": (
        [*RISING, node("Add", ["e", "one"], ["c"]), node("Log", ["c"], ["y"])],
        ["within", "softplus"],
    ),
    "tanh": (
        [
            *(*FALLING, *RISING, node("Sub", ["e", "b"], ["n"]), node("Add", ["b", "e"], ["d"])),
            node("Div", ["n", "d"], ["y"]),
        ],
        ["within", "tanh"],
    ),
    "tanh of a half": (
        [
            *(*RISING, node("Sub", ["e", "one"], ["n"]), node("Add", ["e", "one"], ["d"])),
            node("Div", ["n", "d"], ["y"]),
        ],
        ["within", "multiply", "tanh"],
    ),
    "tanh of a half, falling": (
        [
            *(*RISING, node("Sub", ["one", "e"], ["n"]), node("Add", ["e", "one"], ["d"])),
            node("Div", ["n", "d"], ["y"]),
        ],
        ["within", "multiply", "tanh", "multiply"],
    ),
    "tanh of the opposite": (
        [
            *(*FALLING, *RISING, node("Sub", ["b", "e"], ["n"]), node("Add", ["b", "e"], ["d"])),
            node("Div", ["n", "d"], ["y"]),
        ],
        ["multiply", "within", "tanh"],
    ),
    "softmax": ([*RISING, SUM, node("Div", ["e", "s"], ["y"])], ["within", "softmax"]),
    "softmax less the maximum": (
        [
            node("ReduceMax", ["x"], ["m"], axes=[2], keepdims=1),
            node("Sub", ["x", "m"], ["z"]),
            *(node("Exp", ["z"], ["e"]), SUM, node("Div", ["e", "s"], ["y"])),
        ],
        ["softmax"],
    ),
    "log": ([ABOVE, node("Log", ["p"], ["y"])], ["softplus", "log"]),
    "sqrt": ([ABOVE, node("Sqrt", ["p"], ["y"])], ["softplus", "sqrt"]),
    "root": ([ABOVE, node("Pow", ["p", "root"], ["y"])], ["softplus", "sqrt"]),
    "one over a root": (
        [ABOVE, node("Pow", ["p", "inverse root"], ["y"])],
        ["softplus", "sqrt", "reciprocal"],
    ),
    "quotient": ([ABOVE, node("Div", ["x", "p"], ["y"])], ["softplus", "reciprocal", "product"]),
    "two over": ([ABOVE, node("Div", ["two", "p"], ["y"])], ["softplus", "reciprocal", "multiply"]),
}
#: Nearly these: each operator by its own rules.
OTHERS: dict[str, list[NodeProto]] = {
    "another number than 1": [
        *FALLING,
        *(node("Add", ["b", "two"], ["c"]), node("Div", ["one", "c"], ["y"])),
    ],
    "another exponential below": [
        *(*RISING, *FALLING, node("Add", ["e", "one"], ["c"]), node("Div", ["b", "c"], ["y"])),
    ],
    "less another number than the maximum": [
        node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=1),
        node("Sub", ["x", "m"], ["z"]),
        *(node("Exp", ["z"], ["e"]), SUM, node("Div", ["e", "s"], ["y"])),
    ],
    "a sum of other exponentials": [
        *(*FALLING, *RISING, node("ReduceSum", ["b", "axis"], ["s"], keepdims=1)),
        node("Div", ["e", "s"], ["y"]),
    ],
    "a difference of others": [
        *(*FALLING, *RISING, node("Sub", ["b", "x"], ["n"]), node("Add", ["b", "e"], ["d"])),
        node("Div", ["n", "d"], ["y"]),
    ],
}


def kinds(network: Network) -> list[str]:
    """Of the layers before the view and the bend at the end."""
    return [network.layer(row.name).kind for row in network.nodes][:-2]


@pytest.mark.parametrize("form", FORMS)
def test_what_files_write_is_one_function(form: str) -> None:
    """And ONNX Runtime agrees at every scale up to where the form leaves float32, 0 included."""
    nodes, layers = FORMS[form]
    data = flattened(nodes, (3, 20), NUMBERS)
    network = assert_agrees(data, samples=8, scale=3.0)
    assert kinds(network) == layers
    limits = [layer.domain for layer in network.layers.values() if isinstance(layer, Within)]
    low, high = limits[0] if limits else (-math.inf, math.inf)
    high = min(high, 88.0) if "exp" in layers else high
    # Of a softplus that is no normal number nothing else is taken.
    low = -60.0 if layers[0] == "softplus" else low
    # A square is taken of the numbers first.
    reach = 9.0 if "power" in layers else 3e4
    sizes = np.geomspace(1e-30, reach, 90).astype(np.float32)
    line = np.sort(np.concatenate([-sizes, sizes, [-104.0, -88.0, 0.0, 80.0, 88.0, 89.0]]))
    line = line[: len(line) // 60 * 60].astype(np.float32).clip(low, high)
    x = np.resize(line, (3, 3, 20))
    expected = OnnxRuntimeModel(data, (3, 20))(x)
    with torch.no_grad():
        given = network(torch.from_numpy(x)).numpy()
    # Forms of small numbers underflow to 0: a softplus beyond -88, a softmax of large ones.
    allowed = 2e-6 * (1.0 + np.abs(given))
    assert np.isfinite(expected).all()
    assert (np.abs(given - expected) <= allowed).all()


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_nearly_one_is_several(form: str) -> None:
    network = assert_agrees(flattened(OTHERS[form], (3, 20), NUMBERS), samples=8)
    found = kinds(network)
    if "maximum" in form:
        assert found[-2:] == ["within", "softmax"]
    elif "below" in form:
        assert found == ["multiply", "exp", "multiply", "sigmoid", "product"]
    else:
        assert "reciprocal" in found
        assert not {"sigmoid", "tanh", "softmax"} & {*found}


@pytest.mark.parametrize("opset", [13, 21])
@torch.no_grad()
def test_every_steep_layer_is_exported_and_read_again(opset: int) -> None:
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("dense", Linear(torch.from_numpy(normal(0, 6, 6)) / 3.0), ("input",)),
        ("exp", Exp(), ("dense",)),
    ]
    for kind in STEEP:
        rows.append((kind.kind, kind(), (rows[-1][0],)) if kind is not Exp else rows.pop())
    network = Network((6,), rows[:2] + rows[2:]).eval()
    data = export_onnx(network, opset=opset)
    again = import_onnx_bytes(data)
    x = torch.from_numpy(np.abs(normal(1, 50, 6)))
    assert torch.allclose(again(x), network(x), rtol=1e-4, atol=1e-5, equal_nan=True)
    stored = Network.from_description(network.description(), network.stored_tensors())
    assert torch.allclose(stored(x), network(x), rtol=0.0, atol=0.0, equal_nan=True)
    assert stored.description() == network.description()


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("LogSoftmax", ["within", "exp", "reduce-sum", "log", "multiply", "expand", "add"]),
        ("ReduceLogSumExp", ["within", "exp", "reduce-sum", "log"]),
        ("ReduceLogSum", ["reduce-sum", "log"]),
        ("ReduceL1", ["abs", "reduce-sum"]),
        ("ReduceSumSquare", ["power", "reduce-sum"]),
    ],
)
def test_logarithms_of_sums_and_sums_of_sizes(kind: str, read: list[str], opset: int) -> None:
    constants = {"axis": np.array([2])} if opset >= 18 and kind != "LogSoftmax" else {}
    form = {"axis": 2} if kind == "LogSoftmax" else {} if constants else {"axes": [2]}
    nodes = [ABOVE, node(kind, ["p", *constants], ["y"], **form)]
    network = assert_agrees(flattened(nodes, (3, 4), constants, opset=opset))
    kinds = [network.layer(row.name).kind for row in network.nodes]
    assert kinds[1 : 1 + len(read)] == read


def test_a_reduction_without_axes_is_refused() -> None:
    """Runtimes differ on whether |x|, x^2 or a logarithm is then taken."""
    for kind in ("ReduceL1", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"):
        nodes = [node(kind, ["x"], ["y"], noop_with_empty_axes=1)]
        with pytest.raises(ModelError, match="without axes"):
            import_onnx_bytes(flattened(nodes, (3,), opset=18))
