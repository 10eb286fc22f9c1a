"""Clip, Softplus, Tanh, Max, Min and others: import = ONNX Runtime; bounds come down to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from models.errors import ModelError
from models.layers.activations import Sign, Softplus
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of, normal

node = helper.make_node
OPSETS = st.sampled_from(range(7, 27))
BATCHES = st.sampled_from(["N", 1])
BOUND = st.one_of(st.none(), st.floats(-2, 2, width=32))


def kinds(network: Network) -> list[str]:
    return [network.layer(row.name).kind for row in network.nodes]


def clip_node(
    source: str, target: str, low: float | None, high: float | None, opset: int
) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    if opset < 11:
        bounds = {"min": low, "max": high}
        given_bounds = {key: value for key, value in bounds.items() if value is not None}
        return node("Clip", [source], [target], **given_bounds), {}
    constants = {
        f"{target}.{key}": np.array(value, np.float32)
        for key, value in (("low", low), ("high", high))
        if value is not None
    }
    names = [f"{target}.{key}" if f"{target}.{key}" in constants else "" for key in ("low", "high")]
    while names and not names[-1]:
        names.pop()
    return node("Clip", [source, *names], [target]), constants


@settings(max_examples=examples(60), deadline=None)
@given(OPSETS, BOUND, BOUND, BATCHES, st.sampled_from([(7,), (2, 3, 4)]))
def test_clip(
    opset: int, low: float | None, high: float | None, batch: int | str, shape: tuple[int, ...]
) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    made, constants = clip_node("x", "y", low, high, opset)
    network = assert_agrees(flattened([made], shape, constants, opset=opset, batch=batch))
    first = network.layer(network.nodes[0].name)
    if low is None and high is None:
        assert kinds(network)[-1] == "leaky-relu"
        assert "clip" not in kinds(network)
    elif low == 0 and high is None:
        assert first.kind == "relu"
    else:
        assert first.config() == {"low": low, "high": high}


@settings(max_examples=examples(60), deadline=None)
@given(
    OPSETS.filter(lambda opset: opset > 7),
    st.lists(st.tuples(st.sampled_from(["clip", "max", "min", "relu"]), BOUND, BOUND),
             min_size=2, max_size=4),
)  # fmt: skip
def test_bounds_in_a_row_are_one_layer(
    opset: int, steps: list[tuple[str, float | None, float | None]]
) -> None:
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    for index, (step, low, high) in enumerate(steps):
        source, target = (f"h{index}" if index else "x"), f"h{index + 1}"
        if step == "clip":
            if low is not None and high is not None and low > high:
                low, high = high, low
            made, more = clip_node(source, target, low, high, opset)
            constants |= more
        elif step == "relu":
            made = node("Relu", [source], [target])
        else:
            constants[f"c{index}"] = np.array(0.5 if low is None else low, np.float32)
            made = node(step.capitalize(), [source, f"c{index}"], [target])
        nodes.append(made)
    nodes.append(node("Identity", [target], ["y"]))
    network = assert_agrees(flattened(nodes, (30,), constants, opset=opset), samples=3)
    assert len(kinds(network)) <= 2


@pytest.mark.parametrize("opset", [9, 13, 21])
@pytest.mark.parametrize("op", ["Sigmoid", "Softplus", "Tanh"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_smooth_activations(op: str, opset: int, scale: float) -> None:
    data = flattened([node(op, ["x"], ["y"])], (3, 50), opset=opset)
    assert_agrees(data, samples=8, scale=scale)


@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])
def test_softplus_with_a_factor_is_deployed_exported_and_read_again(beta: float) -> None:
    """As exporters write it: a product, the plain operator, a quotient."""
    rows: list[Any] = [("s", Softplus(beta=beta), ("input",))]
    network = Network((7,), rows).eval()
    deployed = network.deployed()
    kind = "softplus" if beta == 1.0 else "divide"
    assert kinds(deployed) == (["softplus"] if beta == 1.0 else ["multiply", "softplus", kind])
    x = torch.from_numpy(normal(3, 50, 7)) * 10
    for data in (export_onnx(network), export_onnx(deployed)):
        again = import_onnx_bytes(data)
        assert kinds(again) == kinds(deployed)
        assert torch.allclose(again(x), network(x), rtol=1e-6, atol=1e-6)
    assert torch.allclose(network(x), torch.nn.Softplus(beta)(x), rtol=1e-6, atol=1e-6)
    stored = Network.from_description(network.description(), network.stored_tensors())
    assert torch.equal(stored(x), network(x))


@settings(max_examples=examples(50), deadline=None)
@given(
    OPSETS,
    st.sampled_from(["Max", "Min"]),
    st.lists(st.sampled_from(["x", "r", "n", "c", "s", "u", "v"]), min_size=1, max_size=5),
    BATCHES,
)
def test_max_and_min(opset: int, op: str, sources: list[str], batch: int | str) -> None:
    """Of one to five nodes, scalars, constants that broadcast, and constants per unit."""
    if opset < 8:  # nothing broadcasts yet
        sources = [source if source in ("x", "r", "n") else "x" for source in sources]
    constants = {
        "c": normal(0, 3, 4),
        "s": np.array(0.25, np.float32),
        "u": normal(1, 1, 3, 1),
        "v": normal(2, 1),
    }
    nodes = [node("LeakyRelu", ["x"], ["r"], alpha=0.3), node("Neg", ["x"], ["n"])]
    if not {"x", "r", "n"} & set(sources):
        sources = ["r", *sources]
    nodes.append(node(op, sources, ["y"]))
    assert_agrees(flattened(nodes, (3, 4), constants, opset=opset, batch=batch), samples=3)


@pytest.mark.parametrize("slopes", [0.3, 1.0, -0.2, 1.7, [0.1, 0.9, 0.4], [-0.5, 0.0, 2.5]])
def test_slopes_below_zero_of_any_size_are_what_onnx_runtime_computes(slopes: Any) -> None:
    """Bit for bit: of max(x, 0) - slope max(-x, 0) one part is 0."""
    array = np.array(slopes, np.float32)
    per_channel = array.reshape(-1, 1, 1) if array.ndim else array.reshape(1)
    made = [node("PRelu", ["x", "slopes"], ["y"])]
    if not array.ndim:
        made = [
            node("LeakyRelu", ["x"], ["a"], alpha=slopes),
            node("PRelu", ["a", "slopes"], ["y"]),
        ]
    data = graph_of(
        [*made, node("Flatten", ["y"], ["z"])], (3, 4, 5), {"slopes": per_channel}, output="z"
    ).SerializeToString()
    network = import_onnx_bytes(data)
    x = np.concatenate([normal(0, 8, 3, 4, 5), 1e-30 * normal(1, 2, 3, 4, 5)]).astype(np.float32)
    expected = OnnxRuntimeModel(data, (3, 4, 5))(x)
    assert np.array_equal(network(torch.from_numpy(x)).detach().numpy(), expected)


def test_slopes_from_0_to_1_are_one_layer_that_moves_nothing_apart() -> None:
    """In place of two ReLUs, whose moves would add up to 1 and the largest slope."""
    for slopes, expected in (([0.0, 1.0, 0.25], "prelu"), ([0.5, 0.5, 0.5], "leaky-relu")):
        constants = {"slopes": np.array(slopes, np.float32).reshape(3, 1), "w": normal(0, 3, 2)}
        nodes = [
            node("PRelu", ["x", "slopes"], ["a"]),
            *(node("GlobalMaxPool", ["a"], ["p"]), node("Flatten", ["p"], ["f"])),
            node("MatMul", ["f", "w"], ["y"]),
        ]
        network = assert_agrees(graph_of(nodes, (3, 4), constants).SerializeToString())
        assert kinds(network)[0] == expected
    both = [node("PRelu", ["x", "slopes"], ["y"])]
    steep = {"slopes": np.array([[0.5], [1.5], [-0.5]], np.float32)}
    assert "prelu" not in kinds(assert_agrees(flattened(both, (3, 4), steep)))


def test_relu_theta_is_recognised() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Min", ["r", "theta"], ["y"])]
    theta = np.abs(normal(0, 2, 3, 4))
    network = assert_agrees(flattened(nodes, (2, 3, 4), {"theta": theta}), samples=4)
    assert kinds(network) == ["relu-theta", "reshape", "leaky-relu"]
    negative = assert_agrees(flattened(nodes, (2, 3, 4), {"theta": normal(1, 2, 3, 4)}), samples=4)
    assert kinds(negative)[:2] == ["relu", "at-most"]


def test_a_bounded_value_that_is_used_twice() -> None:
    """The Relu stays for its other use though the Clip has taken it over."""
    constants = {"low": np.array(-1, np.float32), "high": np.array(0.5, np.float32)}
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Clip", ["r", "low", "high"], ["c"]),
        node("Sub", ["r", "c"], ["y"]),
    ]
    assert_agrees(flattened(nodes, (40,), constants), samples=3)


@pytest.mark.parametrize("opset", [9, 13, 18, 21])
@pytest.mark.parametrize("form", ["split", "slice"])
def test_maxmin_is_recognised_and_only_where_it_is(opset: int, form: str) -> None:
    def graph(high: list[str], low: list[str], order: list[str], sizes: tuple[int, int]) -> bytes:
        constants: dict[str, Any] = {}
        if form == "split":
            names = ["x"]
            if opset >= 13:
                constants["sizes"] = np.array(sizes, np.int64)
                names.append("sizes")
            options: dict[str, Any] = {} if opset >= 13 else {"split": list(sizes)}
            cuts = [node("Split", names, ["a", "b"], axis=1, **options)]
        elif opset < 10:
            cuts = [
                node("Slice", ["x"], ["a"], axes=[1], starts=[0], ends=[sizes[0]]),
                node("Slice", ["x"], ["b"], axes=[1], starts=[-sizes[1]], ends=[2**31 - 1]),
            ]
        else:
            numbers = {"zero": 0, "one": 1, "middle": sizes[0], "end": 2**62}
            constants = {key: np.array([value], np.int64) for key, value in numbers.items()}
            cuts = [
                node("Slice", ["x", "zero", "middle", "one"], ["a"]),
                node("Slice", ["x", "middle", "end", "one"], ["b"]),
            ]
        nodes = [
            *cuts,
            node("Max", high, ["M"]),
            node("Min", low, ["m"]),
            node("Concat", order, ["y"], axis=1),
        ]
        return flattened(nodes, (sum(sizes), 2, 2), constants, opset=opset)

    pairs = assert_agrees(graph(["a", "b"], ["b", "a"], ["M", "m"], (3, 3)), samples=3)
    assert kinds(pairs)[0] == "maxmin"
    other = assert_agrees(graph(["a", "b"], ["a", "b"], ["m", "M"], (3, 3)), samples=3)
    assert kinds(other)[:2] == ["maxmin", "gather"], "the minima stand first"
    same = assert_agrees(graph(["a", "a"], ["a", "a"], ["M", "m"], (3, 3)), samples=3)
    assert "maxmin" not in kinds(same)


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(0, 1000), st.sampled_from([13, 17, 18, 21]))
def test_round_trip_of_recognised_layers(seed: int, opset: int) -> None:
    """Import, export, import: the same layers and, bit for bit, the same logits."""
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        node("Max", ["a", "b"], ["M"]),
        node("Min", ["b", "a"], ["m"]),
        node("Concat", ["M", "m"], ["p"], axis=1),
        node("Relu", ["p"], ["r"]),
        node("Min", ["r", "theta"], ["t"]),
        node("Clip", ["t", "low", "high"], ["c"]),
        node("Max", ["c", "floor"], ["y"]),
    ]
    constants = {
        "sizes": np.array([2, 2], np.int64),
        "theta": np.abs(normal(seed, 4, 3)),
        "floor": normal(seed + 1, 4, 3),
        "low": np.array(0.1, np.float32),
        "high": np.array(0.7, np.float32),
    }
    first = assert_agrees(flattened(nodes, (4, 3), constants), seed=seed)
    again = import_onnx_bytes(export_onnx(first, opset=opset))
    assert kinds(first) == kinds(again)
    assert kinds(first)[:4] == ["maxmin", "relu-theta", "clip", "at-least"]
    x = torch.from_numpy(normal(seed, 5, 4, 3))
    assert torch.equal(first(x), again(x))


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([node("Clip", ["x", "one", "zero"], ["y"])], "invalid_network"),
        ([node("Clip", ["x", "nan"], ["y"])], "non_finite_weights"),
        ([node("Clip", ["x", "", "nan"], ["y"])], "non_finite_weights"),
        ([node("Clip", ["x", "inf"], ["y"])], "non_finite_weights"),
        ([node("Clip", ["x", "", "minf"], ["y"])], "non_finite_weights"),
        ([node("Clip", ["x", "many"], ["y"])], "unsupported_dtype"),
        ([node("Clip", ["x", "whole"], ["y"])], "unsupported_dtype"),
        ([node("Clip", ["x", "x"], ["y"])], "unsupported_operator"),
        ([node("Clip", ["x"], ["y"], min=0.0)], "invalid_onnx"),
        ([node("Clip", ["x"] * 4, ["y"])], "invalid_onnx"),
        ([node("Max", ["x", "nan"], ["y"])], "non_finite_weights"),
        ([node("Min", ["x", "minf"], ["y"])], "non_finite_weights"),
        ([node("Max", ["x", "wide"], ["y"])], "shape_mismatch"),
        ([node("Max", ["x", "higher"], ["y"])], "batch_dependent"),
        ([node("Max", ["x", "whole"], ["y"])], "unsupported_dtype"),
        ([node("Flatten", ["x"], ["f"]), node("Min", ["x", "f"], ["y"])], "batch_dependent"),
        ([node("Max", [], ["y"])], "invalid_onnx"),
        ([node("Min", ["x", ""], ["y"])], "invalid_onnx"),
        ([node("Sigmoid", ["x", "x"], ["y"])], "invalid_onnx"),
        ([node("Tanh", ["x"], ["y"], alpha=1.0)], "invalid_onnx"),
    ],
)
def test_refused(nodes: list[Any], code: str) -> None:
    constants = {
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "nan": np.array(np.nan, np.float32),
        "inf": np.array(np.inf, np.float32),
        "minf": np.array(-np.inf, np.float32),
        "many": normal(0, 4),
        "whole": np.array(1, np.int64),
        "wide": np.zeros((1, 4, 5), np.float32),
        "higher": np.zeros((2, 3, 4), np.float32),
    }
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (3, 4), constants))
    assert caught.value.code == code, caught.value
    assert nodes[-1].op_type in str(caught.value)


@pytest.mark.parametrize("kind", ["Ceil", "Floor", "Round", "Sign"])
def test_steps_are_taken_and_written(kind: str) -> None:
    """Inputs of whole and half numbers too; the export is read as the same layer."""
    data = flattened([node(kind, ["x"], ["y"])], (2, 3))
    network = assert_agrees(data, scale=3.0)
    assert kinds(network)[0] == kind.lower()
    x = (np.random.default_rng(0).integers(-9, 10, (50, 2, 3)) / 2).astype(np.float32)
    again = import_onnx_bytes(export_onnx(network))
    with torch.no_grad():
        given = network(torch.from_numpy(x)).numpy()
        assert np.array_equal(given, again(torch.from_numpy(x)).numpy())
    assert np.array_equal(given, OnnxRuntimeModel(data, (2, 3))(x))


@pytest.mark.parametrize("moved", [0.1, -0.1, 0.999, 1.0, -1.0, 1.5])
def test_the_sign_of_a_sign_and_a_bit_is_one_step(moved: float) -> None:
    """Larq's: 1 at 0. A number of 1 or more moves signs onto 0, or beyond it."""
    nodes = [
        *(node("Sign", ["x"], ["s"]), node("Add", ["s", "c"], ["m"])),
        *(node("Sign", ["m"], ["t"]), node("Add", ["t", "t"], ["y"])),
    ]
    data = flattened(nodes, (3,), {"c": np.array(moved, np.float32)})
    network = assert_agrees(data)
    signs = [
        network.layer(n.name).config()
        for n in network.nodes
        if isinstance(network.layer(n.name), Sign)
    ]
    assert signs == ([{"at_zero": int(np.sign(moved))}] if abs(moved) < 1 else [{}, {}])
    x = np.array([[0.0, -0.0, 1e-45], [-1e-45, 2.0, -3.0]], np.float32)
    with torch.no_grad():
        given = network(torch.from_numpy(x)).numpy()
    assert np.array_equal(given, OnnxRuntimeModel(data, (3,))(x))
    again = import_onnx_bytes(export_onnx(network))
    assert kinds(again) == kinds(network)


def test_weights_that_the_file_rounds_are_taken() -> None:
    """Binarised and quantised weights, computed from others at every run of the file."""
    nodes = [
        *(node("Sign", ["w"], ["b"]), node("MatMul", ["x", "b"], ["h"])),
        *(node("Div", ["v", "s"], ["q"]), node("Round", ["q"], ["r"])),
        *(node("Mul", ["r", "s"], ["u"]), node("MatMul", ["h", "u"], ["y"])),
    ]
    constants = {"w": normal(0, 4, 5), "v": normal(1, 5, 3), "s": np.array(0.25, np.float32)}
    assert_agrees(flattened(nodes, (4,), constants))
