"""Graphs as other people's tools write them, made here node by node with random weights.

Two families: convolutional and dense networks as ``tf2onnx`` writes Keras models (channels last,
transposed around every convolution), and the geometries of the verification competitions' files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["competition_like", "keras_like"]

Array = NDArray[Any]


class Graph:
    """Grows a graph from one float32 input; every node's output is the next one's first input."""

    def __init__(self, shape: Sequence[int | str], *, name: str = "x", opset: int = 13) -> None:
        self.random = np.random.default_rng(len(shape) + opset)
        self.shape, self.input, self.opset = shape, name, opset
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.last = name

    def weight(self, *shape: int) -> str:
        """The name of a constant with random numbers."""
        scale = 1 / max(1.0, float(np.prod(shape[1:]))) ** 0.5
        return self.constant((scale * self.random.standard_normal(shape)).astype(np.float32))

    def constant(self, value: Any) -> str:
        name = f"constant/{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def add(self, kind: str, *others: str, source: str | None = None, **attributes: Any) -> str:
        """One node; the name of its output."""
        output = f"StatefulPartitionedCall/model/{kind}_{len(self.nodes)}:0"
        given = [self.last if source is None else source, *others]
        self.nodes.append(helper.make_node(kind, given, [output], **attributes))
        self.last = output
        return output

    def dense(self, inputs: int, out: int) -> str:
        """MatMul and Add, as both Keras and the competitions have it."""
        self.add("MatMul", self.weight(inputs, out))
        return self.add("Add", self.weight(out))

    def layers(self, *sizes: int, activation: str = "Relu") -> str:
        """Dense layers with an activation between them."""
        for place, (inputs, out) in enumerate(pairwise(sizes)):
            self.dense(inputs, out)
            if place + 2 < len(sizes):
                self.add(activation)
        return self.last

    def written(self, out: Sequence[int | str]) -> bytes:
        """The whole file."""
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "tf2onnx",
            [helper.make_tensor_value_info(self.input, floats, list(self.shape))],
            [helper.make_tensor_value_info(self.last, floats, list(out))],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        return bytes(model.SerializeToString())


def _keras_images(size: int, *, opset: int = 13) -> Graph:
    return Graph(["unk__1", size, size, 3], name="input_1", opset=opset)


def _channels_last(graph: Graph) -> None:
    graph.add("Transpose", perm=[0, 2, 3, 1])


def _channels_first(graph: Graph) -> None:
    graph.add("Transpose", perm=[0, 3, 1, 2])


def _keras_convolution(graph: Graph, inputs: int, out: int, **attributes: Any) -> None:
    """Conv2D as it is written layer by layer: into channels first and back."""
    _channels_first(graph)
    kernel = graph.weight(out, inputs, 3, 3)
    graph.add("Conv", kernel, graph.weight(out), kernel_shape=[3, 3], **attributes)
    _channels_last(graph)
    graph.add("Relu")


def keras_like() -> Iterator[tuple[str, bytes]]:
    """Keras models as ``tf2onnx`` writes them."""
    graph = Graph(["unk__1", 16], name="dense_input")
    graph.layers(16, 32, 3)
    graph.add("Softmax", axis=-1)
    graph.add("Identity")
    yield "dense, softmax", graph.written(["unk__2", 3])

    graph = Graph(["unk__1", 28, 28], name="flatten_input")
    graph.add("Reshape", graph.constant(np.array([-1, 784])))
    graph.layers(784, 32, 10)
    yield "Flatten by Reshape", graph.written(["unk__2", 10])

    graph = _keras_images(16)
    _keras_convolution(graph, 3, 8, auto_pad="SAME_UPPER", strides=[2, 2])
    _keras_convolution(graph, 8, 16, pads=[0, 0, 1, 1], strides=[2, 2])
    graph.add("ReduceMean", axes=[1, 2], keepdims=0)
    graph.dense(16, 10)
    graph.add("Softmax", axis=-1)
    yield "convolutions, GlobalAveragePooling2D", graph.written(["unk__2", 10])

    graph = _keras_images(16)
    _channels_first(graph)
    graph.add("Conv", graph.weight(8, 3, 3, 3), graph.weight(8), pads=[1] * 4)
    graph.add("Relu")
    four = [graph.constant(v.astype(np.float32)) for v in graph.random.random((4, 8))]
    graph.add("BatchNormalization", *four, epsilon=0.001)
    graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    _channels_last(graph)
    graph.add("Reshape", graph.constant(np.array([-1, 512])))
    graph.layers(512, 10)
    yield "convolution, BatchNormalization, MaxPooling2D, Flatten", graph.written(["unk__2", 10])

    graph = _keras_images(16)
    graph.add("Mul", graph.constant(np.float32(1 / 255)))
    graph.add("Sub", graph.constant(np.array([0.5, 0.4, 0.3], np.float32)))
    _keras_convolution(graph, 3, 8, pads=[1] * 4)
    start = graph.last
    _keras_convolution(graph, 8, 8, pads=[1] * 4)
    graph.add("Add", start)
    graph.add("Relu")
    _channels_first(graph)
    graph.add("GlobalAveragePool")
    graph.add("Squeeze", graph.constant(np.array([2, 3])))
    graph.dense(8, 10)
    yield "Rescaling, residual block", graph.written(["unk__2", 10])

    graph = _keras_images(16)
    _channels_first(graph)
    graph.add("Conv", graph.weight(3, 1, 3, 3), group=3, pads=[1] * 4)
    graph.add("Conv", graph.weight(8, 3, 1, 1))
    graph.add("Clip", graph.constant(np.float32(0)), graph.constant(np.float32(6)))
    graph.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    _channels_last(graph)
    graph.add("ReduceMax", axes=[1, 2], keepdims=0)
    graph.dense(8, 1)
    graph.add("Sigmoid")
    yield "SeparableConv2D, ReLU6, GlobalMaxPooling2D, one Sigmoid", graph.written(["unk__2", 1])

    graph = _keras_images(16)
    graph.add("Pad", graph.constant(np.array([0, 1, 1, 0, 0, 1, 1, 0])))
    _channels_first(graph)
    graph.add("Conv", graph.weight(8, 3, 3, 3), strides=[2, 2])
    _channels_last(graph)
    graph.add("Mul", graph.weight(8))
    graph.add("Add", graph.weight(8))
    graph.add("LeakyRelu", alpha=0.3)
    graph.add("ReduceMean", axes=[1, 2], keepdims=1)
    flat = graph.last
    graph.add("Shape")
    rows = graph.add("Slice", *(graph.constant(np.array([v])) for v in (0, 1, 0)))
    shape = graph.add("Concat", graph.constant(np.array([8])), source=rows, axis=0)
    graph.add("Reshape", shape, source=flat)
    graph.dense(8, 10)
    yield "ZeroPadding2D, batch norm as Mul and Add, a computed view", graph.written(["unk__2", 10])

    graph = Graph(["unk__1", 24, 2], name="input_1")
    graph.add("Transpose", perm=[0, 2, 1])
    graph.add("Unsqueeze", graph.constant(np.array([2])))
    graph.add("Conv", graph.weight(4, 2, 1, 3), kernel_shape=[1, 3])
    graph.add("Squeeze", graph.constant(np.array([2])))
    graph.add("Transpose", perm=[0, 2, 1])
    graph.add("Add", graph.weight(4))
    graph.add("Relu")
    graph.add("ReduceMean", axes=[1], keepdims=0)
    graph.dense(4, 3)
    yield "Conv1D", graph.written(["unk__2", 3])


def competition_like() -> Iterator[tuple[str, bytes]]:
    """The geometries of the competitions' benchmarks, by their names."""
    graph = Graph([1, 1, 1, 5], name="input", opset=8)
    graph.add("Sub", graph.weight(1, 1, 1, 5))
    graph.add("Flatten", axis=1)
    graph.layers(5, 50, 50, 50, 5)
    yield "acasxu", graph.written([1, 5])

    graph = Graph([5], name="input", opset=8)
    graph.layers(5, 50, 50, 5)
    yield "acasxu without a batch axis", graph.written([5])

    graph = Graph([784], name="0", opset=9)
    graph.layers(784, 64, 64, 10)
    yield "mnist_fc", graph.written([10])

    graph = Graph([1, 784, 1], name="0", opset=9)
    graph.add("Flatten", axis=1)
    graph.layers(784, 64, 10)
    yield "mnist_fc, input of rank 3", graph.written([1, 10])

    for activation in ("Sigmoid", "Tanh"):
        graph = Graph([1, 784, 1, 1], opset=12)
        graph.add("Flatten", axis=1)
        graph.layers(784, 32, 32, 10, activation=activation)
        yield f"eran, {activation}", graph.written([1, 10])

    graph = Graph([1, 3, 32, 32], opset=12)
    for inputs, out in ((3, 8), (8, 16)):
        graph.add("Conv", graph.weight(out, inputs, 4, 4), strides=[2, 2], pads=[1] * 4)
        graph.add("Relu")
    graph.add("Flatten", axis=1)
    graph.layers(1024, 32, 10)
    yield "oval21, cifar10 of marabou", graph.written([1, 10])

    for kind in ("AveragePool", "MaxPool"):
        graph = Graph([1, 1, 28, 28], opset=10)
        graph.add("Conv", graph.weight(4, 1, 5, 5))
        graph.add(kind, kernel_shape=[2, 2], strides=[2, 2])
        graph.add("Relu")
        graph.add("Reshape", graph.constant(np.array([1, -1])))
        graph.layers(576, 10)
        yield f"verivital, {kind}", graph.written([1, 10])

    graph = Graph([1, 3, 32, 32], opset=12)
    graph.add("Conv", graph.weight(8, 3, 3, 3), pads=[1] * 4)
    start = graph.add("Relu")
    graph.add("Conv", graph.weight(8, 8, 3, 3), graph.weight(8), pads=[1] * 4, strides=[2, 2])
    branch = graph.add("Relu")
    short = graph.add("Conv", graph.weight(8, 8, 1, 1), source=start, strides=[2, 2])
    graph.add("Add", branch, source=short)
    graph.add("Relu")
    graph.add("GlobalAveragePool")
    graph.add("Flatten")
    graph.layers(8, 10)
    yield "cifar and tiny-imagenet resnets", graph.written([1, 10])

    graph = Graph(["batch", 1, 20, 20], opset=11)
    for _ in range(2):
        channels = 1 if graph.last == "x" else 4
        graph.add("Conv", graph.weight(4, channels, 3, 3), pads=[1] * 4)
        graph.add("Relu")
    graph.add("Flatten")
    graph.layers(1600, 16, 1)
    yield "collins-rul, one output", graph.written(["batch", 1])

    graph = Graph([1, 5], opset=11)
    graph.layers(5, 4 * 4 * 4)
    graph.add("Reshape", graph.constant(np.array([-1, 4, 4, 4])))
    graph.add("ConvTranspose", graph.weight(4, 4, 4, 4), strides=[2, 2], pads=[1] * 4)
    four = [graph.constant(v.astype(np.float32)) for v in graph.random.random((4, 4))]
    graph.add("BatchNormalization", *four)
    graph.add("Relu")
    scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
    graph.add("Resize", graph.constant(np.zeros(0, np.float32)), scales, mode="nearest")
    graph.add("Conv", graph.weight(1, 4, 3, 3), pads=[1] * 4)
    graph.add("Tanh")
    graph.add("Conv", graph.weight(4, 1, 4, 4), strides=[4, 4])
    graph.add("Relu")
    graph.add("Flatten")
    graph.layers(64, 1)
    yield "cgan, one output", graph.written([1, 1])

    graph = Graph([1, 792], opset=13)
    ends = [graph.constant(np.array([v])) for v in (0, 784, 1)]
    image = graph.add("Slice", ends[0], ends[1], ends[2])
    ends = [graph.constant(np.array([v])) for v in (784, 792, 1)]
    shift = graph.add("Slice", ends[0], ends[1], ends[2], source="x")
    graph.last = shift
    graph.layers(8, 32, 784)
    graph.add("Sigmoid")
    graph.add("Add", image)
    graph.layers(784, 32, 10)
    yield "dist-shift", graph.written([1, 10])

    graph = Graph([1, 2], opset=13)
    rows = graph.dense(2, 6)
    parts = [graph.add("MatMul", graph.weight(6, 3), source=rows) for _ in range(4)]
    lows = [graph.add("ReduceMin", source=part, axes=[1], keepdims=1) for part in parts]
    graph.add("Max", *lows[1:], source=lows[0])
    yield "tllverifybench, one output", graph.written([1, 1])

    graph = Graph([1], opset=9)
    graph.layers(1, 32, 32, 1)
    yield "nn4sys, an index of one key", graph.written([1])

    graph = Graph([1, 8], opset=10)
    graph.layers(8, 64, 64, 4)
    yield "rl_benchmarks, reach_prob_density", graph.written([1, 4])

    graph = Graph([1, 3, 16, 16], opset=11)
    graph.add("Conv", graph.weight(3, 3, 3, 3))
    graph.add("Sign")
    graph.add("Flatten")
    graph.layers(588, 10)
    yield "traffic signs, binarised", graph.written([1, 10])

    # As Larq's layers come out of tf2onnx: channels last, the sign of a sign and a bit.
    graph = Graph([1, 16, 16, 3], opset=13)
    graph.add("Transpose", perm=[0, 3, 1, 2])
    for inputs, out in ((3, 8), (8, 8)):
        kernel = np.sign(graph.random.standard_normal((out, inputs, 3, 3))).astype(np.float32)
        graph.add("Conv", graph.constant(kernel))
        graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        graph.add("Mul", graph.weight(1, out, 1, 1))
        graph.add("Add", graph.weight(1, out, 1, 1))
        graph.add("Sign")
        graph.add("Add", graph.constant(np.array(0.1, np.float32)))
        graph.add("Sign")
    graph.add("Transpose", perm=[0, 2, 3, 1])
    graph.add("Reshape", graph.constant(np.array([-1, 32])))
    graph.layers(32, 10)
    yield "traffic signs, by Larq's layers", graph.written([1, 10])

    graph = Graph([1, 4, 8], opset=13)
    query, key, value = (graph.add("MatMul", graph.weight(8, 8), source="x") for _ in range(3))
    turned = graph.add("Transpose", source=key, perm=[0, 2, 1])
    graph.add("MatMul", turned, source=query)
    graph.add("Softmax", axis=-1)
    graph.add("MatMul", value)
    graph.add("ReduceMean", axes=[1], keepdims=0)
    graph.layers(8, 10)
    yield "vit, attention", graph.written([1, 10])
