"""Sums of partial sums in a network, as the one layer that each of them is.

For gradients, which need no float32 file, and for the certificate's list of layers. Bounds have a
recognition of their own (``workers.verification.graph.partial_sums``), which proves what it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from models.layers.affine import Conv2d
from models.layers.base import Layer
from models.layers.joins import ReduceSum
from models.layers.shapes import Reshape
from models.network import Network

__all__ = ["Chain", "chain_at", "with_whole_sums"]


@dataclass(frozen=True)
class Chain:
    """last: place of the chain's last node. conv: of groups whose results are summed. levels: terms
    of each sum. flat: an image of one place, the result is [out]. kept: groups that stay apart, of
    a convolution in groups of its own: each is summed over its own blocks."""

    last: int
    conv: Conv2d
    levels: tuple[int, ...]
    flat: bool
    kept: int = 1

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """Weight [out, in / kept, h, w], bias [out] of the one convolution, of ``kept`` groups."""
        conv, kept = self.conv, self.kept
        groups, (rows, block, *kernel) = conv.groups // kept, conv.weight.shape
        out = rows // groups
        weight = conv.weight.reshape(kept, groups, -1, block, *kernel).transpose(1, 2)
        bias = None if conv.bias is None else conv.bias.reshape(kept, groups, -1).sum(1).flatten()
        return weight.reshape(out, groups * block, *kernel), bias


def chain_at(network: Network, first: int) -> Chain | None:
    """The chain that begins with the node ``first``; None where there is none."""
    nodes = network.nodes
    conv = network.layer(nodes[first].name)
    view = network.layer(nodes[first + 1].name) if first + 1 < len(nodes) else None
    if type(conv) is not Conv2d or conv.groups == 1 or not isinstance(view, Reshape):
        return None
    groups, last, levels = conv.groups, first + 1, list[int]()
    summed = network.layer(nodes[first + 2].name) if first + 2 < len(nodes) else None
    # Of groups that stay apart, the sums are over the axis behind them.
    apart = isinstance(summed, ReduceSum) and summed.axes == (1,)
    front, left = nodes[last].shape[:apart], nodes[last].shape[apart:]
    kept = math.prod(front)
    while kept * math.prod(levels) < groups and last + 1 < len(nodes):
        layer = network.layer(nodes[last + 1].name)
        over = isinstance(layer, ReduceSum) and layer.axes == (int(apart),) and not layer.keepdims
        if not over or not left:
            return None
        levels, left, last = [*levels, left[0]], left[1:], last + 1
    out, places = conv.weight.shape[0] // groups, nodes[first].shape[1:]
    flat = left == (out,) and tuple(conv.weight.shape[2:]) == (1, 1) and not apart
    flat = flat and places == (1, 1) and not any(conv.padding)
    if kept * math.prod(levels) != groups or not (flat or left == (out, *places)):
        return None
    if apart:
        last += 1
        behind = network.layer(nodes[last].name) if last < len(nodes) else None
        if not isinstance(behind, Reshape) or nodes[last].shape != (kept * out, *places):
            return None
    read = [source for node in nodes for source in node.inputs]
    inside = nodes[first : last + 1]
    follows = all(
        after.inputs == (before.name,) and read.count(before.name) == 1
        for before, after in pairwise(inside)
    )
    return Chain(last, conv, tuple(levels), flat, kept) if follows else None


def with_whole_sums(network: Network) -> Network:
    """The same function in real arithmetic, each chain as one convolution: less to compute, and
    much less memory for gradients. It rounds in other places: nothing is proved of it."""
    rows: list[tuple[str, Layer, tuple[str, ...]]] = []
    made: dict[Layer, Conv2d] = {}
    index = 0
    while index < len(network.nodes):
        node, chain = network.nodes[index], chain_at(network, index)
        layer, name, inputs = network.layer(node.name), node.name, node.inputs
        if chain is not None:
            index, name = chain.last, network.nodes[chain.last].name
            if chain.conv not in made:
                made[chain.conv] = _whole(chain)
            layer = made[chain.conv]
            if chain.flat:
                rows.append((node.name, layer, inputs))
                layer, inputs = Reshape(shape=network.nodes[chain.last].shape), (node.name,)
        rows.append((name, layer, inputs))
        index += 1
    return Network(network.input_shape, rows, dropped_output=network.dropped_output).eval()


def _whole(chain: Chain) -> Conv2d:
    conv, (weight, bias) = chain.conv, chain.whole()
    return Conv2d(
        weight,
        bias,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=chain.kept,
    )
