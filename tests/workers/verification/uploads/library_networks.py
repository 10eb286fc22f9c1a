"""1-Lipschitz networks as the known libraries and the authors' code write them, in miniature.

Each is a torch module as torch's exporter sees it: windows around the image as joined slices,
GroupSort on neighbours, norms as roots of means of squares, blocks of convex potentials with
transposed convolutions, shifts as slices. Its layers have the norm 1, up to the last one.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETWORKS", "exported", "networks", "normal"]

SIDE = 6


def normal(*shape: int) -> Tensor:
    """Standard normal numbers, the same for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def orthogonal(size: int) -> Tensor:
    """An orthogonal matrix."""
    return torch.linalg.qr(normal(size, size).double())[0].float()


def around(weight: Tensor, side: int) -> Tensor:
    """The kernel over its norm on images [c, side, side], whose border is joined to the other."""
    symbol = torch.fft.fft2(weight.double(), s=(side, side)).permute(2, 3, 0, 1)
    return (weight / torch.linalg.matrix_norm(symbol, 2).max()).float()


class Around(nn.Conv2d):
    """A convolution whose window goes around the image."""

    def __init__(self, channels: int, out: int, side: int = SIDE, groups: int = 1) -> None:
        super().__init__(
            channels, out, 3, padding=1, padding_mode="circular", groups=groups, bias=True
        )
        kernel = normal(out, channels // groups, 3, 3)
        full = kernel.new_zeros(out, channels, 3, 3)
        rows, columns = out // groups, channels // groups
        for g in range(groups):
            part = kernel[g * rows : (g + 1) * rows]
            full[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = part
        scale = around(full, side).norm() / full.norm()
        self.weight.data = kernel * scale


class GroupSort2(nn.Module):
    """Neighbouring channels in order (deel-torchlip)."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.view(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:])
        least, most = pairs.min(2, keepdim=True)[0], pairs.max(2, keepdim=True)[0]
        return torch.cat([least, most], dim=2).view(x.shape)


class MaxMinHalves(nn.Module):
    """Max and min of the two halves of the channels (orthogonium, SOC)."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split(x.shape[1] // 2, 1)
        return torch.cat([torch.max(first, second), torch.min(first, second)], dim=1)


class MaxMinNeighbours(nn.Module):
    """Max and min of channels 2 k and 2 k + 1, all maxima first."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, ::2], x[:, 1::2]
        return torch.cat([torch.max(first, second), torch.min(first, second)], dim=1)


class MaxMinReduced(nn.Module):
    """The same by reductions of pairs, the two put side by side again."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (-1, 2))
        return torch.stack([pairs.amax(2), pairs.amin(2)], 2).flatten(1, 2)


class HouseHolder(nn.Module):
    """deel-torchlip's and orthogonium's, as they write it."""

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.register_buffer("theta", 1.5 + normal(1, pairs, 1, 1) / 4)
        self.theta: Tensor

    def forward(self, z: Tensor) -> Tensor:
        theta = self.theta
        x, y = z.split(z.shape[1] // 2, 1)
        beyond = x * torch.sin(0.5 * theta) - y * torch.cos(0.5 * theta)
        first = x * torch.cos(theta) + y * torch.sin(theta)
        second = x * torch.sin(theta) - y * torch.cos(theta)
        a = x * (beyond <= 0) + first * (beyond > 0)
        b = y * (beyond <= 0) + second * (beyond > 0)
        return torch.cat([a, b], dim=1)


class BothSigns(nn.Module):
    """max(x, 0) beside max(-x, 0) (deel-torchlip's MaxMin)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((F.relu(x), F.relu(-x)), dim=1)


class FullSort(nn.Module):
    """All features in order."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x, dim=1)[0]


class L2Norm(nn.Module):
    """The norm of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(torch.sum(x**2, dim=(2, 3)) + 1e-8)


class Shuffle(nn.Module):
    """Channels of groups are mixed (orthogonium)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.concat([x[:, i::2] for i in range(2)], dim=1).contiguous()


class Shifts(nn.Module):
    """A part of the channels moves one place down, another one to the right (LipNeXt)."""

    def forward(self, x: Tensor) -> Tensor:
        down, right, rest = x[:, :2], x[:, 2:4], x[:, 4:]
        down = torch.cat([down[:, :, -1:], down[:, :, :-1]], 2)
        right = torch.cat([right[..., -1:], right[..., :-1]], 3)
        return torch.cat([down, right, rest], 1)


class AbsOfHalf(nn.Module):
    """|x| on half of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([torch.abs(first), second], 1)


class SomeChannels(nn.Module):
    """A branch on half of the channels."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([first, self.branch(second)], 1)


class Sll(nn.Module):
    """x - 2 K^T T^-1 relu(K x + b), T by row sums (Araujo et al. 2023)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(normal(inner, channels, 3, 3))
        self.bias = nn.Parameter(normal(inner))
        q = torch.exp(normal(inner) / 3)
        gram = F.conv2d(self.kernel, self.kernel, padding=2).abs()
        self.scale = nn.Buffer(2 / ((gram * q[:, None, None]).sum((1, 2, 3)) / q).detach())

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(F.conv2d(x, self.kernel, self.bias, padding=1))
        inner = self.scale[None, :, None, None] * inner
        return x - F.conv_transpose2d(inner, self.kernel, padding=1)


class CplDense(nn.Module):
    """x - 2 / |W|^2 W^T relu(W x + b) (Meunier et al. 2022)."""

    def __init__(self, features: int, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(inner, features))
        self.bias = nn.Parameter(normal(inner))
        self.scale = float(2 / torch.linalg.matrix_norm(self.weight.detach(), 2) ** 2 * (1 - 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(F.linear(x, self.weight, self.bias))
        return x - self.scale * F.linear(inner, self.weight.T)


class CplAround(nn.Module):
    """The same with a convolution that goes around the image; the scale is in the weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = around(normal(channels, channels, 3, 3), SIDE)
        self.kernel = nn.Parameter(kernel)
        self.back = nn.Parameter(-2 * kernel.transpose(0, 1).flip(2, 3) * (1 - 1e-6))
        self.bias = nn.Parameter(normal(channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.pad(x, (1, 1, 1, 1), mode="circular")
        inner = torch.sigmoid(F.conv2d(inner, self.kernel, self.bias))
        return x + F.conv2d(F.pad(inner, (1, 1, 1, 1), mode="circular"), self.back)


class LinearResidual(nn.Module):
    """x + K x, the norm of the sum being 1 (LiResNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = normal(channels, channels, 3, 3) / 50
        identity = torch.zeros_like(kernel)
        nn.init.dirac_(identity)
        scale = around(kernel + identity, SIDE + 2).norm() / (kernel + identity).norm()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv.weight.data = (kernel + identity) * scale - identity

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def _rotation(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1)
    conv.weight.data = orthogonal(channels)[:, :, None, None]
    return conv


def _ended(*layers: nn.Module, features: int) -> nn.Sequential:
    """The layers on [2, 6, 6], lifted to 8 channels first, and a last one of three classes."""
    lift = nn.Conv2d(2, 8, 1, bias=False)
    lift.weight.data = orthogonal(8)[:, :2, None, None]
    head = nn.Linear(features, 3)
    head.weight.data, head.bias.data = normal(3, features), normal(3) / 10
    return nn.Sequential(lift, *layers, nn.Flatten(), head)


ALL = 8 * SIDE * SIDE

NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "torchlip, sorted neighbours": lambda: _ended(
        Around(8, 8), GroupSort2(), nn.LPPool2d(2, 2), features=8 * 9
    ),
    "torchlip, both signs and a full sort": lambda: _ended(
        BothSigns(), nn.PixelUnshuffle(2), nn.Flatten(), FullSort(), features=16 * 36
    ),
    "orthogonium": lambda: _ended(
        Around(8, 8), MaxMinHalves(), Shuffle(), Around(8, 8, groups=2), features=ALL
    ),
    "householder": lambda: _ended(
        HouseHolder(4), Around(8, 8), HouseHolder(4), nn.LPPool2d(2, 2), features=8 * 9
    ),
    "orthogonium, a branch on half": lambda: _ended(
        SomeChannels(nn.Sequential(Around(4, 4), MaxMinNeighbours())), L2Norm(), features=8
    ),
    "lipnext": lambda: _ended(_rotation(8), AbsOfHalf(), Shifts(), _rotation(8), features=ALL),
    "sll": lambda: _ended(Sll(8, 12), Sll(8, 4), features=ALL),
    "cpl": lambda: _ended(CplAround(8), nn.Flatten(), CplDense(ALL, 7), features=ALL),
    "liresnet": lambda: _ended(LinearResidual(8), MaxMinReduced(), features=ALL),
}


def networks(name: str) -> nn.Sequential:
    """The network of this name."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def exported(module: nn.Module, opset: int = 17, shape: tuple[int, ...] = (2, SIDE, SIDE)) -> bytes:
    """The file that torch writes of a module on inputs of this shape."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.rand(1, *shape),),
            stream,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
            dynamo=False,
        )
    return stream.getvalue()
