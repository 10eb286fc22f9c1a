"""How nodes and constants are written into an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.layers.base import ConstantLayer, Layer, Shape

__all__ = ["Exporter", "GraphWriter", "plain", "with_constant"]


class GraphWriter:
    """Nodes and constants of a graph as they are written."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._parameters: dict[nn.Parameter, str] = {}

    def constant(self, value: Tensor | list[int]) -> str:
        """A constant of the graph, by name: a float32 tensor or a vector of integers.

        A parameter that several nodes share is written once.
        """
        if isinstance(value, nn.Parameter):
            if value not in self._parameters:
                self._parameters[value] = self._written(value)
            return self._parameters[value]
        return self._written(value)

    def _written(self, value: Tensor | list[int]) -> str:
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

    def split(self, inputs: list[str], outputs: list[str], *, axis: int) -> None:
        """A Split with one output per part."""
        self.nodes.append(helper.make_node("Split", inputs, outputs, name=outputs[0], axis=axis))

    def top_k(self, inputs: list[str], outputs: list[str], **attributes: int) -> None:
        """A TopK: values and their places."""
        self.nodes.append(
            helper.make_node("TopK", inputs, outputs, name=outputs[0], sorted=1, **attributes)
        )


#: Writes a layer: graph, layer, names of its inputs, name of its output, shape of its first input.
Exporter = Callable[[GraphWriter, Any, list[str], str, Shape], None]


def plain(op_type: str) -> Exporter:
    """A layer that is one operator without attributes."""

    def export(
        graph: GraphWriter, layer: Layer, inputs: list[str], output: str, shape: Shape
    ) -> None:
        graph.node(op_type, inputs, output)

    return export


def with_constant(op_type: str) -> Exporter:
    """A layer that is one operator with the layer's constant as its second input."""

    def export(
        graph: GraphWriter, layer: ConstantLayer, inputs: list[str], output: str, shape: Shape
    ) -> None:
        graph.node(op_type, [*inputs, graph.constant(layer.value)], output)

    return export
