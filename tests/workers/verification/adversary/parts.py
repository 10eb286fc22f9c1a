"""A network with every dense layer and convolution as sums of partial sums, however narrow."""

from __future__ import annotations

from models.layers.base import DeployedLayer, Layer
from models.layers.kinds import Conv2d, Linear, Reshape
from models.layers.partial_sums import in_partial_sums, summed_convolution
from models.network import INPUT, Network

__all__ = ["in_parts"]


def in_parts(network: Network) -> Network:
    """One channel in each group, and one sum over all groups."""
    shapes = {INPUT: network.input_shape, **{node.name: node.shape for node in network.nodes}}
    rows: list[tuple[str, Layer, tuple[str, ...]]] = []
    for node in network.nodes:
        parts = _parts(network.layer(node.name), shapes[node.inputs[0]])
        for part in parts:
            sources = (0,) if part.inputs is None else part.inputs
            inputs = node.inputs
            if len(parts) > 1:
                inputs = tuple(
                    f"{node.name}_{s}" if isinstance(s, str) else node.inputs[s] for s in sources
                )
            name = f"{node.name}_{part.name}" if part.name else node.name
            rows.append((name, part.layer, inputs))
    return Network(network.input_shape, rows, dropped_output=network.dropped_output).eval()


def _parts(layer: Layer, shape: tuple[int, ...]) -> tuple[DeployedLayer, ...]:
    if type(layer) is Linear and shape[0] > 1:
        first, *rest = in_partial_sums(layer.weight, layer.bias, (), (1, shape[0]))
        image = DeployedLayer(Reshape(shape=(shape[0], 1, 1)), None, "image")
        return (image, first._replace(inputs=("image",)), *rest)
    if type(layer) is Conv2d and layer.weight.shape[1] > 1:
        return summed_convolution(layer, shape, (1, layer.weight.shape[1]))
    return (DeployedLayer(layer),)
