"""ONNX files: what is named, declared or connected is not what it seems."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.e2e.hostile.case import Case, Part
from tests.models.onnx.external_data import good, in_function, in_initializer, in_sparse_indices
from tests.models.onnx.graphs import graph_of, normal
from tests.service.uploads_by_hand import npz, onnx_model

__all__ = ["graphs", "overflowing"]

node = helper.make_node
RELU = node("Relu", ["x"], ["y"])


def graphs() -> Iterator[Case]:
    """Files that only a worker can refuse, and a few whose first bytes tell."""
    for name, codes, model in [*_outside(), *_large(), *_wrong(), *_foreign()]:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        part = Part(b"model", data, b"a.onnx")
        yield Case(f"onnx {name}", codes, model=part, deep=name in _DEEP)


_DEEP = {
    "external data in_initializer",
    "Gemm 1e9 x 1e9",
    "Tile 1e9",
    "Concat doubled 60 times",
    "Reshape to 2^60",
    "input of 2^40",
    "Conv of stride 0",
    "Conv of 1e12 products",
    "5001 nodes",
    "Split into 1e5",
    "operator that is no UTF-8",
    "inf weight",
    "missing initialiser",
    "name defined twice",
    "output from nowhere",
    "opset 0",
    "operator with odd bytes",
    "operator :If",
    "operator com.microsoft:Gelu",
    "function that replaces Gemm",
    "graph of noise",
    "no node",
    "tensor of texts",
}
Row = tuple[str, set[str], ModelProto | bytes]


def _outside() -> Iterator[Row]:
    places = (in_initializer, in_sparse_indices, in_function)
    targets = ("/etc/passwd", "../../../../etc/passwd", "weights\0.bin")
    for place, target in zip(places, targets, strict=True):
        model = good()
        place(model, target)
        yield f"external data {place.__name__}", {"external_data"}, model


def _large() -> Iterator[Row]:
    too_large = {"model_too_large", "invalid_onnx"}
    model = good()
    model.graph.initializer[0].dims[:] = [10**9, 10**9]
    yield "Gemm 1e9 x 1e9", {"invalid_onnx"}, model
    constants = {
        "s": np.array([2**30, 2**30], np.int64),
        "c0": normal(0, 8),
        "one": normal(0, 1, 1),
        "many": np.array([10**9], np.int64),
    }

    def folded(*nodes: NodeProto) -> ModelProto:
        """What the last node makes is needed: nodes that no output needs are cut away."""
        needed = [node("Add", ["x", nodes[-1].output[0]], ["k"]), node("Relu", ["k"], ["y"])]
        return graph_of([*nodes, *needed], (4,), constants)

    yield "ConstantOfShape 2^60", too_large, folded(node("ConstantOfShape", ["s"], ["c"]))
    yield "Expand 2^60", too_large, folded(node("Expand", ["one", "s"], ["c"]))
    yield "Tile 1e9", too_large, folded(node("Tile", ["c0", "many"], ["c"]))
    doubling = [node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(60)]
    yield "Concat doubled 60 times", too_large, folded(*doubling)
    reshaped = graph_of([node("Reshape", ["x", "s"], ["r"]), RELU], (4,), constants)
    sizes = {"batch_dependent", "shape_mismatch", "invalid_onnx", *too_large}
    yield "Reshape to 2^60", sizes, reshaped
    yield "input of 2^40", {"model_too_large"}, graph_of([RELU], (2**40,))
    weight = {"w": normal(0, 2, 3, 3, 3)}
    padded = [node("Conv", ["x", "w"], ["y"], pads=[10**9] * 4)]
    yield "Conv padded by 1e9", {"model_too_large"}, graph_of(padded, (3, 8, 8), weight)
    stridden = [node("Conv", ["x", "w"], ["y"], strides=[0, 0])]
    yield (
        "Conv of stride 0",
        {"unsupported_operator"},
        graph_of(stridden, (3, 8, 8), weight),
    )
    work = {"w": normal(0, 512, 64, 9, 9)}
    heavy = [node("Conv", ["x", "w"], ["y"], pads=[4] * 4)]
    yield "Conv of 1e12 products", {"model_too_large"}, graph_of(heavy, (64, 900, 900), work)
    yield "5001 nodes", {"model_too_large"}, graph_of([RELU] * 5001, (4,))
    split = [node("Split", ["x"], [f"y{i}" for i in range(100_000)], axis=1)]
    yield (
        "Split into 1e5",
        {"model_too_large", "shape_mismatch", "invalid_onnx", "invalid_network"},
        graph_of(split, (100_000,), output="y0"),
    )


def _wrong() -> Iterator[Row]:
    for value in (np.nan, np.inf):
        weight = normal(0, 4, 3)
        weight[1, 2] = value
        gemm = graph_of([node("Gemm", ["x", "w"], ["y"])], (4,), {"w": weight})
        yield f"{value} weight", {"non_finite_weights"}, gemm
    broken = {"invalid_onnx", "invalid_network", "unknown_tensor"}
    cycle = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    yield "cycle", broken, graph_of(cycle, (4,))
    model = good()
    del model.graph.initializer[0]
    yield "missing initialiser", broken, model
    model = good()
    model.graph.initializer.append(numpy_helper.from_array(normal(0, 3), "b"))
    yield "name defined twice", {"invalid_onnx"}, model
    model = good()
    model.graph.output[0].name = "nowhere"
    yield "output from nowhere", broken, model
    for opset in (0, 999):
        model = good()
        model.opset_import[0].version = opset
        yield f"opset {opset}", {"unsupported_opset"}, model
    model = good()
    model.graph.node[0].op_type = "Ge\udcffmm".encode("utf-8", "surrogateescape").decode("latin-1")
    yield "operator with odd bytes", {"unsupported_operator"}, model
    data = good().SerializeToString().replace(b"Gemm", b"Ge\xff\xfe")
    yield "operator that is no UTF-8", {"invalid_onnx", "unsupported_operator"}, data


def overflowing() -> bytes:
    """A network of finite weights whose logits are infinite."""
    huge = {"w": np.full((36, 3), 3e38, np.float32), "v": np.full((3, 3), 3e38, np.float32)}
    layers = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["h"])]
    last = node("Gemm", ["h", "v"], ["y"])
    return graph_of([*layers, last], (1, 6, 6), huge).SerializeToString()


def _foreign() -> Iterator[Row]:
    inner = graph_of([node("Relu", ["x"], ["q"])], (3,), output="q").graph
    unsupported = {"unsupported_operator"}
    for bad in (
        node("Loop", ["n", "c"], ["z"], body=inner),
        node("If", ["y"], ["z"], then_branch=inner, else_branch=inner),
        node("Gelu", ["y"], ["z"], domain="com.microsoft"),
        node("Relu", ["y"], ["z"], domain="own.ops"),
    ):
        model = good()
        model.graph.node.append(bad)
        model.graph.output[0].name = "z"
        yield f"operator {bad.domain}:{bad.op_type}", unsupported, model
    model = good()
    body = [node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 13)]
    model.functions.append(helper.make_function("", "Gemm", ["a"], ["b"], body, opsets))
    yield "function that replaces Gemm", unsupported, model
    yield "nested 500 deep", {"invalid_onnx", *unsupported}, _nested(500)
    yield (
        "graph of noise",
        {"invalid_onnx"},
        bytes([0x3A, 100]) + np.random.default_rng(0).bytes(100),
    )
    whole = good().SerializeToString()
    yield "cut off", {"invalid_onnx"}, whole[: len(whole) // 2]
    yield "claims 2 GB", {"invalid_onnx"}, b"\x3a\xff\xff\xff\xff\x07" + b"x" * 10
    yield "a million fields", {"invalid_onnx"}, b"\x08\x08" * 1_000_000
    yield "no node", {"invalid_onnx"}, onnx_model()
    yield "two graphs", {"invalid_onnx"}, whole * 2
    yield "an npz", {"invalid_onnx"}, npz()
    yield "empty", {"empty_file"}, b""
    model = good()
    text = TensorProto(name="t", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])
    model.graph.initializer.append(text)
    # Nothing reads it: the data, which do not fit, are what is refused.
    yield "tensor of texts", {"shape_mismatch"}, model


def _nested(depth: int) -> bytes:
    """A node with a graph attribute with a node with a graph attribute, made without recursion."""
    graph = b""
    for _ in range(depth):
        attribute = _field(6, graph) + b"\xa0\x01" + bytes([AttributeProto.GRAPH])
        graph = _field(1, _field(4, b"If") + _field(5, attribute))
    return _field(7, graph) + _field(8, b"\x10\x0d")


def _field(number: int, data: bytes) -> bytes:
    length, head = len(data), bytearray([number << 3 | 2])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + data
