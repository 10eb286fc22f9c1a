"""How layers of ``layers.activations`` and ``layers.joins`` are written as ONNX."""

from __future__ import annotations

import math

import torch

from models.errors import ModelError
from models.layers.activations import (
    Abs,
    AtLeast,
    AtMost,
    Ceil,
    Clip,
    Floor,
    MaxMin,
    PReLU,
    ReLUTheta,
    Round,
    Sigmoid,
    Sign,
    Softplus,
    Tanh,
)
from models.layers.euclidean import L2Pool2d, Sort
from models.layers.joins import Concat, Maximum, Minimum, Product, ReduceMean, ReduceSum, Slice
from models.layers.kinds import Gather, Shape
from models.layers.normalization import Centre, LocalResponse, Softmax, Standardize
from models.layers.one_lipschitz import InexactPairs
from models.layers.shapes import Expand
from models.onnx.exporter.writer import Exporter, GraphWriter, plain, with_constant

__all__ = ["MORE_EXPORTERS"]


def _clip(graph: GraphWriter, layer: Clip, inputs: list[str], output: str, shape: Shape) -> None:
    bounds = [
        "" if bound is None else graph.constant(torch.tensor(bound, dtype=torch.float32))
        for bound in (layer.low, layer.high)
    ]
    graph.node("Clip", [*inputs, *bounds], output)


def _relu_theta(
    graph: GraphWriter, layer: ReLUTheta, inputs: list[str], output: str, shape: Shape
) -> None:
    positive = f"{output}.positive"
    graph.node("Relu", inputs, positive)
    graph.node("Min", [positive, graph.constant(layer.theta)], output)


def _prelu(graph: GraphWriter, layer: PReLU, inputs: list[str], output: str, shape: Shape) -> None:
    graph.node("PRelu", [*inputs, graph.constant(layer.slope)], output)


def _maxmin(
    graph: GraphWriter, layer: MaxMin, inputs: list[str], output: str, shape: Shape
) -> None:
    first, second, largest, smallest = (
        f"{output}.{part}" for part in ("first", "second", "largest", "smallest")
    )
    half = shape[0] // 2
    graph.split([*inputs, graph.constant([half, half])], [first, second], axis=1)
    graph.node("Max", [first, second], largest)
    graph.node("Min", [first, second], smallest)
    graph.node("Concat", [largest, smallest], output, axis=1)


def _abs(graph: GraphWriter, layer: Abs, inputs: list[str], output: str, shape: Shape) -> None:
    if layer.channels is None:
        graph.node("Abs", inputs, output)
        return
    first, second, absolute = (f"{output}.{part}" for part in ("first", "second", "absolute"))
    sizes = graph.constant([layer.channels, shape[0] - layer.channels])
    graph.split([*inputs, sizes], [first, second], axis=1)
    graph.node("Abs", [first], absolute)
    graph.node("Concat", [absolute, second], output, axis=1)


def _gather(
    graph: GraphWriter, layer: Gather, inputs: list[str], output: str, shape: Shape
) -> None:
    places = graph.constant(layer.places.tolist())
    graph.node("Gather", [*inputs, places], output, axis=layer.axis + 1)


def _softplus(
    graph: GraphWriter, layer: Softplus, inputs: list[str], output: str, shape: Shape
) -> None:
    if layer.beta == 1.0:
        graph.node("Softplus", inputs, output)
        return
    scaled, plain_output = f"{output}.scaled", f"{output}.plain"
    beta = graph.constant(torch.tensor(layer.beta))
    graph.node("Mul", [*inputs, beta], scaled)
    graph.node("Softplus", [scaled], plain_output)
    graph.node("Div", [plain_output, beta], output)


def _l2_pool(
    graph: GraphWriter, layer: L2Pool2d, inputs: list[str], output: str, shape: Shape
) -> None:
    windows = {"kernel_shape": list(layer.kernel), "strides": list(layer.stride)}
    if layer.eps == 0.0:
        graph.node("LpPool", inputs, output, p=2, **windows)
        return
    squares, means, sums, shifted = (
        f"{output}.{part}" for part in ("squares", "means", "sums", "shifted")
    )
    count = float(layer.kernel[0] * layer.kernel[1])
    graph.node("Mul", [*inputs, *inputs], squares)
    graph.node("AveragePool", [squares], means, **windows)
    graph.node("Mul", [means, graph.constant(torch.tensor(count))], sums)
    graph.node("Add", [sums, graph.constant(torch.tensor(layer.eps))], shifted)
    graph.node("Sqrt", [shifted], output)


def _sort(graph: GraphWriter, layer: Sort, inputs: list[str], output: str, shape: Shape) -> None:
    graph.top_k(
        [*inputs, graph.constant([shape[layer.axis]])],
        [output, f"{output}.places"],
        axis=layer.axis + 1,
        largest=int(layer.descending),
    )


def _concat(
    graph: GraphWriter, layer: Concat, inputs: list[str], output: str, shape: Shape
) -> None:
    graph.node("Concat", inputs, output, axis=layer.axis + 1)


def _expand(
    graph: GraphWriter, layer: Expand, inputs: list[str], output: str, shape: Shape
) -> None:
    graph.node("Expand", [*inputs, graph.constant([1, *layer.shape])], output)


def _slice(graph: GraphWriter, layer: Slice, inputs: list[str], output: str, shape: Shape) -> None:
    places = ([layer.start], [layer.stop], [layer.axis + 1], [layer.step])
    graph.node("Slice", [*inputs, *(graph.constant(place) for place in places)], output)


def _reduce_sum(
    graph: GraphWriter, layer: ReduceSum, inputs: list[str], output: str, shape: Shape
) -> None:
    axes = graph.constant(layer.batched_axes())
    graph.node("ReduceSum", [*inputs, axes], output, keepdims=int(layer.keepdims))


def _reduce_mean(
    graph: GraphWriter, layer: ReduceMean, inputs: list[str], output: str, shape: Shape
) -> None:
    axes, keepdims = layer.batched_axes(), int(layer.keepdims)
    if graph.opset < 18:
        graph.node("ReduceMean", inputs, output, keepdims=keepdims, axes=axes)
    else:
        graph.node("ReduceMean", [*inputs, graph.constant(axes)], output, keepdims=keepdims)


def _centre(
    graph: GraphWriter, layer: Centre, inputs: list[str], output: str, shape: Shape
) -> None:
    mean = f"{output}.mean"
    _mean(graph, inputs, mean, layer.batched_axes())
    graph.node("Sub", [*inputs, mean], output)


def _standardize(
    graph: GraphWriter, layer: Standardize, inputs: list[str], output: str, shape: Shape
) -> None:
    """Nodes; of numbers less a mean the operator, which computes both from what was there before.

    The operator is of opset 17 and works on the last axes.
    """
    numbers, beside = inputs
    rank = len(shape) + 1
    axes = layer.batched_axes()
    if numbers != beside and graph.opset >= 17 and axes == list(range(axes[0], rank)):
        ones = torch.ones([shape[axis] for axis in layer.axes])
        names = [beside, graph.constant(ones)]
        graph.node("LayerNormalization", names, output, axis=axes[0], epsilon=layer.eps)
        return
    square, mean, more, root = (f"{output}.{part}" for part in ("square", "mean", "sum", "root"))
    graph.node("Mul", [numbers, numbers], square)
    _mean(graph, [square], mean, axes)
    graph.node("Add", [mean, graph.constant(torch.tensor(layer.eps))], more)
    graph.node("Sqrt", [more], root)
    graph.node("Div", [numbers, root], output)


def _softmax(
    graph: GraphWriter, layer: Softmax, inputs: list[str], output: str, shape: Shape
) -> None:
    """One axis, or the last ones as one axis."""
    if len(layer.axes) == 1 and graph.opset >= 13:
        graph.node("Softmax", inputs, output, axis=layer.axes[0] + 1)
        return
    first, rest = layer.axes[0], tuple(range(layer.axes[0], len(shape)))
    if layer.axes != rest:
        raise ModelError(
            f"a softmax over the axes {layer.axes} is not written", code="unsupported_operator"
        )
    flat, result = f"{output}.flat", f"{output}.softmax"
    graph.node(
        "Reshape", [*inputs, graph.constant([-1, *shape[:first], math.prod(shape[first:])])], flat
    )
    graph.node("Softmax", [flat], result, axis=first + 1)
    graph.node("Reshape", [result, graph.constant([-1, *shape])], output)


def _local_response(
    graph: GraphWriter, layer: LocalResponse, inputs: list[str], output: str, shape: Shape
) -> None:
    graph.node("LRN", inputs, output, **layer.config())


def _sign(graph: GraphWriter, layer: Sign, inputs: list[str], output: str, shape: Shape) -> None:
    """Another number than 0 at 0 as binarised networks have it: the sign of the sign and a bit."""
    if layer.at_zero == 0:
        graph.node("Sign", inputs, output)
        return
    plain_sign, moved = f"{output}.sign", f"{output}.moved"
    graph.node("Sign", inputs, plain_sign)
    graph.node("Add", [plain_sign, graph.constant(torch.tensor(0.1 * layer.at_zero))], moved)
    graph.node("Sign", [moved], output)


def _mean(graph: GraphWriter, inputs: list[str], output: str, axes: list[int]) -> None:
    """The mean over axes that are kept."""
    if graph.opset < 18:
        graph.node("ReduceMean", inputs, output, keepdims=1, axes=axes)
    else:
        graph.node("ReduceMean", [*inputs, graph.constant(axes)], output, keepdims=1)


#: How each of these kinds is written: a new one is one function and one row here.
MORE_EXPORTERS: dict[str, Exporter] = {
    Abs.kind: _abs,
    AtLeast.kind: with_constant("Max"),
    PReLU.kind: _prelu,
    AtMost.kind: with_constant("Min"),
    Ceil.kind: plain("Ceil"),
    Centre.kind: _centre,
    Clip.kind: _clip,
    Concat.kind: _concat,
    Expand.kind: _expand,
    Floor.kind: plain("Floor"),
    Gather.kind: _gather,
    # The graph before it is what the file computes.
    InexactPairs.kind: plain("Identity"),
    L2Pool2d.kind: _l2_pool,
    LocalResponse.kind: _local_response,
    MaxMin.kind: _maxmin,
    Maximum.kind: plain("Max"),
    Minimum.kind: plain("Min"),
    Product.kind: plain("Mul"),
    ReLUTheta.kind: _relu_theta,
    ReduceMean.kind: _reduce_mean,
    ReduceSum.kind: _reduce_sum,
    Round.kind: plain("Round"),
    Sigmoid.kind: plain("Sigmoid"),
    Sign.kind: _sign,
    Slice.kind: _slice,
    Sort.kind: _sort,
    Softmax.kind: _softmax,
    Softplus.kind: _softplus,
    Standardize.kind: _standardize,
    Tanh.kind: plain("Tanh"),
}
