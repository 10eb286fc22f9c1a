"""Networks as ONNX files, straight from the graph: one operator per layer, symbolic batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from onnx import ModelProto, TensorProto, checker, helper

from models.errors import ModelError
from models.layers.kinds import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Divide,
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
from models.onnx.exporter.curves import CURVE_EXPORTERS
from models.onnx.exporter.joins_activations import MORE_EXPORTERS
from models.onnx.exporter.writer import Exporter, GraphWriter, plain, with_constant

__all__ = ["EXPORTERS", "export_onnx"]

#: Opsets that are written.
OPSETS = range(13, 22)


def export_onnx(network: Network, *, opset: int = 17) -> bytes:
    """The network as an ONNX file, input ``input`` [batch, *input_shape], output ``logits``.

    Opset 13 to 21 (dilated average pooling needs 19). The output is the logits, also where the
    network's ``dropped_output`` names an operator behind them. Raises ModelError.
    """
    if opset not in OPSETS:
        raise ModelError(
            f"opset {opset} is not written",
            code="unsupported_opset",
            hint=f"one from {OPSETS[0]} to {OPSETS[-1]}",
        )
    graph = GraphWriter(opset)
    shapes = {INPUT: network.input_shape, **{node.name: node.shape for node in network.nodes}}
    names = {INPUT: INPUT, network.nodes[-1].name: "logits"}
    for node in network.nodes:
        layer = network.layer(node.name)
        inputs = [names.get(source, source) for source in node.inputs]
        output = names.setdefault(node.name, node.name if node.name != "logits" else "_logits")
        if layer.kind not in EXPORTERS:
            raise ModelError(
                f"the layer {node.name} ({layer.kind}) has no ONNX form",
                code="unsupported_operator",
                hint="export what is deployed: network.deployed()",
            )
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


def _conv(graph: GraphWriter, layer: Conv2d, inputs: list[str], output: str, shape: Shape) -> None:
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


def _linear(
    graph: GraphWriter, layer: Linear, inputs: list[str], output: str, shape: Shape
) -> None:
    constants = [graph.constant(t) for t in (layer.weight, layer.bias) if t is not None]
    graph.node("Gemm", [*inputs, *constants], output, transB=1)


def _leaky(
    graph: GraphWriter, layer: LeakyReLU, inputs: list[str], output: str, shape: Shape
) -> None:
    graph.node("LeakyRelu", inputs, output, alpha=layer.slope)


def _normalize(
    graph: GraphWriter, layer: Normalize, inputs: list[str], output: str, shape: Shape
) -> None:
    mean, std = (layer.shaped(value, len(shape)) for value in (layer.mean, layer.std))
    centred = f"{output}.centred"
    graph.node("Sub", [*inputs, graph.constant(mean)], centred)
    graph.node("Div", [centred, graph.constant(std)], output)


def _batch_norm(
    graph: GraphWriter, layer: BatchNorm, inputs: list[str], output: str, shape: Shape
) -> None:
    tensors = (layer.weight, layer.bias, layer.mean, layer.var)
    constants = [graph.constant(tensor) for tensor in tensors]
    graph.node("BatchNormalization", [*inputs, *constants], output, epsilon=layer.eps)


def _max_pool(
    graph: GraphWriter, layer: MaxPool2d, inputs: list[str], output: str, shape: Shape
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
    graph: GraphWriter, layer: AvgPool2d, inputs: list[str], output: str, shape: Shape
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
    graph: GraphWriter,
    source: str,
    output: str,
    padding: tuple[int, ...],
    value: float,
    *,
    rank: int,
) -> None:
    top, left, bottom, right = padding
    zeros = [0] * (rank - 1)
    pads = graph.constant([*zeros, top, left, *zeros, bottom, right])
    graph.node("Pad", [source, pads, graph.constant(torch.tensor(value))], output)


def _pad(graph: GraphWriter, layer: Pad, inputs: list[str], output: str, shape: Shape) -> None:
    _write_pad(graph, inputs[0], output, layer.padding, layer.value, rank=len(shape))


def _reshape(
    graph: GraphWriter, layer: Reshape, inputs: list[str], output: str, shape: Shape
) -> None:
    graph.node("Reshape", [*inputs, graph.constant([-1, *layer.shape])], output)


def _permute(
    graph: GraphWriter, layer: Permute, inputs: list[str], output: str, shape: Shape
) -> None:
    graph.node("Transpose", inputs, output, perm=[0, *(axis + 1 for axis in layer.axes)])


#: How each kind of layer is written: a new one is one function and one row here.
EXPORTERS: dict[str, Exporter] = {
    Add.kind: plain("Add"),
    AvgPool2d.kind: _avg_pool,
    BatchNorm.kind: _batch_norm,
    Conv2d.kind: _conv,
    Divide.kind: with_constant("Div"),
    LeakyReLU.kind: _leaky,
    Linear.kind: _linear,
    MaxPool2d.kind: _max_pool,
    Multiply.kind: with_constant("Mul"),
    Normalize.kind: _normalize,
    Pad.kind: _pad,
    Permute.kind: _permute,
    ReLU.kind: plain("Relu"),
    Reshape.kind: _reshape,
    Shift.kind: with_constant("Add"),
    **MORE_EXPORTERS,
    **CURVE_EXPORTERS,
}
