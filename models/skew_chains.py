"""Series of one skew convolution in a network, z <- x + K z / c.

For the certificate's list of layers. They are what ``models.layers.one_lipschitz.skew`` deploys.
Bounds have a recognition of their own (``workers.verification.graph.skew.chains``), which proves
what it says; of this one the checker does (``check.network.Series``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.chains import chain_at
from models.layers.affine import Conv2d, Divide
from models.layers.joins import Add
from models.network import Network

__all__ = ["SkewChain", "skew_series_at"]

#: Stages at most, and divisors.
MOST_STAGES, MOST_DIVISOR = 24, 64


@dataclass(frozen=True)
class SkewChain:
    """last: place of the last node. conv: of every stage, its input channels in groups whose
    results are summed in ``levels`` ((1,): one group). divisors: of the stages, in order."""

    last: int
    conv: Conv2d
    levels: tuple[int, ...]
    divisors: tuple[int, ...]


@dataclass(frozen=True)
class _Stage:
    last: int
    conv: Conv2d
    levels: tuple[int, ...]
    divisor: int


def skew_series_at(network: Network, first: int) -> SkewChain | None:
    """The series that begins with the node ``first``; None where there is none. Whether its map is
    skew is the checker's to say."""
    nodes = network.nodes
    if len(nodes[first].inputs) != 1:
        return None
    source = at = nodes[first].inputs[0]
    place, stages = first, list[_Stage]()
    while place < len(nodes) and len(stages) < MOST_STAGES:
        stage = _stage(network, place, at, source)
        if stage is None or (stages and not _alike(stage, stages[0])):
            break
        stages.append(stage)
        place, at = stage.last + 1, nodes[stage.last].name
    if not stages:
        return None
    last, head = stages[-1].last, stages[0]
    inside = [node.name for node in nodes[first:last]]
    read = [name for node in nodes for name in node.inputs]
    if any(read.count(name) != 1 for name in inside):
        return None
    return SkewChain(last, head.conv, head.levels, tuple(stage.divisor for stage in stages))


def _stage(network: Network, first: int, at: str, source: str) -> _Stage | None:
    """One convolution of ``at``, whole or in partial sums, a quotient, and the sum with
    ``source``."""
    nodes = network.nodes
    if nodes[first].inputs != (at,):
        return None
    layer, chain = network.layer(nodes[first].name), chain_at(network, first)
    if chain is not None and chain.kept == 1 and not chain.flat:
        conv, levels, last = chain.conv, chain.levels, chain.last
    elif type(layer) is Conv2d and layer.groups == 1:
        conv, levels, last = layer, (1,), first
    else:
        return None
    height, width = conv.weight.shape[2:]
    same = (height // 2, width // 2, height // 2, width // 2)
    plain = (tuple(conv.stride), tuple(conv.dilation), tuple(conv.padding)) == ((1, 1),) * 2 + (
        same,
    )
    if conv.bias is not None or not plain or last + 1 >= len(nodes):
        return None
    divisor = 1
    factor = network.layer(nodes[last + 1].name)
    if isinstance(factor, Divide) and nodes[last + 1].inputs == (nodes[last].name,):
        value = float(factor.value.flatten()[0]) if factor.value.numel() == 1 else 0.0
        if not (1.0 <= value <= MOST_DIVISOR and value == int(value)):
            return None
        divisor, last = int(value), last + 1
    if last + 1 >= len(nodes) or not isinstance(network.layer(nodes[last + 1].name), Add):
        return None
    if sorted(nodes[last + 1].inputs) != sorted((source, nodes[last].name)):
        return None
    return _Stage(last + 1, conv, levels, divisor)


def _alike(stage: _Stage, other: _Stage) -> bool:
    """Whether both are the same map, deployed alike."""
    weight, known = stage.conv.weight, other.conv.weight
    return stage.levels == other.levels and (weight is known or torch.equal(weight, known))
