"""How layers of ``layers.curves`` are written: native operators where the opset has them."""

from __future__ import annotations

import math

import torch

from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    SELU,
    Atan,
    Cos,
    Erf,
    Exp,
    HardSwish,
    Log,
    Mish,
    Power,
    Reciprocal,
    SiLU,
    Sin,
    Softsign,
    Sqrt,
    Within,
)
from models.layers.kinds import Shape
from models.onnx.exporter.writer import Exporter, GraphWriter, plain

__all__ = ["CURVE_EXPORTERS"]


def _number(graph: GraphWriter, value: float) -> str:
    return graph.constant(torch.tensor(value, dtype=torch.float32))


def _elu(graph: GraphWriter, layer: ELU, inputs: list[str], output: str, shape: Shape) -> None:
    graph.node("Elu", inputs, output, alpha=layer.alpha)


def _selu(graph: GraphWriter, layer: SELU, inputs: list[str], output: str, shape: Shape) -> None:
    graph.node("Selu", inputs, output, alpha=layer.alpha, gamma=layer.scale)


def _celu(graph: GraphWriter, layer: CELU, inputs: list[str], output: str, shape: Shape) -> None:
    graph.node("Celu", inputs, output, alpha=layer.alpha)


def _silu(graph: GraphWriter, layer: SiLU, inputs: list[str], output: str, shape: Shape) -> None:
    gate = f"{output}.gate"
    graph.node("Sigmoid", inputs, gate)
    graph.node("Mul", [*inputs, gate], output)


def _gelu(graph: GraphWriter, layer: GELU, inputs: list[str], output: str, shape: Shape) -> None:
    if graph.opset >= 20:
        graph.node("Gelu", inputs, output, approximate=layer.approximate)
        return
    names = ("cube", "small", "sum", "scaled", "curve", "gate", "half")
    cube, small, sum_, scaled, curve, gate, half = (f"{output}.{name}" for name in names)
    if layer.approximate == "none":
        graph.node("Mul", [*inputs, _number(graph, math.sqrt(0.5))], scaled)
        graph.node("Erf", [scaled], curve)
    else:
        graph.node("Pow", [*inputs, _number(graph, 3.0)], cube)
        graph.node("Mul", [cube, _number(graph, 0.044715)], small)
        graph.node("Add", [*inputs, small], sum_)
        graph.node("Mul", [sum_, _number(graph, math.sqrt(2.0 / math.pi))], scaled)
        graph.node("Tanh", [scaled], curve)
    graph.node("Add", [curve, _number(graph, 1.0)], gate)
    graph.node("Mul", [*inputs, _number(graph, 0.5)], half)
    graph.node("Mul", [half, gate], output)


def _hard_swish(
    graph: GraphWriter, layer: HardSwish, inputs: list[str], output: str, shape: Shape
) -> None:
    if graph.opset >= 14:
        graph.node("HardSwish", inputs, output)
        return
    gate = f"{output}.gate"
    graph.node("HardSigmoid", inputs, gate, alpha=1.0 / 6.0, beta=0.5)
    graph.node("Mul", [*inputs, gate], output)


def _mish(graph: GraphWriter, layer: Mish, inputs: list[str], output: str, shape: Shape) -> None:
    soft, gate = f"{output}.soft", f"{output}.gate"
    graph.node("Softplus", inputs, soft)
    graph.node("Tanh", [soft], gate)
    graph.node("Mul", [*inputs, gate], output)


def _power(graph: GraphWriter, layer: Power, inputs: list[str], output: str, shape: Shape) -> None:
    graph.node("Pow", [*inputs, _number(graph, float(layer.exponent))], output)


#: How each of these kinds is written: a new one is one function and one row here.
CURVE_EXPORTERS: dict[str, Exporter] = {
    Atan.kind: plain("Atan"),
    CELU.kind: _celu,
    Cos.kind: plain("Cos"),
    ELU.kind: _elu,
    Erf.kind: plain("Erf"),
    Exp.kind: plain("Exp"),
    GELU.kind: _gelu,
    HardSwish.kind: _hard_swish,
    Log.kind: plain("Log"),
    Mish.kind: _mish,
    Power.kind: _power,
    Reciprocal.kind: plain("Reciprocal"),
    SELU.kind: _selu,
    SiLU.kind: _silu,
    Sin.kind: plain("Sin"),
    Softsign.kind: plain("Softsign"),
    Sqrt.kind: plain("Sqrt"),
    Within.kind: plain("Identity"),
}
