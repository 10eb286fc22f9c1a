"""Networks of norm 1 in the widths that are in use, as torch writes them: dense layers with
GroupSort2, orthogonal convolutions around the image with MaxMin.

Their last layer is such that one input deserves a radius of ``SHARE`` of its own length: about what
images have in trained networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.workers.verification.uploads.library_networks import (
    GroupSort2,
    MaxMinHalves,
    exported,
    normal,
)

__all__ = [
    "LAYERS",
    "SHARE",
    "WideNetwork",
    "dense_network",
    "image_network",
    "orthogonal_kernel",
]

#: Radius that the input deserves, over its length.
SHARE = 0.005
LAYERS = 6


@dataclass(frozen=True)
class WideNetwork:
    """onnx: the file; x [1, *shape]: an input of class 0; deserved: the radius that it has where
    nothing rounds."""

    onnx: bytes
    x: Tensor
    deserved: float


def dense_network(width: int, *, layers: int = LAYERS) -> WideNetwork:
    """Rotations of ``width`` features, each with GroupSort2 behind it (deel-torchlip)."""
    body: list[nn.Module] = []
    for index in range(layers):
        dense = nn.Linear(width, width)
        dense.weight.data = _rotation(width, index)
        dense.bias.data.zero_()
        body += [dense, GroupSort2()]
    return _ended(body, (width,))


def image_network(channels: int, side: int, *, layers: int = LAYERS) -> WideNetwork:
    """Orthogonal 3 x 3 convolutions around the image, each with MaxMin behind it (orthogonium)."""
    body: list[nn.Module] = []
    for index in range(layers):
        conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular", bias=False)
        conv.weight.data = orthogonal_kernel(channels, index)
        body += [conv, MaxMinHalves()]
    return _ended(body, (channels, side, side))


def _rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(size, size + seed)[:, :size].double())[0].float()


def orthogonal_kernel(channels: int, seed: int) -> Tensor:
    """[channels, channels, 3, 3]: along each axis a product of two (P + (I - P) z), P projections
    (Li et al. 2019): on a torus its singular values are 1."""

    def line(first: int) -> list[Tensor]:
        taps = [_rotation(channels, first).double()]
        for index in (1, 2):
            half = _rotation(channels, first + index).double()[:, : channels // 2]
            projection = half @ half.T
            rest = torch.eye(channels, dtype=torch.float64) - projection
            moved = [projection @ tap for tap in taps], [rest @ tap for tap in taps]
            none = torch.zeros_like(projection)
            taps = [a + b for a, b in zip([*moved[0], none], [none, *moved[1]], strict=True)]
        return taps

    rows, columns = line(10 * seed), line(10 * seed + 5)
    kernel = torch.stack([torch.stack([a @ b for b in columns], -1) for a in rows], -2)
    return kernel.float()


@torch.no_grad()
def _ended(body: list[nn.Module], shape: tuple[int, ...]) -> WideNetwork:
    module = nn.Sequential(*body, nn.Flatten()).eval()
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    deserved = SHARE * float(x.norm())
    z = module.double()(x.double())[0]
    # Two unit rows at right angles: the label leads by deserved sqrt(2).
    rows = torch.linalg.qr(normal(len(z), 2).double())[0].T
    lead = float((rows[0] - rows[1]) @ z) - deserved * 2**0.5
    head = nn.Linear(len(z), 2)
    head.weight.data, head.bias.data = rows.float(), torch.tensor([-lead, 0.0])
    return WideNetwork(exported(nn.Sequential(*module.float(), head), shape=shape), x, deserved)
