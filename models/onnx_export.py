"""Networks as ONNX files, straight from the graph: one operator per layer, symbolic batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
from torch import Tensor

from models.errors import ModelError
from models.layers import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Divide,
    Layer,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Multiply,
    Normalize,
    Pad,
    Permute,
    ReLU,
    Reshape,
    Shape,
    Shift,
)
from models.network import INPUT, Network

__all__ = ["EXPORTERS", "export_onnx"]

#: Opsets that are written.
OPSETS = range(13, 22)


class _Graph:
    """Nodes and constants as they are written."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: Tensor | list[int]) -> str:
        """A constant of the graph, by name: a float32 tensor or a vector of integers."""
        array = (
            np.array(value, dtype=np.int64)
            if isinstance(value, list)
            else value.detach().to("cpu", torch.float32).contiguous().numpy()
        )
        name = f"constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
        """One node, named as its output."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))


Exporter = Callable[[_Graph, Any, list[str], str, Shape], None]


def export_onnx(network: Network, *, opset: int = 17) -> bytes:
    """The network as an ONNX file, input ``input`` [batch, *input_shape], output ``logits``.

    Opset 13 to 21 (dilated average pooling needs 19). Raises ModelError.
    """
    if opset not in OPSETS:
        raise ModelError(
            f"opset {opset} is not written",
            code="unsupported_opset",
            hint=f"one from {OPSETS[0]} to {OPSETS[-1]}",
        )
    graph = _Graph(opset)
    shapes = {INPUT: network.input_shape, **{node.name: node.shape for node in network.nodes}}
    names = {INPUT: INPUT, network.nodes[-1].name: "logits"}
    for node in network.nodes:
        layer = network.layer(node.name)
        inputs = [names.get(source, source) for source in node.inputs]
        output = names.setdefault(node.name, node.name if node.name != "logits" else "_logits")
        EXPORTERS[layer.kind](graph, layer, inputs, output, shapes[node.inputs[0]])
    made = helper.make_graph(
        graph.nodes,
        "certserve",
        [_value(INPUT, network.input_shape)],
        [_value("logits", (network.classes,))],
        graph.constants,
    )
    opset_id = helper.make_opsetid("", opset)
    model: ModelProto = helper.make_model(
        made,
        opset_imports=[opset_id],
        ir_version=helper.find_min_ir_version_for([opset_id]),
        producer_name="certserve",
    )
    checker.check_model(model)
    return model.SerializeToString()


def _value(name: str, shape: Shape) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def _conv(graph: _Graph, layer: Conv2d, inputs: list[str], output: str, shape: Shape) -> None:
    constants = [graph.constant(t) for t in (layer.weight, layer.bias) if t is not None]
    graph.node(
        "Conv",
        [*inputs, *constants],
        output,
        kernel_shape=list(layer.weight.shape[2:]),
        strides=list(layer.stride),
        pads=list(layer.padding),
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def _linear(graph: _Graph, layer: Linear, inputs: list[str], output: str, shape: Shape) -> None:
    constants = [graph.constant(t) for t in (layer.weight, layer.bias) if t is not None]
    graph.node("Gemm", [*inputs, *constants], output, transB=1)


def _constant_operator(op_type: str) -> Exporter:
    def export(
        graph: _Graph, layer: Multiply, inputs: list[str], output: str, shape: Shape
    ) -> None:
        graph.node(op_type, [*inputs, graph.constant(layer.value)], output)

    return export


def _plain(op_type: str) -> Exporter:
    def export(graph: _Graph, layer: Layer, inputs: list[str], output: str, shape: Shape) -> None:
        graph.node(op_type, inputs, output)

    return export


def _leaky(graph: _Graph, layer: LeakyReLU, inputs: list[str], output: str, shape: Shape) -> None:
    graph.node("LeakyRelu", inputs, output, alpha=layer.slope)


def _normalize(
    graph: _Graph, layer: Normalize, inputs: list[str], output: str, shape: Shape
) -> None:
    ones = [1] * (len(shape) - 1)
    mean, std = (
        value.reshape(-1, *ones) if value.numel() > 1 else value.reshape(())
        for value in (layer.mean, layer.std)
    )
    centred = f"{output}.centred"
    graph.node("Sub", [*inputs, graph.constant(mean)], centred)
    graph.node("Div", [centred, graph.constant(std)], output)


def _batch_norm(
    graph: _Graph, layer: BatchNorm, inputs: list[str], output: str, shape: Shape
) -> None:
    tensors = (layer.weight, layer.bias, layer.mean, layer.var)
    constants = [graph.constant(tensor) for tensor in tensors]
    graph.node("BatchNormalization", [*inputs, *constants], output, epsilon=layer.eps)


def _max_pool(
    graph: _Graph, layer: MaxPool2d, inputs: list[str], output: str, shape: Shape
) -> None:
    pads, ceil_mode = _runtime_padding(layer, shape)
    graph.node(
        "MaxPool",
        inputs,
        output,
        kernel_shape=list(layer.kernel),
        strides=list(layer.stride),
        dilations=list(layer.dilation),
        pads=pads,
        ceil_mode=ceil_mode,
    )


def _avg_pool(
    graph: _Graph, layer: AvgPool2d, inputs: list[str], output: str, shape: Shape
) -> None:
    pads, ceil_mode = list(layer.padding), 0
    if layer.count_include_pad and any(pads):
        # Zeros laid around the image are places like any other, however many there are.
        padded = f"{output}.padded"
        _write_pad(graph, inputs[0], padded, layer.padding, 0.0, rank=3)
        inputs, pads = [padded], [0, 0, 0, 0]
    elif any(pads):
        pads, ceil_mode = _runtime_padding(layer, shape)
    attributes: dict[str, Any] = {"ceil_mode": ceil_mode}
    if layer.dilation != (1, 1):
        if graph.opset < 19:
            raise ModelError(
                "dilated average pooling needs opset 19",
                code="unsupported_opset",
                hint="export with opset=19 or later",
            )
        attributes["dilations"] = list(layer.dilation)
    graph.node(
        "AveragePool",
        inputs,
        output,
        kernel_shape=list(layer.kernel),
        strides=list(layer.stride),
        pads=pads,
        **attributes,
    )


def _runtime_padding(layer: MaxPool2d | AvgPool2d, shape: Shape) -> tuple[list[int], int]:
    """Padding below the window's size, as ONNX Runtime wants it, and ``ceil_mode`` for the rest."""
    top, left, bottom, right = layer.padding
    kernel = layer.kernel
    if max(top, bottom) < kernel[0] and max(left, right) < kernel[1]:
        return [top, left, bottom, right], 0
    trimmed = [min(bottom, kernel[0] - 1), min(right, kernel[1] - 1)]
    for axis, (before, after) in enumerate(((top, bottom), (left, right))):
        k, s, d = kernel[axis], layer.stride[axis], layer.dilation[axis]
        span = shape[1 + axis] + before - d * (k - 1) - 1
        windows = (span + after) // s + 1
        count = math.ceil((span + trimmed[axis]) / s) + 1
        if (count - 1) * s >= shape[1 + axis] + before:
            count -= 1
        if before >= k or count != windows:
            raise ModelError(
                f"a pooling with padding {layer.padding} and window {kernel} has no ONNX form",
                code="unsupported_operator",
            )
    return [top, left, *trimmed], 1


def _write_pad(
    graph: _Graph, source: str, output: str, padding: tuple[int, ...], value: float, *, rank: int
) -> None:
    top, left, bottom, right = padding
    zeros = [0] * (rank - 1)
    pads = graph.constant([*zeros, top, left, *zeros, bottom, right])
    graph.node("Pad", [source, pads, graph.constant(torch.tensor(value))], output)


def _pad(graph: _Graph, layer: Pad, inputs: list[str], output: str, shape: Shape) -> None:
    _write_pad(graph, inputs[0], output, layer.padding, layer.value, rank=len(shape))


def _reshape(graph: _Graph, layer: Reshape, inputs: list[str], output: str, shape: Shape) -> None:
    graph.node("Reshape", [*inputs, graph.constant([-1, *layer.shape])], output)


def _permute(graph: _Graph, layer: Permute, inputs: list[str], output: str, shape: Shape) -> None:
    graph.node("Transpose", inputs, output, perm=[0, *(axis + 1 for axis in layer.axes)])


#: How each kind of layer is written: a new one is one function and one row here.
EXPORTERS: dict[str, Exporter] = {
    Add.kind: _plain("Add"),
    AvgPool2d.kind: _avg_pool,
    BatchNorm.kind: _batch_norm,
    Conv2d.kind: _conv,
    Divide.kind: _constant_operator("Div"),
    LeakyReLU.kind: _leaky,
    Linear.kind: _linear,
    MaxPool2d.kind: _max_pool,
    Multiply.kind: _constant_operator("Mul"),
    Normalize.kind: _normalize,
    Pad.kind: _pad,
    Permute.kind: _permute,
    ReLU.kind: _plain("Relu"),
    Reshape.kind: _reshape,
    Shift.kind: _constant_operator("Add"),
}
