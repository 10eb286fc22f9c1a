"""Another file for the same network: wide sums in partial sums, so that float32 costs less radius.

    python -m models.rewriting NETWORK.onnx REWRITTEN.onnx

A certificate holds for a file in any order of summation, and a sum of n products may be off by some
n^1.5 / 3.5 roundings of its input (``workers.verification.summation``). Sums of partial sums are
known to far fewer (``models.layers.partial_sums``): the same function in exact arithmetic, and
another file, of which nothing that is proved holds for the first one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import nn

from models.errors import ModelError
from models.layers.affine import Conv2d, Linear
from models.layers.base import DeployedLayer, Layer, Shape
from models.layers.partial_sums import in_partial_sums as dense_in_partial_sums
from models.layers.partial_sums import summed_convolution
from models.layers.shapes import Pad, Reshape
from models.network import INPUT, Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes, read_onnx_bytes

__all__ = [
    "Rewritten",
    "arrangement",
    "in_partial_sums",
    "main",
    "rewritten",
    "rewritten_file",
    "written",
]

#: Opsets that are tried: the later one has operators that the first one lacks.
OPSETS = (17, 21)

#: What all layers together may lose of their input, in unit roundoffs of float32: 9.5e-5, which is
#: 2 % of a radius of 0.005. Deep networks lose less in each layer.
LOST = 1600.0
#: Numbers that the parts of one layer may be, per sample (16 MB).
PARTS = 2**22
#: Levels above the blocks. Each reads what the one before it has left, so that they cost little.
LEVELS = 4
#: Where the least loss is beyond that: how much more than the least is taken for fewer groups.
NEARLY = 1.1
#: Dense layers whose width has no suitable divisors get up to so many zeros as further inputs.
ZEROS = 16


@dataclass(frozen=True)
class Rewritten:
    """network: as it is deployed. changed: names of the layers that are in partial sums now; wide:
    of those whose sums are as wide as before: kernels that are wide on one channel."""

    network: Network
    changed: tuple[str, ...]
    wide: tuple[str, ...]


def in_partial_sums(network: Network) -> Network:
    """The network as it is deployed, its wide dense layers and convolutions in partial sums.

    Logits differ by rounding alone.
    """
    return rewritten(network).network


def rewritten(network: Network, *, lost: float = LOST) -> Rewritten:
    """The same, and which layers it is about. ``lost``: what all layers together may lose of their
    input, in unit roundoffs; layers that lose little enough as they are stay so."""
    whole = network.deployed()
    shapes: dict[str, Shape] = {INPUT: whole.input_shape}
    shapes |= {node.name: node.shape for node in whole.nodes}
    sums = [node for node in whole.nodes if type(whole.layer(node.name)) in (Conv2d, Linear)]
    goal = lost / max(1, len(sums))
    made: dict[tuple[Layer, Shape], Layer] = {}
    rows: list[tuple[str, Layer, tuple[str, ...]]] = []
    changed, wide = [], []
    for node in whole.nodes:
        layer = whole.layer(node.name)
        key = (layer, shapes[node.inputs[0]])
        if key not in made:
            made[key] = _summed(*key, goal)
        rows.append((node.name, made[key], node.inputs))
        if made[key] is not layer:
            changed.append(node.name)
        elif type(layer) is Conv2d and _lost((layer.weight[0].numel(),)) > goal:
            wide.append(node.name)
    found = Network(whole.input_shape, rows, dropped_output=whole.dropped_output).deployed()
    return Rewritten(found, tuple(changed), tuple(wide))


class _InPartialSums(Layer):
    """A layer that is deployed as a chain; no kind of its own, it is never stored."""

    def __init__(self, parts: tuple[DeployedLayer, ...], layer: Layer) -> None:
        super().__init__()
        self.parts = parts
        #: As they hold its weights.
        self.layers = nn.ModuleList([part.layer for part in parts])
        self._output_shape = layer.output_shape

    def output_shape(self, *shapes: Shape) -> Shape:
        return self._output_shape(*shapes)

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        return self.parts


def _summed(layer: Layer, shape: Shape, goal: float) -> Layer:
    """The layer in partial sums; itself where it loses no more than ``goal``."""
    if type(layer) is Linear:
        parts = _dense(layer, goal)
    elif type(layer) is Conv2d:
        channels, *taps = layer.weight.shape[1:]
        groups = PARTS // math.prod(layer.output_shape(shape))
        sizes = arrangement(channels, math.prod(taps), groups, goal)
        parts = summed_convolution(layer, shape, sizes)
    else:
        return layer
    return layer if len(parts) == 1 else _InPartialSums(parts, layer)


def _dense(layer: Linear, goal: float) -> tuple[DeployedLayer, ...]:
    out, features = layer.weight.shape
    sizes, zeros = arrangement(features, 1, PARTS // out, goal), 0
    if _lost(sizes) > goal:
        widths = range(features + 1, features + ZEROS + 1)
        best = min((arrangement(n, 1, PARTS // out, goal) for n in widths), key=_lost)
        if _lost(best) * 2.0 < _lost(sizes):
            sizes, zeros = best, math.prod(best) - features
    if len(sizes) == 1:
        return (DeployedLayer(layer),)
    weight = nn.functional.pad(layer.weight.detach(), (0, zeros))
    first, *rest = dense_in_partial_sums(weight, layer.bias, (), sizes)
    image = DeployedLayer(Reshape(shape=(features + zeros, 1, 1)), None, "image")
    before: list[DeployedLayer] = [image]
    if zeros:
        before = [
            DeployedLayer(Reshape(shape=(features, 1)), None, "column"),
            DeployedLayer(Pad(padding=(0, 0, zeros, 0)), ("column",), "longer"),
            image._replace(inputs=("longer",)),
        ]
    return (*before, first._replace(inputs=("image",)), *rest)


def arrangement(channels: int, taps: int, groups: int, goal: float) -> tuple[int, ...]:
    """Channels of a block, then the terms of each level, whose product is ``channels``: the fewest
    groups, ``groups`` at most, that lose no more than ``goal``, or than nearly the least.

    ``taps``: terms of a channel. One block where that is enough.
    """
    losses = {
        sizes: _lost((sizes[0] * taps, *sizes[1:]))
        for sizes in _products(channels, LEVELS)
        if channels // sizes[0] <= max(1, groups)
    }
    enough = max(goal, NEARLY * min(losses.values()))
    return min(
        (sizes for sizes, lost in losses.items() if lost <= enough),
        key=lambda sizes: (channels // sizes[0], len(sizes), losses[sizes]),
    )


def _products(number: int, levels: int) -> Iterator[tuple[int, ...]]:
    """All ways to write ``number`` as a first factor and at most ``levels`` more, each at least
    2."""
    yield (number,)
    if levels:
        for last in _divisors(number):
            yield from ((*rest, last) for rest in _products(number // last, levels - 1))


@cache
def _divisors(number: int) -> tuple[int, ...]:
    """The divisors from 2 on, rising."""
    low = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return tuple(sorted({*low, *(number // size for size in low)} - {1}))


def _lost(sizes: tuple[int, ...]) -> float:
    """About what sums of these sizes may round (``workers.verification.summation``): u |x| times
    the sum over the levels of sqrt(trees) (n^1.5 / sqrt(12) + 0.6 n - 1), and for the products of
    the first 0.9 n^0.5 more; up to 32 terms within a tenth of what is computed there."""
    total, trees = 0.0, 1.0
    for level, terms in reversed([*enumerate(sizes)]):
        products = 0.0 if level else 0.9 * math.sqrt(terms)
        total += math.sqrt(trees) * (terms**1.5 / math.sqrt(12.0) + 0.6 * terms - 1.0 + products)
        trees *= terms
    return total


def written(found: Rewritten) -> bytes:
    """The rewritten network as an ONNX file. Raises ModelError where a layer has no ONNX form."""
    for opset in OPSETS:
        try:
            return export_onnx(found.network, opset=opset)
        except ModelError as error:
            refused = error
    raise refused


def rewritten_file(data: bytes) -> tuple[bytes, list[str]]:
    """The rewritten form of an ONNX file's bytes, and what to know of it, a sentence each.

    Raises ModelError: what is no network that is taken here, takes bytes, or cannot be written.
    """
    imported = read_onnx_bytes(data)
    if imported.takes_bytes:
        raise ModelError(
            "the model takes bytes: the rewritten file would take floats",
            code="not_rewritable",
            hint="export it with a float32 input",
        )
    found = rewritten(imported.network)
    if not found.changed:
        raise ModelError(
            "no sum of it would be another one",
            code="not_rewritable",
            hint="none is so wide that it would gain by it, or those that are stay as they are: "
            "windows on one channel, and layers of too many outputs",
        )
    file = written(found)
    # Partial sums are more nodes and more numbers on the way: what is written is to be taken, too.
    import_onnx_bytes(file)
    said = [f"In partial sums now: {', '.join(found.changed)}."]
    if found.wide:
        said.append(f"As wide as before: {', '.join(found.wide)}.")
    left_out = "Sigmoid" if imported.binary else imported.network.dropped_output
    if left_out is not None:
        scores = "two scores, 0 and the file's one" if imported.binary else "the scores"
        said.append(f"It answers with {scores} before the final {left_out}.")
    said.append("It is another file: what was certified of the first one is not said of it.")
    return file, said


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite a file. Exit status 0; 2: it cannot be read, rewritten or written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path)
    parser.add_argument("rewritten", type=Path)
    options = parser.parse_args(arguments)
    try:
        file, said = rewritten_file(options.network.read_bytes())
        options.rewritten.write_bytes(file)
    except ModelError as error:
        print(f"not rewritten: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return 2
    except OSError as error:
        print(f"not rewritten: {error}")
        return 2
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
