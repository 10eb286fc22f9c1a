"""Random affine maps under masks and slopes, with their true norms."""

from __future__ import annotations

import math

import torch

from models.layers.kinds import Conv2d, Layer, Linear, ReLU, Reshape
from models.network import Network
from tests.workers.verification.networks import Builder
from workers.verification.forward.propagation import Enclosure
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.per_sample import MaskedMap
from workers.verification.norms.spectral import materialize


def only_map(layer: Layer, shape: tuple[int, ...]) -> Dense | Convolution:
    """The affine map of one layer."""
    size = math.prod(layer.output_shape(shape))
    rows = [("a", layer, ("input",)), ("r", ReLU(), ("a",)), ("f", Reshape(shape=(size,)), ("r",))]
    network = Network(shape, rows)
    op = CompiledNetwork.compile(network).steps[0].op
    assert isinstance(op, Dense | Convolution)
    return op


def random_map(seed: int, scale: float) -> Dense | Convolution:
    """A convolution for every odd seed, a dense map for every even one."""
    b = Builder((3, 6, 5) if seed % 2 else (20,), seed)
    if seed % 2:
        groups = 3 if seed % 3 == 0 else 1
        b.conv(6, 3, stride=1 + seed % 4 // 2, padding=(1, 0, 2, 1), groups=groups)
    else:
        b.linear(15)
    layer = b.rows[0][1]
    assert isinstance(layer, Linear | Conv2d)
    with torch.no_grad():
        layer.weight.mul_(scale)
    return only_map(layer, b.input_shape)


def masked_case(
    op: Dense | Convolution, seed: int, dtype: torch.dtype
) -> tuple[MaskedMap, torch.Tensor, torch.Tensor]:
    """(map, slopes, true norms) for random masks of very different density."""
    generator = torch.Generator().manual_seed(seed)
    count = 5
    share = torch.tensor([1.0, 0.5, 0.1, 0.02, 0.0]).reshape(-1, *([1] * len(op.in_shape)))
    mask = torch.rand(count, *op.in_shape, generator=generator) < share
    centre = torch.rand(count, *op.in_shape, generator=generator).to(dtype)
    state = Enclosure(
        centre,
        torch.ones(count, dtype=torch.float64),
        torch.where(mask, centre - 1, centre),
        torch.where(mask, centre + 1, centre),
        torch.ones(count, dtype=torch.bool),
    )
    masked = MaskedMap.of(op, state)
    assert torch.equal(masked.mask, mask.to(dtype))
    share = share.reshape(-1, *([1] * len(op.out_shape)))
    slopes = torch.rand(count, *op.out_shape, generator=generator).to(dtype)
    slopes = slopes * (torch.rand(count, *op.out_shape, generator=generator) < share.flip(0) + 0.1)
    matrix = materialize(op.linear, op.in_shape).T
    exact = [
        torch.linalg.matrix_norm(
            slopes[row].double().flatten()[:, None] * matrix * mask[row].double().flatten(), 2
        )
        for row in range(count)
    ]
    return masked, slopes, torch.stack(exact)
