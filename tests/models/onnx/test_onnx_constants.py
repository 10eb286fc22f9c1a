"""Constants that a graph computes are the numbers that ONNX Runtime computes, or are refused."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from models.errors import ModelError
from models.layers.kinds import Shift
from models.network import Network
from models.onnx import constants as onnx_constants
from models.onnx.graph import Activation, Operation
from models.onnx.importer import import_onnx_bytes
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of, normal

node = helper.make_node
SMALLEST = -(2**63)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def shift_of(network: Network) -> Any:
    (layer,) = (x for x in network.layers.values() if isinstance(x, Shift))
    return layer.value.detach().numpy()


@pytest.mark.parametrize("start", [-1, 3, 4, 9, -4, -5, -9, 0, 2**31 - 1, 2**63 - 1])
@pytest.mark.parametrize("end", [-5, -9, SMALLEST, 0, -1])
@pytest.mark.parametrize("step", [-1, -2, -3])
def test_backward_slices(start: int, end: int, step: int) -> None:
    """A start below -n is clamped to the first place, not to before it."""
    constants = {"c": normal(0, 4), "s": ints(start), "e": ints(end), "a": ints(0),
                 "t": ints(step), "zero": np.zeros(1, np.float32)}  # fmt: skip
    nodes = [
        node("Slice", ["c", "s", "e", "a", "t"], ["part"]),
        node("Concat", ["part", "c"], ["all"], axis=0),
        node("Slice", ["all", "a", "four"], ["k"]),
        node("Add", ["x", "k"], ["y"]),
    ]
    assert_agrees(flattened(nodes, (4,), {**constants, "four": ints(4)}))


@pytest.mark.parametrize("noop", [0, 1])
@pytest.mark.parametrize("axes", [None, [], [0], [1]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_products_without_axes(noop: int, axes: list[int] | None, keepdims: int) -> None:
    given = [] if axes is None else ["axes"]
    nodes = [
        node("ReduceProd", ["c", *given], ["p"], noop_with_empty_axes=noop, keepdims=keepdims),
        node("Cast", ["p"], ["k"], to=TensorProto.FLOAT),
        node("Add", ["x", "k"], ["y"]),
    ]
    constants = {"c": np.array([[2, 3], [5, 7]], np.int64), "axes": ints(*(axes or ()))}
    assert_agrees(flattened(nodes, (2, 2), constants, opset=18))


@pytest.mark.parametrize("kind", ["Add", "Sub", "Concat", "Max", "Mul", "Div", "Gemm", "Conv"])
def test_flipped_constants(kind: str) -> None:
    """mean[::-1], as RGB becomes BGR."""
    flip = node("Slice", ["c", "start", "end", "axis", "step"], ["k"])
    constants = {"start": ints(-1), "end": ints(SMALLEST), "axis": ints(0), "step": ints(-1)}
    if kind == "Conv":
        constants["c"] = normal(0, 2, 3, 1, 1)
        made, shape = node("Conv", ["x", "k"], ["y"]), (3, 2, 2)
    else:
        rows = kind in ("Gemm", "Concat")
        constants["c"] = normal(0, *((1, 3) if kind == "Concat" else (3, 3) if rows else (3,)))
        attributes = {"axis": 1} if kind == "Concat" else {}
        made, shape = node(kind, ["x", "k"], ["y"], **attributes), (3,)
    assert_agrees(flattened([flip, made], shape, constants, batch=1), samples=1)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("Add", 2),
        ("Sub", 2),
        ("Mul", 2),
        ("Div", 2),
        ("Sqrt", 1),
        ("Max", 3),
        ("Min", 3),
        ("Neg", 1),
    ],
)
def test_the_numbers_are_the_deployed_ones_bit_for_bit(kind: str, count: int) -> None:
    constants = {f"c{i}": np.abs(normal(i, 5)) + np.float32(0.1) for i in range(count)}
    computed = node(kind, list(constants), ["k"])
    network = import_onnx_bytes(
        flattened([computed, node("Add", ["x", "k"], ["y"])], (5,), constants)
    )
    session = onnx_constants.open_session(
        graph_of([computed, node("Mul", ["x", "zero"], ["o"]), node("Add", ["o", "k"], ["y"])],
                 (5,), {**constants, "zero": np.zeros(5, np.float32)}).SerializeToString()
    )  # fmt: skip
    (expected,) = session.run(None, {"x": np.ones((1, 5), np.float32)})
    assert np.array_equal(shift_of(network), expected[0])


@pytest.mark.parametrize("opset", [9, 10, 11])
def test_negative_axes_of_old_opsets(opset: int) -> None:
    """The standard's inference leaves such a shape open, which is not the shape of one number."""
    constants = {"c": normal(0, 2, 3), "d": normal(1, 2, 1), "axis": ints(-1)}
    cut = node("Slice", ["all"], ["k"], starts=[1], ends=[9], axes=[-1])
    if opset > 9:
        cut = node("Slice", ["all", "one", "nine", "axis"], ["k"])
        constants |= {"one": ints(1), "nine": ints(9)}
    nodes = [
        node("Concat", ["c", "d"], ["all"], axis=-1),
        cut,
        node("Add", ["x", "k0"], ["y"]),
    ]
    nodes.insert(2, node("Unsqueeze", ["k"], ["k0"], axes=[0]))
    assert_agrees(flattened(nodes, (2, 3), constants, opset=opset))


def test_no_session_without_computed_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(onnx_constants, "open_session", never)
    nodes = [
        node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0]),
        node("Identity", ["w"], ["w2"]),
        node("Gemm", ["x", "w2", "b"], ["y"]),
    ]
    import_onnx_bytes(flattened(nodes, (4,), {"w": normal(0, 4, 3)}))


def test_nodes_of_one_form_share_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = onnx_constants.open_session
    monkeypatch.setattr(onnx_constants, "open_session", lambda m: opened.append(m) or real(m))
    nodes = [node("Neg", [f"c{i}"], [f"c{i + 1}"], name=f"n{i}") for i in range(100)]
    data = flattened([*nodes, node("Add", ["x", "c100"], ["y"])], (4,), {"c0": normal(0, 4)})
    assert torch.equal(
        torch.from_numpy(shift_of(import_onnx_bytes(data))), torch.from_numpy(normal(0, 4))
    )
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("computed", "constants", "code"),
    [
        # What would end the process.
        (node("Div", ["a", "b"], ["k"]), {"a": ints(1), "b": ints(0)}, "invalid_onnx"),
        (node("Div", ["a", "b"], ["k"]), {"a": ints(SMALLEST), "b": ints(-1)}, "invalid_onnx"),
        (node("Div", ["a", "b"], ["k"]),
         {"a": np.array([-(2**31)], np.int32), "b": np.array([-1], np.int32)}, "invalid_onnx"),
        # What would fill the memory.
        (node("ReduceProd", ["a"], ["k"], axes=[0], keepdims=0),
         {"a": np.zeros((0, 2**40), np.int64)}, "model_too_large"),
        (node("Expand", ["a", "b"], ["k"]), {"a": ints(1), "b": ints(2**40)}, "model_too_large"),
        (node("Expand", ["a", "b"], ["k"]), {"a": ints(1), "b": ints(2**31, 2**31)},
         "model_too_large"),
        (node("Expand", ["a", "b"], ["k"]), {"a": ints(1), "b": ints(-1)}, "invalid_onnx"),
        (node("ConstantOfShape", ["b"], ["k"]), {"b": ints(2**33)}, "model_too_large"),
        (node("Gather", ["a", "b"], ["k"]),
         {"a": normal(0, 1, 70_000), "b": np.zeros(70_000, np.int64)}, "model_too_large"),
        (node("Range", ["a", "b", "c"], ["k"]),
         {"a": np.array(0), "b": np.array(2**50), "c": np.array(1)}, "model_too_large"),
        (node("Range", ["a", "b", "c"], ["k"]),
         {"a": np.array(0), "b": np.array(5), "c": np.array(0)}, "invalid_onnx"),
        (node("Range", ["a", "b", "c"], ["k"]),
         {"a": np.array(SMALLEST), "b": np.array(2**63 - 1), "c": np.array(2**62)},
         "invalid_onnx"),
        (node("ScatterND", ["a", "b", "c"], ["k"]),
         {"a": normal(0, 4), "b": ints(4).reshape(1, 1), "c": normal(1, 1)}, "invalid_onnx"),
        (node("ScatterElements", ["a", "b", "c"], ["k"]),
         {"a": normal(0, 4), "b": ints(-5), "c": normal(1, 1)}, "invalid_onnx"),
        (node("GatherND", ["a", "b"], ["k"]),
         {"a": normal(0, 4), "b": ints(9).reshape(1, 1)}, "invalid_onnx"),
        (node("GatherND", ["a", "b"], ["k"]),
         {"a": normal(0, 1, 70_000), "b": np.zeros((70_000, 1), np.int64)}, "model_too_large"),
        (node("Einsum", ["a", "b"], ["k"], equation="i,j->ij"),
         {"a": normal(0, 70_000), "b": normal(1, 70_000)}, "model_too_large"),
        (node("NonZero", ["a"], ["k"]), {"a": np.array(1.0, np.float32)}, "invalid_onnx"),
        # What depends on the order of operations or on the processor.
        (node("ScatterND", ["a", "b", "c"], ["k"]),
         {"a": normal(0, 4), "b": ints(1, -3).reshape(2, 1), "c": normal(1, 2)},
         "unsupported_operator"),
        (node("ScatterElements", ["a", "b", "c"], ["k"]),
         {"a": normal(0, 4), "b": ints(2, 2), "c": normal(1, 2)}, "unsupported_operator"),
        (node("Einsum", ["a", "b"], ["k"], equation="ij,jk->ik"),
         {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}, "unsupported_operator"),
        (node("ReduceSum", ["a"], ["k"]), {"a": normal(0, 4)}, "unsupported_operator"),
        (node("Sin", ["a"], ["k"]), {"a": np.full(4, 1e4, np.float32)}, "invalid_onnx"),
        (node("Conv", ["a", "b"], ["k"]),
         {"a": normal(0, 1, 1, 4, 4), "b": normal(1, 1, 1, 2, 2)}, "unsupported_operator"),
        (node("ReduceProd", ["a"], ["k"]), {"a": normal(0, 4)}, "unsupported_dtype"),
        (node("Range", ["a", "b", "c"], ["k"]),
         {n: np.array(v, np.float32) for n, v in zip("abc", (0, 1, 0.1), strict=True)},
         "unsupported_dtype"),
        (node("Cast", ["a"], ["k"], to=TensorProto.INT64), {"a": np.array([1e30], np.float32)},
         "non_finite_weights"),
        (node("Cast", ["a"], ["k"], to=TensorProto.DOUBLE), {"a": normal(0, 1)},
         "unsupported_dtype"),
        # What ONNX Runtime refuses.
        (node("Gather", ["a", "b"], ["k"]), {"a": normal(0, 4), "b": ints(4)}, "invalid_onnx"),
        (node("Add", ["a", "b"], ["k"]), {"a": normal(0, 4), "b": ints(4)}, "invalid_onnx"),
        (node("Add", ["a", "b"], ["k"]), {"a": normal(0, 4), "b": normal(0, 3)}, "invalid_onnx"),
        (node("Reshape", ["a", "b"], ["k"]), {"a": normal(0, 4), "b": ints(3)}, "invalid_onnx"),
        (node("Unsqueeze", ["a"], ["k"], axes=list(range(70))), {"a": normal(0, 1)},
         "invalid_onnx"),
        (node("Relu", ["a"], ["k"]), {"a": normal(0, 1)}, "unsupported_operator"),
    ],
)  # fmt: skip
def test_refused_before_it_runs(computed: NodeProto, constants: dict[str, Any], code: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(
            flattened([computed, node("Add", ["x", "k"], ["y"])], (4,), constants, opset=12)
        )
    assert caught.value.code == code, caught.value
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize("start", [None, -9, -3, -1, 0, 1, 3, 9])
@pytest.mark.parametrize("end", [None, -9, -1, 0, 2, 9])
def test_shapes_of_activations(start: int | None, end: int | None) -> None:
    """The one constant that is not ONNX Runtime's, as it mentions the batch: compared with it."""
    given = {k: v for k, v in (("start", start), ("end", end)) if v is not None}
    model = graph_of([node("Shape", ["x"], ["y"], **given)], (4, 5), opset=15)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    session = onnx_constants.open_session(model.SerializeToString())
    (expected,) = session.run(None, {"x": np.zeros((7, 4, 5), np.float32)})
    operation = Operation.read(model.graph.node[0], 0, 15, {"x": Activation("input", (4, 5))})
    shape = onnx_constants.shape_of(operation, (7, 8))
    assert np.array_equal(shape.value, expected)
    assert np.array_equal(shape.other, np.where(expected == 7, 8, expected))


def test_a_bias_that_beta_leaves_out_must_fit_all_the_same() -> None:
    """ONNX Runtime refuses the file."""
    constants = {"w": normal(0, 4, 3), "c": normal(1, 2)}
    with pytest.raises(ModelError, match="does not fit"):
        import_onnx_bytes(
            flattened([node("Gemm", ["x", "w", "c"], ["y"], beta=0.0)], (4,), constants)
        )


def test_automatic_padding_beside_dilations_is_refused() -> None:
    """So does ONNX Runtime, but only when the file is run."""
    made = node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", dilations=[2, 2])
    with pytest.raises(ModelError, match="dilations") as caught:
        import_onnx_bytes(flattened([made], (1, 6, 6), {"w": normal(0, 2, 1, 3, 3)}))
    assert caught.value.code == "unsupported_operator"


@pytest.mark.parametrize(
    ("made", "opset"),
    [
        (node("Split", ["x"], ["y", ""], axis=1), 13),
        (node("Split", ["x"], ["y", "", "z"], axis=1), 9),
        (node("Split", ["x"], ["", "y"], axis=1), 13),
        (node("Dropout", ["x"], ["", "y"]), 13),
        (node("Split", ["c"], ["k", ""], axis=0), 13),
    ],
)
def test_outputs_without_a_name(made: NodeProto, opset: int) -> None:
    """ONNX Runtime dies of some of them."""
    nodes = [made, *([] if "y" in made.output else [node("Add", ["x", "k"], ["y"])])]
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (6, 6, 6), {"c": normal(0, 6)}, opset=opset))
    assert caught.value.code == "invalid_onnx"


@pytest.mark.parametrize(
    "made",
    [
        node("MaxPool", ["x"], [""], kernel_shape=[1, 1]),
        node("Identity", ["x"], [""]),
        node("Relu", ["x"], []),
    ],
)
def test_a_node_without_any_name_is_cut_away_before_it_can_run(made: NodeProto) -> None:
    assert_agrees(flattened([made, node("Relu", ["x"], ["y"])], (6, 6, 6)))


@pytest.mark.parametrize(
    "made",
    [
        node("Dropout", ["x"], ["y", ""]),
        node("Dropout", ["x"], ["y", "mask"]),
        node("MaxPool", ["x"], ["y", ""], kernel_shape=[2, 2]),
    ],
)
def test_optional_outputs_may_be_left_out(made: NodeProto) -> None:
    assert_agrees(flattened([made], (2, 4, 4)))


def test_zeros_that_are_replaced_are_what_onnx_runtime_computes() -> None:
    """As torch writes ``t[t == 0] = 0`` (orthogonium's SDPBasedLipschitzDense), with zeros and
    without any; the numbers of zeros that it counts, and products of all pairs."""
    for values in (normal(0, 6), np.array([1, 0, 2, 0, 0, 3], np.float32)):
        count = int((values == 0).sum())
        nodes = [
            node("Equal", ["t", "zero"], ["eq"]),
            node("NonZero", ["eq"], ["at"]),
            node("Transpose", ["at"], ["rows"], perm=[1, 0]),
            node("Cast", ["eq"], ["ones"], to=TensorProto.INT64),
            node("ReduceSum", ["ones", "axes"], ["count"], keepdims=1),
            node("Expand", ["seven", "count"], ["new"]),
            node("ScatterND", ["t", "rows", "new"], ["k"]),
            node("Einsum", ["k", "t"], ["outer"], equation="i,j->ij"),
            node("Add", ["x", "outer"], ["y"]),
        ]
        constants = {"t": values, "zero": np.float32(0), "seven": np.float32(7)}
        constants |= {"axes": ints(0)}
        network = assert_agrees(flattened(nodes, (6, 6), constants, opset=18))
        replaced = np.where(values == 0, np.float32(7), values)
        assert np.array_equal(shift_of(network), np.outer(replaced, values))
        assert (replaced == 7).sum() == count
