"""Greater, Less and Where are activations where they do not jump; places that are taken twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper

from models.errors import ModelError
from models.network import Network
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, normal

node = helper.make_node
ZERO = {"zero": np.array(0, np.float32)}


def kinds(network: Network) -> list[str]:
    found = [network.layer(row.name).kind for row in network.nodes]
    return [kind for kind in found[:-1] if kind != "reshape"]


def number(value: float) -> Any:
    return np.array(value, np.float32)


@pytest.mark.parametrize("operator", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("slope", [0.1, -0.4, 1.7])
def test_two_slopes_are_what_onnx_runtime_computes(
    operator: str, turned: bool, slope: float
) -> None:
    """torch.where(x > 0, x, slope * x), however the comparison is written."""
    above = operator.startswith("Greater") is not turned
    sides = ["x", "s"] if above else ["s", "x"]
    nodes = [
        node(operator, ["zero", "x"] if turned else ["x", "zero"], ["c"]),
        node("Mul", ["x", "slope"], ["s"]),
        node("Where", ["c", *sides], ["y"]),
    ]
    data = flattened(nodes, (3, 4), {**ZERO, "slope": number(slope)}, opset=18)
    found = kinds(assert_agrees(data, samples=8))
    assert found[-1] == "leaky-relu" if 0 <= slope <= 1 else "add" in found


@pytest.mark.parametrize("operator", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("bound", [0.5, -0.25, 3.0])
def test_what_is_beyond_a_number_is_cut_at_it(operator: str, bound: float) -> None:
    """One half of a soft shrinkage; the number taken off must be the one compared with."""
    above = operator.startswith("Greater")
    for sides, kind in ((["d", "zero"], "relu" if above else "clip"), (["zero", "d"], "")):
        kind = kind or ("clip" if above else "relu")
        nodes = [
            *(node(operator, ["x", "c"], ["at"]), node("Sub", ["x", "off"], ["d"])),
            node("Where", ["at", *sides], ["y"]),
        ]
        constants = {**ZERO, "c": number(bound), "off": number(bound)}
        network = assert_agrees(flattened(nodes, (40,), constants, opset=18), samples=20)
        assert kinds(network) == ["shift", kind]
        constants["off"] = np.nextafter(number(bound), number(9.0))
        with pytest.raises(ModelError, match="jump"):
            import_onnx_bytes(flattened(nodes, (40,), constants, opset=18))


@pytest.mark.parametrize("alpha", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("form", ["plain", "factor", "multiplied out"])
def test_an_exponential_below_0_is_an_elu(form: str, alpha: float) -> None:
    exp, chosen = node("Exp", ["x"], ["e"]), node("Greater", ["x", "zero"], ["c"])
    less = node("Sub", ["e", "one"], ["b"])
    below = {
        "plain": [less],
        "factor": [node("Sub", ["e", "one"], ["f"]), node("Mul", ["f", "alpha"], ["b"])],
        "multiplied out": [node("Mul", ["e", "alpha"], ["f"]), node("Sub", ["f", "alpha"], ["b"])],
    }[form]
    nodes = [exp, *below, chosen, node("Where", ["c", "x", "b"], ["y"])]
    constants = {**ZERO, "one": number(1.0), "alpha": number(alpha)}
    for scale in (1.0, 200.0):
        network = assert_agrees(flattened(nodes, (40,), constants), samples=9, scale=scale)
        assert kinds(network) == ["elu"]
    # Another number than alpha jumps at 0.
    constants["one" if form != "multiplied out" else "alpha"] = number(1.25)
    if form == "multiplied out":
        nodes[2] = node("Sub", ["f", "zero"], ["b"])
    with pytest.raises(ModelError, match="jump"):
        import_onnx_bytes(flattened(nodes, (40,), constants))


def test_a_relu_and_two_other_slopes() -> None:
    chosen = node("Greater", ["x", "zero"], ["c"])
    relu = flattened([chosen, node("Where", ["c", "x", "zero"], ["y"])], (6,), ZERO)
    assert kinds(assert_agrees(relu, samples=8)) == ["relu"]
    scaled = [node("Mul", ["x", name], [f"{name}x"]) for name in ("a", "b")]
    both = [chosen, *scaled, node("Where", ["c", "ax", "bx"], ["y"])]
    constants = {**ZERO, "a": number(2.5), "b": number(-0.3)}
    assert_agrees(flattened(both, (6,), constants), samples=8)


@pytest.mark.parametrize("beta", [1.0, 2.0, 0.3])
def test_a_softplus_as_torch_writes_it(beta: float) -> None:
    """Above its threshold it is its argument to within a rounding: the choice makes no layer."""
    plain = beta == 1.0
    z = "x" if plain else "z"
    nodes: list[NodeProto] = [] if plain else [node("Mul", ["x", "beta"], ["z"])]
    nodes.append(node("Softplus", [z], ["s"]))
    nodes += [] if plain else [node("Div", ["s", "beta"], ["t"])]
    nodes.append(node("Greater", [z, "threshold"], ["c"]))
    nodes.append(node("Where", ["c", "x", "s" if plain else "t"], ["y"]))
    constants = {"threshold": number(20)} | ({} if plain else {"beta": number(beta)})
    network = assert_agrees(flattened(nodes, (40,), constants), samples=8, scale=30.0)
    assert kinds(network) == (["softplus"] if plain else ["multiply", "softplus", "divide"])
    constants["threshold"] = number(5)
    with pytest.raises(ModelError, match="may jump"):
        import_onnx_bytes(flattened(nodes, (40,), constants))


@pytest.mark.parametrize(
    "nodes",
    [
        # A threshold that is not 0, a value that is not 0 at 0, a comparison as a number.
        [node("Greater", ["x", "one"], ["c"]), node("Where", ["c", "x", "zero"], ["y"])],
        [node("Greater", ["x", "zero"], ["c"]), node("Where", ["c", "x", "one"], ["y"])],
        [node("Greater", ["x", "zero"], ["c"]), node("Add", ["x", "one"], ["a"]),
         node("Where", ["c", "a", "x"], ["y"])],
        [node("Greater", ["x", "zero"], ["c"]), node("Where", ["c", "one", "many"], ["y"])],
        [node("Greater", ["x", "many"], ["c"]), node("Where", ["c", "x", "zero"], ["y"])],
        [node("Neg", ["x"], ["n"]), node("Greater", ["x", "n"], ["c"]),
         node("Where", ["c", "x", "n"], ["y"])],
    ],
)  # fmt: skip
def test_a_choice_that_may_jump_is_refused_with_what_to_write(nodes: list[NodeProto]) -> None:
    constants = {**ZERO, "one": number(1), "many": normal(0, 6)}
    used = {name for row in nodes for name in row.input}
    kept = {name: value for name, value in constants.items() if name in used}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (6,), kept))
    assert caught.value.code == "unsupported_operator"
    assert "relu" in caught.value.hint or "input" in str(caught.value)


@settings(max_examples=examples(25), deadline=None)
@given(st.data())
def test_values_by_a_constant_condition(data: st.DataObject) -> None:
    """masked_fill with a fixed mask: of two activations, or of one and numbers."""
    shapes = st.sampled_from([(1, 3, 4), (3, 4), (4,), (1, 1, 1), (3, 1), ()])
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    constants: dict[str, Any] = {"mask": rng.random(data.draw(shapes)) < 0.5}
    sides = data.draw(st.sampled_from([["x", "n"], ["x", "c"], ["c", "x"], ["n", "c"]]))
    if "c" in sides:
        constants["c"] = rng.standard_normal(data.draw(shapes)).astype(np.float32)
    nodes = [node("Neg", ["x"], ["n"])] if "n" in sides else []
    nodes.append(node("Where", ["mask", *sides], ["y"]))
    assert_agrees(flattened(nodes, (3, 4), constants), samples=3)


def test_rows_by_a_condition_are_refused() -> None:
    constants = {"mask": np.array([True, False]).reshape(2, 1, 1), "c": number(1)}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened([node("Where", ["mask", "x", "c"], ["y"])], (3, 4), constants))
    assert caught.value.code == "batch_dependent"


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_places_that_are_taken_twice(axis: int) -> None:
    constants = {"p": np.array([[1, 0], [1, -1]], np.int64)}
    made = node("Gather", ["x", "p"], ["y"], axis=axis)
    assert_agrees(flattened([made], (3, 2, 4), constants), samples=3)


@pytest.mark.parametrize("depth", [1, 2])
def test_windows_of_uneven_size_as_torch_writes_them(depth: int) -> None:
    """An adaptive pool: places of height and width gathered behind which the batch comes."""
    rng = np.random.default_rng(depth)
    places = rng.integers(-3, 3, (5, 2, depth))
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[2, 3, 0, 1]),
        node("GatherND", ["t", "places"], ["g"]),
        node("Transpose", ["g"], ["y"], perm=[4, 3, 0, 1, 2] if depth == 1 else [2, 3, 1, 0]),
    ]
    if depth == 1:
        nodes[2] = node("Transpose", ["g"], ["y"], perm=[3, 4, 0, 1, 2])
    assert_agrees(flattened(nodes, (2, 3, 3), {"places": places}), samples=3)


def test_rows_of_a_batch_are_not_gathered() -> None:
    constants = {"places": np.zeros((2, 1), np.int64)}
    turned = node("Transpose", ["x"], ["t"], perm=[1, 0, 2])
    deep = {"places": np.zeros((2, 2), np.int64)}
    for nodes, given_ in (
        ([node("GatherND", ["x", "places"], ["y"])], constants),
        ([turned, node("GatherND", ["t", "places"], ["y"])], deep),
    ):
        with pytest.raises(ModelError) as caught:
            import_onnx_bytes(flattened(nodes, (3, 4), given_))
        assert caught.value.code == "batch_dependent"


@pytest.mark.parametrize("bound", [0.0, 0.5])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_a_truth_and_a_choice_between_two_numbers_are_steps(
    kind: str, turned: bool, bound: float
) -> None:
    """At the bound itself too, zeros of either sign, and a number beside it."""
    compared = node(kind, ["bound", "x"] if turned else ["x", "bound"], ["c"])
    beside = [np.nextafter(number(bound), number(end)) for end in (-9.0, 9.0)]
    x = np.array([[bound, -bound, *beside, 3.0, -3.0]], np.float32)
    constants = {"bound": number(bound), "a": number(1.0), "b": number(-3.0), "c": number(0.7)}
    for last, used in (
        (node("Cast", ["c"], ["y"], to=TensorProto.FLOAT), ()),
        (node("Where", ["c", "a", "b"], ["y"]), ("a", "b")),
    ):
        given = {name: constants[name] for name in ("bound", *used)}
        data = flattened([compared, last], (6,), given)
        network = assert_agrees(data, samples=5)
        assert "sign" in kinds(network)
        with torch.no_grad():
            ours = network(torch.from_numpy(x)).numpy()
        assert np.array_equal(ours, OnnxRuntimeModel(data, (6,))(x))
    odd = {"bound": number(bound), "a": number(1.0), "b": number(1e-9)}
    with pytest.raises(ModelError, match="jump"):
        import_onnx_bytes(flattened([compared, node("Where", ["c", "a", "b"], ["y"])], (6,), odd))
