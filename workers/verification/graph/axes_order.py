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
from models.network import INPUT, Network, Node

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
        orders = _orders(network)
        values = {INPUT: _Turned(INPUT, _in_order(network.input_shape))}
        for node in network.nodes:
            layer, given = network.layer(node.name), [values[name] for name in node.inputs]
            order = orders.get(node.name, _in_order(node.shape))
            values[node.name] = self._value(node, layer, given, order)
        end = values[network.nodes[-1].name]
        if not (self.rows and end.plain and self.rows[-1].name == end.row):
            self._turn(end)

    def _value(self, node: Node, layer: Layer, given: Sequence[_Turned], order: Axes) -> _Turned:
        """The value of a node; of one that works number by number, held in this order."""
        turn = _turn(layer)
        if turn is not None:
            return _Turned(given[0].row, tuple(given[0].axes[axis] for axis in turn))
        shape, back = node.shape, _inverse(order)
        if _by_number(layer):
            given = [_Turned(v.row, tuple(v.axes[axis] for axis in back)) for v in given]
            shape = tuple(shape[axis] for axis in back)
        if type(layer) in _CONSTANTS and order != _in_order(order):
            layer = self._with_axes(layer, order)
        rows = tuple(self._in_place(value) for value in given)
        self._emit(Row(node.name, layer, rows, shape))
        return _Turned(node.name, order if _by_number(layer) else _in_order(shape))

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


def _turn(layer: Layer) -> Axes | None:
    """The order of axes that a layer makes; None: it does something else."""
    return layer.axes if type(layer) is Permute and len(layer.axes) > 1 else None


def _by_number(layer: Layer) -> bool:
    if isinstance(layer, Abs) and layer.channels is not None:
        # It counts places along the first axis.
        return False
    return type(layer) in _ALIKE or type(layer) in _CONSTANTS or type(layer) in _PAIRS


def _orders(network: Network) -> dict[str, Axes]:
    """For nodes that work number by number the order of axes to hold them in, where it is another.

    Such nodes that read each other are held in one order: in which fewest turns are left between
    them and what comes before and behind.
    """
    groups = _groups(network)
    #: By group: turns that lead into it, turns that lead out of it, and other nodes that do.
    into: dict[str, list[Axes]] = {}
    out: dict[str, list[Axes]] = {}
    other: dict[str, set[str]] = {}
    for node in network.nodes:
        layer, group = network.layer(node.name), groups[node.name]
        turn = _turn(layer)
        if turn is not None:
            into.setdefault(group, []).append(turn)
            out.setdefault(groups[node.inputs[0]], []).append(turn)
        elif not _by_number(layer):
            other.setdefault(group, set()).add(node.name)
            for source in node.inputs:
                other.setdefault(groups[source], set()).add(source)
    ends = network.nodes[-1].name
    other.setdefault(groups[ends], set()).add(ends)
    other.setdefault(groups[INPUT], set()).add(INPUT)
    orders: dict[str, Axes] = {}
    for group, turns in into.items():

        def left(order: Axes, group: str = group) -> int:
            plain = order == _in_order(order)
            before = sum(order != turn for turn in into[group])
            behind = sum(order != _inverse(turn) for turn in out.get(group, ()))
            return before + behind + (0 if plain else len(other.get(group, ())))

        best = min((_in_order(turns[0]), *turns), key=left)
        orders[group] = best
    return {
        node.name: orders[groups[node.name]]
        for node in network.nodes
        if groups[node.name] in orders and _by_number(network.layer(node.name))
    }


def _groups(network: Network) -> dict[str, str]:
    """By value, the first one of its group: values that nodes read or give number by number."""
    leaders = {INPUT: INPUT}

    def leader(name: str) -> str:
        while leaders[name] != name:
            leaders[name] = leaders[leaders[name]]
            name = leaders[name]
        return name

    for node in network.nodes:
        leaders[node.name] = node.name
        if _by_number(network.layer(node.name)):
            for source in node.inputs:
                leaders[leader(node.name)] = leader(source)
    return {name: leader(name) for name in leaders}


def _in_order(axes: Sequence[int]) -> Axes:
    return tuple(range(len(axes)))


def _inverse(axes: Axes) -> Axes:
    return tuple(axes.index(place) for place in range(len(axes)))
