"""Curved activations as operators and as nodes of exporters, squares, products of activations."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper
from torch import nn

from models.architectures.layer_lists import blueprint_of
from models.errors import ModelError
from models.layers.curves import CURVED, ELU, GELU, SELU, Power
from models.layers.kinds import Layer, Linear
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from tests.models.onnx.graphs import assert_agrees, flattened, normal

node = helper.make_node
NUMBERS = {
    **{name: np.array(value, np.float32) for name, value in (("one", 1.0), ("half", 0.5))},
    **{name: np.array(value, np.float32) for name, value in (("two", 2.0), ("three", 3.0))},
    "six": np.array(6.0, np.float32),
    "zero": np.array(0.0, np.float32),
    "many": np.array(512.0, np.float32),
    "huge": np.array(2.0**40, np.float32),
    "beta": np.array(1.702, np.float32),
    "root2": np.array(math.sqrt(2.0), np.float32),
    "half root": np.array(math.sqrt(0.5), np.float32),
    "pi root": np.array(math.sqrt(2.0 / math.pi), np.float32),
    "small": np.array(0.044715, np.float32),
}

#: Nodes from x to y, and what they are read as beside factors.
FORMS: dict[str, tuple[list[NodeProto], str]] = {
    "silu": ([node("Sigmoid", ["x"], ["a"]), node("Mul", ["a", "x"], ["y"])], "silu"),
    "quick gelu": (
        [
            node("Mul", ["x", "beta"], ["a"]),
            node("Sigmoid", ["a"], ["b"]),
            node("Mul", ["x", "b"], ["y"]),
        ],
        "silu",
    ),
    "gelu, as torch writes it": (
        [
            node("Div", ["x", "root2"], ["a"]),
            node("Erf", ["a"], ["b"]),
            node("Add", ["b", "one"], ["c"]),
            node("Mul", ["x", "c"], ["d"]),
            node("Mul", ["d", "half"], ["y"]),
        ],
        "gelu",
    ),
    "gelu, as tensorflow writes it": (
        [
            node("Mul", ["x", "half root"], ["a"]),
            node("Erf", ["a"], ["b"]),
            node("Add", ["one", "b"], ["c"]),
            node("Mul", ["half", "x"], ["d"]),
            node("Mul", ["d", "c"], ["y"]),
        ],
        "gelu",
    ),
    "gelu, half of the gate": (
        [
            node("Mul", ["x", "half root"], ["a"]),
            node("Erf", ["a"], ["b"]),
            node("Mul", ["b", "half"], ["c"]),
            node("Add", ["c", "half"], ["d"]),
            node("Mul", ["x", "d"], ["y"]),
        ],
        "gelu",
    ),
    "gelu by tanh": (
        [
            node("Pow", ["x", "three"], ["a"]),
            node("Mul", ["small", "a"], ["b"]),
            node("Add", ["x", "b"], ["c"]),
            node("Mul", ["c", "pi root"], ["d"]),
            node("Tanh", ["d"], ["e"]),
            node("Add", ["e", "one"], ["f"]),
            node("Mul", ["x", "half"], ["g"]),
            node("Mul", ["g", "f"], ["y"]),
        ],
        "gelu",
    ),
    "gelu by tanh, the cube as products": (
        [
            node("Mul", ["x", "x"], ["s"]),
            node("Mul", ["x", "s"], ["a"]),
            node("Mul", ["a", "small"], ["b"]),
            node("Add", ["b", "x"], ["c"]),
            node("Mul", ["pi root", "c"], ["d"]),
            node("Tanh", ["d"], ["e"]),
            node("Add", ["one", "e"], ["f"]),
            node("Mul", ["half", "x"], ["g"]),
            node("Mul", ["g", "f"], ["y"]),
        ],
        "gelu",
    ),
    "mish": (
        [
            node("Softplus", ["x"], ["a"]),
            node("Tanh", ["a"], ["b"]),
            node("Mul", ["x", "b"], ["y"]),
        ],
        "mish",
    ),
    "hard-swish": (
        [
            node("HardSigmoid", ["x"], ["a"], alpha=1.0 / 6.0, beta=0.5),
            node("Mul", ["x", "a"], ["y"]),
        ],
        "hard-swish",
    ),
    "hard-swish by a Clip": (
        [
            node("Add", ["x", "three"], ["a"]),
            node("Clip", ["a", "zero", "six"], ["b"]),
            node("Mul", ["x", "b"], ["c"]),
            node("Div", ["c", "six"], ["y"]),
        ],
        "hard-swish",
    ),
    "softsign": (
        [
            node("Abs", ["x"], ["a"]),
            node("Add", ["a", "one"], ["b"]),
            node("Div", ["x", "b"], ["y"]),
        ],
        "softsign",
    ),
}
#: Nearly these: bounded as two values.
OTHERS: dict[str, list[NodeProto]] = {
    "a gate of something else": [
        node("Relu", ["x"], ["r"]),
        node("Sigmoid", ["r"], ["a"]),
        node("Mul", ["x", "a"], ["y"]),
    ],
    "another number than the root of 2": [
        node("Div", ["x", "two"], ["a"]),
        node("Erf", ["a"], ["b"]),
        node("Add", ["b", "one"], ["c"]),
        node("Mul", ["x", "c"], ["y"]),
    ],
    "another number than 1": [
        node("Div", ["x", "root2"], ["a"]),
        node("Erf", ["a"], ["b"]),
        node("Add", ["b", "half"], ["c"]),
        node("Mul", ["x", "c"], ["y"]),
    ],
    "numbers that cancel before the gate": [
        node("Add", ["x", "many"], ["a"]),
        node("Sub", ["a", "many"], ["b"]),
        node("Sigmoid", ["b"], ["c"]),
        node("Mul", ["x", "c"], ["y"]),
    ],
    "factors that cancel before the gate": [
        node("Mul", ["x", "many"], ["a"]),
        node("Div", ["a", "many"], ["b"]),
        node("Mul", ["b", "two"], ["c"]),
        node("Sigmoid", ["x"], ["d"]),
        node("Mul", ["c", "d"], ["y"]),
    ],
    "a number that is no moderate one": [
        node("Mul", ["x", "huge"], ["a"]),
        node("Sigmoid", ["x"], ["b"]),
        node("Mul", ["a", "b"], ["c"]),
        node("Div", ["c", "huge"], ["y"]),
    ],
    "a gate that is moved": [
        node("Sigmoid", ["x"], ["a"]),
        node("Add", ["a", "one"], ["b"]),
        node("Mul", ["x", "b"], ["y"]),
    ],
    "a hard gate that ends elsewhere": [
        node("Add", ["x", "two"], ["a"]),
        node("Clip", ["a", "zero", "six"], ["b"]),
        node("Mul", ["x", "b"], ["y"]),
    ],
}


def kinds(network: Network) -> list[str]:
    return [network.layer(row.name).kind for row in network.nodes]


@pytest.mark.parametrize("form", FORMS)
def test_what_exporters_write_is_one_activation(form: str) -> None:
    nodes, kind = FORMS[form]
    network = assert_agrees(flattened(nodes, (3, 20), NUMBERS), samples=8, scale=3.0)
    assert kinds(network).count(kind) == 1
    assert set(kinds(network)) <= {kind, "multiply", "divide", "reshape", "leaky-relu"}


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_nearly_one_is_a_product(form: str) -> None:
    network = assert_agrees(flattened(OTHERS[form], (3, 20), NUMBERS), samples=8, scale=3.0)
    assert kinds(network).count("product") == 1


def curved_network() -> Network:
    """Every curved activation in a row, behind a dense layer each."""
    more: list[Layer] = [GELU(approximate="tanh"), ELU(alpha=2.0), SELU(alpha=0.5, gamma=2.0)]
    rows: list[Any] = []
    last = "input"
    for place, layer in enumerate([*(kind() for kind in CURVED), *more, Power(exponent=3)]):
        dense = Linear(torch.from_numpy(normal(place, 6, 6)) / 3.0)
        rows += [(f"d{place}", dense, (last,)), (f"f{place}", layer, (f"d{place}",))]
        last = f"f{place}"
    return Network((6,), rows).eval()


@pytest.mark.parametrize("opset", [13, 17, 21])
@torch.no_grad()
def test_every_curve_is_exported_and_read_again(opset: int) -> None:
    network = curved_network()
    assert [layer.kind for layer in CURVED] == kinds(network)[1 : 2 * len(CURVED) : 2]
    again = assert_agrees(export_onnx(network, opset=opset), samples=5)
    # What opset 13 writes with factors of 1 is read without them.
    assert [kind for kind in kinds(again) if kind != "multiply"] == kinds(network)
    x = torch.from_numpy(normal(1, 50, 6))
    assert torch.allclose(again(x), network(x), rtol=1e-4, atol=1e-5)
    stored = Network.from_description(network.description(), network.stored_tensors())
    assert torch.equal(stored(x), network(x))


@pytest.mark.parametrize(
    ("operator", "opset", "given"),
    [
        *(("Elu", 9, {"alpha": 0.3}), ("Selu", 9, {}), ("Celu", 12, {"alpha": 2.0})),
        *(("Softsign", 9, {}), ("Erf", 9, {}), ("HardSwish", 14, {}), ("Mish", 18, {})),
        *(("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}), ("Swish", 24, {})),
        *(("Swish", 24, {"alpha": 1.7}), ("Atan", 7, {}), ("Sin", 7, {}), ("Cos", 7, {})),
    ],
)
def test_native_operators(operator: str, opset: int, given: dict[str, Any]) -> None:
    data = flattened([node(operator, ["x"], ["y"], **given)], (3, 20), opset=opset)
    network = assert_agrees(data, samples=8, scale=4.0)
    assert "product" not in kinds(network)


@pytest.mark.parametrize("first", [(4, 3, 5), (4, 1, 1), (1, 3, 1)])
@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub", "Max"])
def test_two_activations_broadcast(kind: str, first: tuple[int, ...]) -> None:
    """A mean over some axes beside the whole: squeeze and excite, and its like."""
    axes = [axis + 1 for axis, size in enumerate(first) if size == 1]
    first_node = node("Sigmoid", ["x"], ["m"])
    if axes:
        first_node = node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=1)
    nodes = [first_node, node("Relu", ["x"], ["r"])]
    for order in (["m", "r"], ["r", "m"]):
        network = assert_agrees(flattened([*nodes, node(kind, order, ["y"])], (4, 3, 5)))
        assert ("expand" in kinds(network)) == bool(axes)
        again = import_onnx_bytes(export_onnx(network))
        assert kinds(again) == kinds(network)


def test_squares_are_numbers_too() -> None:
    """On no way to a root they are what they are; on one, a norm."""
    square = node("Mul", ["x", "x"], ["s"])
    for nodes, found in (
        ([node("Mul", ["x", "x"], ["y"])], ["power"]),
        ([node("Pow", ["x", "three"], ["y"])], ["power"]),
        ([square, node("Sub", ["s", "three"], ["y"])], ["power", "shift"]),
        (
            [square, node("ReduceMean", ["s"], ["y"], axes=[1], keepdims=1)],
            ["power", "reduce-mean"],
        ),
        ([square, node("Add", ["s", "x"], ["y"])], ["power", "add"]),
        ([square, node("Softplus", ["s"], ["y"])], ["power", "softplus"]),
    ):
        network = assert_agrees(flattened(nodes, (3, 20), NUMBERS), samples=4)
        assert [kind for kind in kinds(network) if kind not in ("reshape", "leaky-relu")] == found
    norm = [
        square,
        node("ReduceMean", ["s"], ["m"], axes=[1], keepdims=1),
        node("Sqrt", ["m"], ["y"]),
    ]
    assert "power" not in kinds(assert_agrees(flattened(norm, (3, 20))))


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([node("Pow", ["x", "six"], ["y"])], "unsupported_operator"),
        ([node("Elu", ["x"], ["y"], alpha=-1.0)], "unsupported_operator"),
        ([node("Tan", ["x"], ["y"])], "unsupported_operator"),
        ([node("Acos", ["x"], ["y"])], "unsupported_operator"),
        ([node("Flatten", ["x"], ["f"]), node("Mul", ["x", "f"], ["y"])], "batch_dependent"),
        ([node("Expand", ["x", "twice"], ["y"])], "batch_dependent"),
    ],
)
def test_refused(nodes: list[NodeProto], code: str) -> None:
    constants = {**NUMBERS, "twice": np.array([2, 3, 20])}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (3, 20), constants))
    assert caught.value.code == code, caught.value


@torch.no_grad()
def test_layer_lists_have_every_curve_and_torch_writes_the_same() -> None:
    """A list with torch's weights is the network that torch exports."""
    made = {
        "elu": nn.ELU(0.5),
        "selu": nn.SELU(),
        "celu": nn.CELU(2.0),
        "softsign": nn.Softsign(),
        "silu": nn.SiLU(),
        "gelu": nn.GELU(),
        "hard-swish": nn.Hardswish(),
        "mish": nn.Mish(),
    }
    given = {"elu": {"alpha": 0.5}, "celu": {"alpha": 2.0}}
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    layers: list[dict[str, Any]] = []
    for kind, module in made.items():
        modules += [nn.Linear(6, 6), module]
        layers += [{"kind": "linear", "out": 6}, {"kind": kind, **given.get(kind, {})}]
    module = nn.Sequential(*modules).eval()
    blueprint = blueprint_of({"input": [6], "layers": layers})
    names = [row.name for row in blueprint.skeleton.nodes if row.name.startswith("linear")]
    dense = [part for part in module if isinstance(part, nn.Linear)]
    network = blueprint.network(
        {
            f"layers.{name}.{key}": value
            for name, part in zip(names, dense, strict=True)
            for key, value in part.state_dict().items()
        }
    )
    x = torch.randn(20, 6)
    assert torch.allclose(network(x), module(x), atol=1e-6)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x[:1],), stream, opset_version=17, dynamo=False)
    imported = assert_agrees(stream.getvalue(), samples=1, scale=3.0)
    assert [kind for kind in kinds(imported) if kind != "multiply"] == kinds(network)
