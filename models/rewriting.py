"""Another file for the same network: wide sums in partial sums, so that float32 costs less radius.

    python -m models.rewriting NETWORK.onnx REWRITTEN.onnx

A certificate holds for the file that was uploaded, in any order of summation, and a sum of n
products may be off by some n^1.5 / 3.5 roundings of its input (``workers.verification.summation``).
What a library exports as one sum per output can be served as sums of partial sums, which are known
to far fewer roundings (``models.layers.partial_sums``): the same function in exact arithmetic,
another file, which is then uploaded and certified as it stands.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.layers.affine import Conv2d, Linear
from models.layers.base import DeployedLayer, Layer, Shape
from models.layers.one_lipschitz import SummedLinear
from models.layers.partial_sums import convolution_in_partial_sums
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes

__all__ = ["in_partial_sums"]


class _SummedConvolution(Conv2d):
    """A convolution that is deployed in partial sums; no kind of its own, it is never stored."""

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        return convolution_in_partial_sums(
            self.weight, self.bias, shapes[0], self.padding, self.stride
        )


def in_partial_sums(network: Network) -> Network:
    """The network as it is deployed, its dense layers and convolutions in partial sums.

    Convolutions in groups or with holes stay as they are. Logits differ by rounding alone.
    """
    made: dict[Layer, Layer] = {}
    for node in network.nodes:
        layer = network.layer(node.name)
        made.setdefault(layer, _summed(layer))
    rows = [(node.name, made[network.layer(node.name)], node.inputs) for node in network.nodes]
    return Network(network.input_shape, rows, dropped_output=network.dropped_output).deployed()


def _summed(layer: Layer) -> Layer:
    if type(layer) is Linear:
        return SummedLinear(layer.weight, layer.bias)
    if type(layer) is Conv2d and layer.groups == 1 and layer.dilation == (1, 1):
        return _SummedConvolution(
            layer.weight, layer.bias, padding=layer.padding, stride=layer.stride
        )
    return layer


def main() -> None:
    """Rewrite a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path)
    parser.add_argument("rewritten", type=Path)
    options = parser.parse_args()
    network = import_onnx_bytes(options.network.read_bytes())
    options.rewritten.write_bytes(export_onnx(in_partial_sums(network)))


if __name__ == "__main__":
    main()
