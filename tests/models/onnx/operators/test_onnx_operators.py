"""Dense and elementwise operators and small graphs: import = ONNX Runtime, however written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models.errors import ModelError
from models.layers.kinds import Linear
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of, normal

node = helper.make_node
OPSETS = st.sampled_from([7, 8, 9, 11, 13, 15, 17, 19, 20, 21, 23, 25, 26])


@settings(max_examples=examples(40), deadline=None)
@given(
    OPSETS,
    st.booleans(),
    st.sampled_from([1.0, 2.0, 0.25, -1.0]),
    st.sampled_from([1.0, 0.0, 0.3, -2.0]),
    st.sampled_from([None, (), (1,), (5,), (1, 5), (1, 1)]),
    st.sampled_from(["N", 1]),
)
def test_gemm(
    opset: int,
    trans_b: bool,
    alpha: float,
    beta: float,
    bias: tuple[int, ...] | None,
    batch: int | str,
) -> None:
    constants = {"w": normal(0, 5, 7) if trans_b else normal(0, 7, 5)}
    if bias is not None or opset < 11:
        constants["c"] = normal(1, *(bias or ()))
    gemm = node("Gemm", ["x", *constants], ["y"], transB=int(trans_b), alpha=alpha, beta=beta)
    network = assert_agrees(flattened([gemm], (7,), constants, opset=opset, batch=batch))
    assert isinstance(network.layer(network.nodes[0].name), Linear)


def test_gemm_whose_sums_overflow_before_the_factor() -> None:
    """ONNX Runtime multiplies sums by alpha: one that overflows stays infinite."""
    constants = {"w": np.full((2, 5), 3e38, np.float32), "c": normal(1, 5)}
    gemm = node("Gemm", ["x", "w", "c"], ["y"], alpha=2.0**-20)
    data = flattened([gemm], (2,), constants)
    x = np.full((1, 2), 0.8, dtype=np.float32)
    assert np.isinf(OnnxRuntimeModel(data, (2,))(x)).all()
    with torch.no_grad():
        assert bool(torch.isinf(import_onnx_bytes(data)(torch.from_numpy(x))).all())


def test_gemm_whose_products_underflow_before_the_factor() -> None:
    """Exact or not, a large factor would scale up what underflow lost in the sums."""
    constants = {"w": np.full((2, 5), 2.0**-149, np.float32)}
    with pytest.raises(ModelError, match="alpha"):
        import_onnx_bytes(
            flattened([node("Gemm", ["x", "w"], ["y"], alpha=2.0**126)], (2,), constants)
        )


def test_gemm_with_an_inexact_factor_is_refused() -> None:
    """alpha = 0.3 rounds sums of stretches, which may cancel: with C and without."""
    constants = {"w": normal(0, 7, 3), "c": normal(1, 3)}
    for inputs in (["x", "w"], ["x", "w", "c"]):
        with pytest.raises(ModelError, match="alpha"):
            import_onnx_bytes(flattened([node("Gemm", inputs, ["y"], alpha=0.3)], (7,), constants))
    assert_agrees(flattened([node("Gemm", ["x", "w"], ["y"], alpha=0.25)], (7,), constants))


@settings(max_examples=examples(40), deadline=None)
@given(
    st.booleans(),
    st.sampled_from([(6,), (1, 6), (3, 6), (6, 1), (6, 4)]),
    st.booleans(),
    st.booleans(),
    OPSETS,
)
def test_matmul_and_bias(
    left: bool, shape: tuple[int, ...], bias: bool, swapped: bool, opset: int
) -> None:
    """W on either side, several places at once, and a bias that fuses where it can."""
    if left and (len(shape) == 1 or shape[0] != 6):
        shape = (6, shape[-1] if len(shape) > 1 else 1)
    if not left and shape[-1] != 6:
        shape = (shape[-1], 6)
    constants = {"w": normal(0, 5, 6) if left else normal(0, 6, 5)}
    nodes = [node("MatMul", ["w", "x"] if left else ["x", "w"], ["m" if bias else "y"])]
    if bias:
        constants["b"] = normal(1, 5, 1) if left else normal(1, 5)
        nodes.append(node("Add", ["b", "m"] if swapped else ["m", "b"], ["y"]))
    network = assert_agrees(flattened(nodes, shape, constants, opset=opset))
    kinds = [network.layer(n.name).kind for n in network.nodes]
    if np.prod(shape) == 6:
        assert kinds.count("linear") == 1
        assert "shift" not in kinds


def test_matmul_used_twice_keeps_its_addition_apart() -> None:
    constants = {"w": normal(0, 6, 5), "b": normal(1, 5)}
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Relu", ["m"], ["r"]),
        node("Add", ["a", "r"], ["y"]),
    ]
    network = assert_agrees(flattened(nodes, (6,), constants))
    assert "shift" in [network.layer(n.name).kind for n in network.nodes]


@settings(max_examples=examples(50), deadline=None)
@given(
    st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    st.booleans(),
    st.sampled_from([(), (1,), (4,), (3, 1), (2, 1, 1), (1, 2, 3, 4), (1, 1, 1, 4), (2, 3, 4)]),
    OPSETS,
)
def test_elementwise_with_a_constant(
    op: str, swapped: bool, shape: tuple[int, ...], opset: int
) -> None:
    constant = np.abs(normal(0, *shape)).astype(np.float32) + np.float32(0.5)
    data = flattened(
        [node(op, ["c", "x"] if swapped else ["x", "c"], ["y"])],
        (2, 3, 4),
        {"c": constant},
        opset=opset,
    )
    network = assert_agrees(data)
    reciprocal = any(network.layer(row.name).kind == "reciprocal" for row in network.nodes)
    assert reciprocal == (op == "Div" and swapped)


@pytest.mark.parametrize("ratio", [-0.5, 1.0, np.nan, [0.5]])
def test_a_dropout_that_no_runtime_takes_is_refused(ratio: Any) -> None:
    constants = {"ratio": np.array(ratio, np.float32)}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened([node("Dropout", ["x", "ratio"], ["y"])], (4,), constants))
    assert caught.value.code == "invalid_network"


@pytest.mark.parametrize("op", ["Add", "Sub"])
def test_two_activations(op: str) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node(op, ["x", "r"], ["y"])]
    assert_agrees(flattened(nodes, (2, 3)))
    assert_agrees(flattened([node("Relu", ["x"], ["r"]), node(op, ["r", "r"], ["y"])], (2, 3)))


@settings(max_examples=examples(25), deadline=None)
@given(st.sampled_from([9, 13, 14, 15, 21]), st.sampled_from([(3,), (3, 4, 5), (3, 6)]))
def test_batch_normalization(opset: int, shape: tuple[int, ...]) -> None:
    constants = {name: normal(i, 3) for i, name in enumerate("wbm")}
    constants["v"] = np.abs(normal(3, 3))
    bn = node("BatchNormalization", ["x", *"wbmv"], ["y"], epsilon=1e-3)
    assert_agrees(flattened([bn], shape, constants, opset=opset))


@pytest.mark.parametrize(
    ("variance", "epsilon", "code"),
    [
        (-1.0, 1e-3, "invalid_network"),
        (0.0, 0.0, "invalid_network"),
        (float("nan"), 1e-3, "non_finite_weights"),
        (float("inf"), 1e-3, "non_finite_weights"),
    ],
)
def test_batch_normalization_refused(variance: float, epsilon: float, code: str) -> None:
    constants = {name: normal(i, 2) for i, name in enumerate("wbm")}
    constants["v"] = np.array([1.0, variance], np.float32)
    bn = node("BatchNormalization", ["x", *"wbmv"], ["y"], epsilon=epsilon)
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened([bn], (2,), constants))
    assert caught.value.code == code


def test_identity_dropout_cast_and_constants() -> None:
    value = helper.make_tensor("v", TensorProto.FLOAT, [4], normal(0, 4).tolist())
    nodes = [
        node("Constant", [], ["c"], value=value),
        node("Constant", [], ["two"], value_float=2.0),
        node("Mul", ["c", "two"], ["d"]),
        node("Identity", ["x"], ["i"]),
        node("Dropout", ["i"], ["o"]),
        node("Cast", ["o"], ["f"], to=TensorProto.FLOAT),
        node("Add", ["f", "d"], ["y"]),
    ]
    assert_agrees(flattened(nodes, (4,), opset=13))


def test_tensorflow_layout() -> None:
    """An NHWC graph: Transpose, convolution, bias, pooling, and back before it is flattened."""
    constants = {
        "w": normal(0, 4, 3, 3, 3),
        "b": normal(1, 1, 4, 1, 1),
        "s": np.array([-1, 4 * 4 * 4], np.int64),
        "d": normal(2, 64, 10),
        "e": normal(3, 10),
        "mean": normal(4, 3),
    }
    nodes = [
        node("Sub", ["x", "mean"], ["x0"]),
        node("Transpose", ["x0"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"], auto_pad="SAME_UPPER", strides=[1, 1]),
        node("Add", ["c", "b"], ["cb"]),
        node("Relu", ["cb"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", ["p"], ["n"], perm=[0, 2, 3, 1]),
        node("Reshape", ["n", "s"], ["f"]),
        node("MatMul", ["f", "d"], ["m"]),
        node("Add", ["m", "e"], ["y"]),
    ]
    assert_agrees(flattened(nodes, (8, 8, 3), constants), samples=3)


def test_logits_with_trailing_axes() -> None:
    constants = {"w": normal(0, 5, 3, 4, 4)}
    data = graph_of([node("Conv", ["x", "w"], ["y"])], (3, 4, 4), constants).SerializeToString()
    network = assert_agrees(data)
    assert network.classes == 5


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([node("Transpose", ["x"], ["y"])], "batch_dependent"),
        ([node("Transpose", ["x"], ["y"], perm=[1, 0, 2])], "batch_dependent"),
        ([node("Flatten", ["x"], ["y"], axis=0)], "batch_dependent"),
        ([node("Flatten", ["x"], ["y"], axis=2)], "batch_dependent"),
        ([node("Reshape", ["x", "merge"], ["y"])], "batch_dependent"),
        ([node("Reshape", ["x", "wrong"], ["y"])], "shape_mismatch"),
        ([node("Squeeze", ["x"], ["y"])], "batch_dependent"),
        ([node("Unsqueeze", ["x"], ["y"], axes=[0])], "batch_dependent"),
        ([node("Add", ["x", "batch"], ["y"])], "batch_dependent"),
        ([node("Add", ["x", "wide"], ["y"])], "batch_dependent"),
        ([node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "square"], ["m"]),
          node("Add", ["m", "three"], ["y"])], "shape_mismatch"),
        ([node("Add", ["x", "nan"], ["y"])], "non_finite_weights"),
        ([node("Div", ["x", "zero"], ["y"])], "non_finite_weights"),
        ([node("LeakyRelu", ["x"], ["y"], alpha=float("nan"))], "non_finite_weights"),
        ([node("ArgMax", ["x"], ["y"])], "unsupported_operator"),
        ([node("Gather", ["x", "wrong"], ["y"])], "batch_dependent"),
        ([node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)], "unsupported_dtype"),
        ([node("Relu", ["nowhere"], ["y"])], "invalid_onnx"),
        ([node("Relu", ["y"], ["y"])], "invalid_onnx"),
        ([node("Relu", ["x"], ["x"])], "invalid_onnx"),
        ([node("Relu", ["x"], ["y"], alpha=1.0)], "invalid_onnx"),
        ([node("Relu", ["x", "x"], ["y"])], "invalid_onnx"),
        ([node("Dropout", ["x"], ["d", "mask"]), node("Add", ["x", "mask"], ["y"])],
         "invalid_onnx"),
        ([node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["f"], to=1),
          node("Gather", ["f", "first"], ["g"]), node("Div", ["x", "g"], ["y"])],
         "batch_dependent"),
    ],
)  # fmt: skip
def test_refused(nodes: list[Any], code: str) -> None:
    constants = {
        "merge": np.array([-1, 4], np.int64),
        "wrong": np.array([0, 5], np.int64),
        "batch": normal(0, 2, 3, 4),
        "wide": normal(0, 5, 1, 4),
        "nan": np.array(np.nan, np.float32),
        "zero": np.array([1, 0, 1, 1], np.float32),
        "first": np.array(0, np.int64),
        "square": normal(1, 12, 12),
        "three": normal(2, 3),
    }
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (3, 4), constants, opset=11))
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize("op", ["Max", "Min", "Sum"])
def test_what_does_not_broadcast_in_opset_7_is_refused(op: str) -> None:
    constants = {"c": np.array([0.5], np.float32)}
    with pytest.raises(ModelError, match="before opset 8") as caught:
        import_onnx_bytes(flattened([node(op, ["x", "c"], ["y"])], (4,), constants, opset=7))
    assert caught.value.code == "invalid_onnx"
    two = [node("Relu", ["x"], ["r"]), node(op, ["x", "r"], ["y"])]
    assert_agrees(flattened(two, (4,), opset=7))


@pytest.mark.parametrize("opset", [7, 8])
def test_batch_norm_of_old_opsets(opset: int) -> None:
    constants = {"s": normal(0, 3), "b": normal(1, 3), "m": normal(2, 3), "v": normal(3, 3) ** 2}
    made = node("BatchNormalization", ["x", *constants], ["y"], spatial=1)
    assert_agrees(flattened([made], (3, 2, 2), constants, opset=opset))
    made.attribute[0].i = 0
    with pytest.raises(ModelError, match="spatial") as caught:
        import_onnx_bytes(flattened([made], (3, 2, 2), constants, opset=opset))
    assert caught.value.code == "unsupported_operator"
