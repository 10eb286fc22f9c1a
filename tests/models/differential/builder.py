"""A graph under construction: names, constants in every form that exporters write, shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from tests.models.differential.constants.computed import computed_forms

__all__ = ["Builder"]

Array = NDArray[Any]
Shape = tuple[int, ...]


class Builder:
    """Nodes and constants of one random graph with the input ``x`` [batch, *shape].

    batch: None where the file has no batch axis.
    """

    def __init__(
        self, rng: np.random.Generator, shape: Shape, opset: int, batch: int | str | None
    ) -> None:
        self.rng, self.opset, self.batch = rng, opset, batch
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.shapes: dict[str, Shape] = {"x": shape}
        self.kept: dict[tuple[Any, ...], list[str]] = {}
        self.count = 0

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, options: Any) -> Any:
        """One of the options, as the Python value it is."""
        options = list(options)
        return options[int(self.rng.integers(len(options)))]

    def number(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def node(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        """Add a node; the name of its first output."""
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def axes_form(self, axes: list[int], since: int) -> tuple[list[str], dict[str, Any]]:
        """Axes as a second input from the opset ``since`` on, as an attribute before."""
        if self.opset >= since:
            return [self.constant(np.array(axes, np.int64))], {}
        return [], {"axes": axes}

    def constant(self, array: Array) -> str:
        """A name that holds these numbers: stored, spelt out in a node, shared or computed."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key in self.kept and self.chance(0.5):
            return str(self.pick(self.kept[key]))
        name = self._computed(array) if self.chance(0.4) else self.stored(array)
        self.kept.setdefault(key, []).append(name)
        return name

    def stored(self, array: Array) -> str:
        """A name that holds these numbers, written into the file."""
        name = self.name()
        if self.chance(0.6):
            self.initializers.append(
                numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            )
            return name
        if self.opset >= 12 and array.ndim < 2 and array.dtype in (np.int64, np.float32):
            form = "value_float" if array.dtype == np.float32 else "value_int"
            value: Any = array.tolist()
            if array.ndim == 1 and array.size:
                form += "s"
            if array.ndim == 0 or array.size:
                self.nodes.append(helper.make_node("Constant", [], [name], **{form: value}))
                return name
        value = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape))
        self.nodes.append(helper.make_node("Constant", [], [name], value=value))
        return name

    def _computed(self, array: Array) -> str:
        forms = ["identity", "cast", "reshape"]
        if array.dtype == np.float32:
            forms += ["neg", "double", "half", "root", "sum", "less", "bounds"]
        if array.ndim:
            forms += ["transpose", "squeeze", "concat", "gather", "split", "reverse"]
            forms += ["reverse"] * 2 if self.opset >= 10 else []
        if array.ndim and array.size and (array == array.flat[0]).all():
            forms += ["fill", "fill"] if self.opset >= 9 else []
            forms += ["expand", "expand"] if self.opset >= 8 else []
        if array.dtype == np.int64 and self.opset >= 11:
            forms += ["where"] * 4 + ["remainder"] * 3
        if array.dtype == np.int64 and array.shape == (1,):
            forms += ["product"] * 4 + ["shape"] * 6
        small = array.dtype == np.int64 and bool((array < 2**40).all() and (array > -(2**40)).all())
        if small and array.ndim == 1 and array.size > 0:
            step = int(array[1] - array[0]) if array.size > 1 else 1
            even = self.opset >= 11 and step
            if even and np.array_equal(array, array[0] + step * np.arange(array.size)):
                forms += ["range"] * 6
        others = computed_forms(self.opset, array)
        if others and self.chance(0.3):
            return str(self.pick(others)(self, array))
        return str(getattr(self, f"_{self.pick(forms)}")(array))

    def _identity(self, array: Array) -> str:
        return self.node("Identity", [self.stored(array)])

    def _cast(self, array: Array) -> str:
        to = TensorProto.FLOAT if array.dtype == np.float32 else TensorProto.INT64
        if array.dtype == np.int64 and np.abs(array).max(initial=0) < 2**31:
            array = array.astype(np.int32)
        return self.node("Cast", [self.stored(array)], to=to)

    def _reshape(self, array: Array) -> str:
        target = self.stored(np.array(array.shape, np.int64))
        return self.node("Reshape", [self.stored(array.reshape(-1)), target])

    def _neg(self, array: Array) -> str:
        return self.node("Neg", [self.stored(-array)])

    def _double(self, array: Array) -> str:
        if (np.abs(array) > 1e38).any():
            return self._identity(array)
        two = self.stored(np.array(0.5, np.float32))
        return self.node("Mul", [self.stored(array * 2), two])

    def _half(self, array: Array) -> str:
        return self.node("Div", [self.stored(array), self.stored(np.array(3, np.float32))])

    def _root(self, array: Array) -> str:
        return self.node("Sqrt", [self.stored(np.abs(array))])

    def _sum(self, array: Array) -> str:
        return self.node("Add", [self.stored(array), self.stored(np.array(0.1, np.float32))])

    def _less(self, array: Array) -> str:
        return self.node("Sub", [self.stored(array), self.stored(np.array(0.1, np.float32))])

    def _bounds(self, array: Array) -> str:
        bound = self.stored(np.array(0.3, np.float32))
        return self.node(self.pick(["Max", "Min"]), [self.stored(array), bound])

    def _transpose(self, array: Array) -> str:
        perm = [int(axis) for axis in self.rng.permutation(array.ndim)]
        stored = self.stored(np.transpose(array, np.argsort(perm)))
        return self.node("Transpose", [stored], perm=perm)

    def _squeeze(self, array: Array) -> str:
        axis = self.number(0, array.ndim)
        form, attributes = self._plain_axes([axis])
        more = self.node("Unsqueeze", [self.stored(array), *form], **attributes)
        form, attributes = self._plain_axes([axis])
        return self.node("Squeeze", [more, *form], **attributes)

    def _plain_axes(self, axes: list[int]) -> tuple[list[str], dict[str, Any]]:
        if self.opset >= 13:
            return [self.stored(np.array(axes, np.int64))], {}
        return [], {"axes": axes}

    def _concat(self, array: Array) -> str:
        axis = self.number(0, array.ndim - 1)
        at = self.number(0, array.shape[axis])
        parts = [self.stored(part) for part in np.split(array, [at], axis=axis)]
        return self.node("Concat", parts, axis=axis - self.pick([0, array.ndim]))

    def _gather(self, array: Array) -> str:
        axis = self.number(0, array.ndim - 1)
        size = array.shape[axis]
        order = self.rng.permutation(size)
        places = np.argsort(order) - self.pick([0, size])
        stored = self.stored(np.take(array, order, axis=axis))
        return self.node("Gather", [stored, self.stored(places.astype(np.int64))], axis=axis)

    def _split(self, array: Array) -> str:
        if self.opset >= 18:
            return self.node("Split", [self.stored(array)], axis=0, num_outputs=1)
        return self.node("Split", [self.stored(array)], axis=0)

    def _reverse(self, array: Array) -> str:
        """A Slice with step -1, its start and end written in one of many ways."""
        if self.opset < 10:
            return self._identity(array)
        axis = self.number(0, array.ndim - 1)
        size = array.shape[axis]
        numbers = (
            self.pick([-1, size - 1, size, size + 5, 2**31 - 1, 2**63 - 1, -size - 1, -size, 0]),
            self.pick([-size - 1, -size - 7, -(2**31), -(2**63), -(2**63), 0, -1]),
            axis - self.pick([0, array.ndim]),
            -1,
        )
        if self.chance(0.7):
            numbers = (self.pick([-1, size - 1, 2**62]) % 2**53, -size - 1, axis, -1)
            numbers = (numbers[0] if numbers[0] < 2**40 else -1, *numbers[1:])
        inputs = [self.stored(np.array([number], np.int64)) for number in numbers]
        return self.node("Slice", [self.stored(np.flip(array, axis)), *inputs])

    def _fill(self, array: Array) -> str:
        value = numpy_helper.from_array(array.reshape(-1)[:1])
        return self.node(
            "ConstantOfShape", [self.stored(np.array(array.shape, np.int64))], value=value
        )

    def _expand(self, array: Array) -> str:
        one = self.stored(array.reshape(-1)[:1])
        return self.node("Expand", [one, self.stored(np.array(array.shape, np.int64))])

    def _where(self, array: Array) -> str:
        """The array itself but where it is -1, there ones, as exporters write an Expand's sizes."""
        minus = self.stored(np.array(-1, np.int64))
        ones = self.stored(np.where(array == -1, -1, 1).astype(np.int64))
        stored = self.stored(array)
        return self.node("Where", [self.node("Equal", [stored, minus]), ones, stored])

    def _remainder(self, array: Array) -> str:
        if (np.abs(array) >= 2**31).any():
            return self._identity(array)
        large = self.stored(np.array(2**31, np.int64))
        lifted = self.stored(np.where(array < 0, array, array + 2**31))
        return self.node("Mod", [lifted, large]) if (array >= 0).all() else self._identity(array)

    def _product(self, array: Array) -> str:
        attributes: dict[str, Any] = {"keepdims": 1}
        stored = self.stored(np.concatenate([array, np.ones(self.number(0, 2), np.int64)]))
        if self.opset >= 18:
            attributes["noop_with_empty_axes"] = self.pick([0, 0, 1])
            if self.chance(0.5):
                axes = self.pick([[0], [-1], []])
                return self.node(
                    "ReduceProd", [stored, self.stored(np.array(axes, np.int64))], **attributes
                )
        elif self.chance(0.5):
            attributes["axes"] = [0]
        return self.node("ReduceProd", [stored], **attributes)

    def _shape(self, array: Array) -> str:
        if not 0 <= array[0] <= 64:
            return self._identity(array)
        return self.node("Shape", [self.stored(np.zeros(int(array[0]), np.float32))])

    def _range(self, array: Array) -> str:
        step = int(array[1] - array[0]) if array.size > 1 else 1
        ends = (int(array[0]), int(array[0]) + step * array.size, step)
        return self.node("Range", [self.stored(np.array(end, np.int64)) for end in ends])

    def model(self, output: str) -> ModelProto:
        """The graph as it stands, with one output."""
        graph = helper.make_graph(
            self.nodes,
            "g",
            [
                helper.make_tensor_value_info(
                    "x",
                    TensorProto.FLOAT,
                    [*([] if self.batch is None else [self.batch]), *self.shapes["x"]],
                )
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("ai.onnx.ml", 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=8 if self.opset < 21 else 10
        )

    def learn(self, name: str) -> Shape | None:
        """The value's shape without the batch, where ONNX's own inference can tell."""
        try:
            inferred = shape_inference.infer_shapes(self.model(name), data_prop=True)
        except onnx.shape_inference.InferenceError:
            return None
        (value,) = inferred.graph.output
        if not value.type.tensor_type.HasField("shape"):
            return None
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        sizes = [1, *sizes] if self.batch is None else sizes
        if not sizes or any(size < 1 for size in sizes[1:]):
            return None
        self.shapes[name] = tuple(sizes[1:])
        return self.shapes[name]
