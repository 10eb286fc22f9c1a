"""The same network with fewer changes of the order of axes.

Exporters that hold images with their channels last turn the axes around every convolution and
pool: ``Permute``, bias, ReLU, ``Permute`` back. What works number by number does so in any order
of the axes, so the two cancel: a row of a backward pass then stays a patch of the image, and a
bias is fused into its convolution. Every number of the network is computed as before, at another
place; constants move with the numbers that they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.layers.activations import (
    Abs,
    AtLeast,
    AtMost,
    Clip,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    Softplus,
    Tanh,
)
from models.layers.base import Layer
from models.layers.curves import CURVED
from models.layers.joins import Add, Maximum, Minimum, Product
from models.layers.kinds import Divide, Multiply, Permute, Shift
from models.network import INPUT, Network

__all__ = ["Row", "rows_of"]

#: What works number by number: alone, with a constant of its own (by its name), on two values.
_ALIKE: tuple[type[Layer], ...] = (
    *(Abs, Clip, LeakyReLU, ReLU, Sigmoid, Softplus, Tanh),
    *CURVED,
)
_CONSTANTS: dict[type[Layer], str] = {
    **dict.fromkeys((AtLeast, AtMost, Divide, Multiply, Shift), "value"),
    PReLU: "slope",
}
_PAIRS: tuple[type[Layer], ...] = (Add, Maximum, Minimum, Product)

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A node of the network as it is verified: name, layer, names of its inputs, its shape."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Turned:
    """The value of a row (or the input) with its axes in the order ``axes``."""

    row: str
    axes: Axes

    @property
    def plain(self) -> bool:
        """Whether that is the order that they are in."""
        return self.axes == _in_order(self.axes)


def rows_of(network: Network) -> list[Row]:
    """The network's nodes in order, the order of axes changed only where that is needed."""
    return _Rows(network).rows


class _Rows:
    def __init__(self, network: Network) -> None:
        self.rows: list[Row] = []
        self._shapes = {INPUT: network.input_shape}
        self._made: dict[_Turned, str] = {}
        self._moved: dict[tuple[Layer, Axes], Layer] = {}
        values = {INPUT: _Turned(INPUT, _in_order(network.input_shape))}
        for node in network.nodes:
            layer, given = network.layer(node.name), [values[name] for name in node.inputs]
            values[node.name] = self._value(node.name, layer, given, node.shape)
        end = values[network.nodes[-1].name]
        if not (self.rows and end.plain and self.rows[-1].name == end.row):
            self._turn(end)

    def _value(
        self, name: str, layer: Layer, given: Sequence[_Turned], shape: tuple[int, ...]
    ) -> _Turned:
        first, *others = given
        if type(layer) is Permute and len(layer.axes) > 1:
            return _Turned(first.row, tuple(first.axes[axis] for axis in layer.axes))
        if not all(value.plain for value in given):
            if type(layer) in _CONSTANTS:
                layer = self._with_axes(layer, first.axes)
            elif type(layer) not in (*_ALIKE, *_PAIRS):
                first = _Turned(self._in_place(first), _in_order(first.axes))
            back = _inverse(first.axes)
            others = [_Turned(v.row, tuple(v.axes[axis] for axis in back)) for v in others]
        kept = _in_order(shape) if first.plain else first.axes
        rows = (first.row, *(self._in_place(value) for value in others))
        self._emit(Row(name, layer, rows, tuple(shape[axis] for axis in _inverse(kept))))
        return _Turned(name, kept)

    def _with_axes(self, layer: Layer, axes: Axes) -> Layer:
        """The layer for values whose axes are not yet in this order: with its constant turned."""
        key = layer, axes
        if key not in self._moved:
            constant = getattr(layer, _CONSTANTS[type(layer)]).detach()
            whole = constant.reshape((1,) * (len(axes) - constant.ndim) + tuple(constant.shape))
            self._moved[key] = type(layer)(whole.permute(_inverse(axes)).contiguous())
        return self._moved[key]

    def _in_place(self, value: _Turned) -> str:
        """The name of a row with the value's numbers in the order of its axes."""
        if value.plain:
            return value.row
        if value not in self._made:
            self._made[value] = self._turn(value)
        return self._made[value]

    def _turn(self, value: _Turned) -> str:
        before = self._shapes[value.row]
        # No node of a network has a dot in its name.
        name = f"{value.row}.{'-'.join(map(str, value.axes))}"
        shape = tuple(before[axis] for axis in value.axes)
        self._emit(Row(name, Permute(axes=value.axes), (value.row,), shape))
        return name

    def _emit(self, row: Row) -> None:
        self.rows.append(row)
        self._shapes[row.name] = row.shape


def _in_order(axes: Sequence[int]) -> Axes:
    return tuple(range(len(axes)))


def _inverse(axes: Axes) -> Axes:
    return tuple(axes.index(place) for place in range(len(axes)))
