"""Networks of libraries of 1-Lipschitz layers, built as their own examples are.

A library that cannot be imported gives no networks. The builders take sizes that are trained on a
CPU in seconds or minutes; what is built is what the library builds.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["NETWORKS", "Built", "versions"]

#: Steps of the networks called learned: some two minutes of one core each, nearly all of it for
#: making weights orthogonal.
LEARNED = 40
#: Training images that networks called learned and trained see.
SOME, ALL = 10_000, 60_000
TEMPERATURE = 8.0
LIBRARIES = ("torch", "deel-torchlip", "orthogonium", "geotorch", "monotonenorm")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits that a network of norm 1 has."""
    return nn.functional.cross_entropy(logits * TEMPERATURE, labels)


@dataclass(frozen=True)
class Built:
    """module: as it is trained, for so many steps; plain: makes what is exported of it; data: mnist
    or cifar10; norm: in which its layers have the norm 1; folded: the exported file computes
    weights still, and ONNX Runtime writes them into it; factor: the norm of all layers but the
    last, where that is known to be less than 1. seen: the first so many training images are trained
    on, as the library's users do; where 0, the images that are measured. loss: of logits and
    labels; annealed: its rate rises to ``rate`` and falls to 0, by torch's OneCycleLR."""

    module: nn.Module
    plain: Callable[[nn.Module], nn.Module]
    data: str
    norm: str = "l2"
    steps: int = 30
    folded: bool = False
    factor: float = 1.0
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    seen: int = 0
    batch: int = 32
    rate: float = 3e-3
    annealed: bool = False


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _lip() -> Any:
    return importlib.import_module("deel.torchlip")


def _vanilla(module: nn.Module) -> nn.Module:
    """deel-torchlip's own way to plain layers."""
    plain: nn.Module = importlib.import_module("deel.torchlip.modules").vanilla_model(
        module, in_place=False
    )
    return plain


def _without_parametrizations(module: nn.Module) -> nn.Module:
    """torch's way: every weight as it is."""
    for part in module.modules():
        for name in list(getattr(part, "parametrizations", {})):
            parametrize.remove_parametrizations(part, name)
    return module


class _Joined(nn.Module):
    """deel-torchlip's residual: LipResidual of a value and a branch."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch, self.join = nn.Sequential(*branch), _lip().LipResidual()

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.join(x, self.branch(x))
        return joined


def torchlip_dense() -> Built:
    """Dense layers with GroupSort2 and FullSort, the last one of unit rows."""
    lip = _lip()
    module = lip.Sequential(
        *(nn.Flatten(), lip.SpectralLinear(784, 256), lip.GroupSort2()),
        *(lip.SpectralLinear(256, 128), lip.GroupSort2()),
        *(lip.SpectralLinear(128, 64), lip.FullSort()),
        lip.FrobeniusLinear(64, 10),
    )
    return Built(module, _vanilla, "mnist")


def torchlip_mnist() -> Built:
    """The library's example on MNIST: convolutions, l2 pools, dense layers."""
    lip = _lip()
    module = lip.Sequential(
        *(lip.SpectralConv2d(1, 16, 3, padding="same"), lip.GroupSort2()),
        lip.ScaledL2NormPool2d(2),
        *(lip.SpectralConv2d(16, 16, 3, padding="same"), lip.GroupSort2()),
        lip.ScaledL2NormPool2d(2),
        *(nn.Flatten(), lip.SpectralLinear(784, 64), lip.GroupSort2()),
        lip.FrobeniusLinear(64, 10),
    )
    return Built(module, _vanilla, "mnist")


def torchlip_folds() -> Built:
    """HouseHolder behind convolutions and dense layers, as wide as the library's examples."""
    lip = _lip()
    module = lip.Sequential(
        *(lip.SpectralConv2d(1, 16, 3, padding="same"), lip.HouseHolder(16)),
        *(lip.ScaledL2NormPool2d(2), nn.Flatten()),
        *(lip.SpectralLinear(3136, 128), lip.HouseHolder(128)),
        *(lip.SpectralLinear(128, 64), lip.HouseHolder(64)),
        lip.FrobeniusLinear(64, 10),
    )
    return Built(module, _vanilla, "mnist")


def torchlip_cifar() -> Built:
    """Every other layer of the library: around the image, reflected, pools, residuals, centring."""
    lip = _lip()
    module = nn.Sequential(
        lip.SpectralConv2d(3, 16, 3, padding=1, padding_mode="circular"),
        *(lip.BatchCentering(16), lip.GroupSort2(), lip.InvertibleDownSampling(2)),
        *(lip.SpectralConv2d(64, 32, 3, padding=1), lip.GroupSort(4)),
        _Joined(lip.SpectralConv2d(32, 32, 3, padding=1), lip.GroupSort2()),
        *(lip.ScaledAvgPool2d(2), lip.LayerCentering(32)),
        *(lip.SpectralConv2d(32, 64, 3, padding=1, stride=2), lip.LPReLU()),
        *(lip.ScaledAdaptativeL2NormPool2d((1, 1)), nn.Flatten()),
        lip.SpectralLinear(64, 10),
    )
    return Built(module, _vanilla, "cifar10", folded=True)


def _factory() -> Any:
    return importlib.import_module("orthogonium.model_factory.models_factory")


def aoc_bcop() -> Built:
    """orthogonium's BCOPLargeCNN: strides of two, 4,096 features into a dense layer of 512."""
    made = _factory()
    conv = made.ClassParam(made.AdaptiveOrthoConv2d, bias=True, padding_mode="circular")
    return Built(
        made.BCOPLargeCNN(conv=conv), _without_parametrizations, "cifar10", steps=8, folded=True
    )


def _xent() -> Any:
    """orthogonium's own loss, at its defaults."""
    return importlib.import_module("orthogonium.losses").LossXent(10)


def _learned(built: Built) -> Built:
    """For minutes instead of seconds."""
    return replace(built, steps=LEARNED, loss=_xent(), seen=SOME, batch=128)


def _trained(
    built: Built, steps: int, loss: Any = cross_entropy, batch: int = 128, rate: float = 3e-3
) -> Built:
    """For some minutes of one core, on all training images."""
    return replace(built, steps=steps, loss=loss, seen=ALL, batch=batch, rate=rate, annealed=True)


def _hkr() -> Callable[[Tensor, Tensor], Tensor]:
    """deel-torchlip's hinge and transport distance of several classes, at its defaults."""
    loss = _lip().SoftHKRMulticlassLoss()
    return lambda logits, labels: loss(logits, nn.functional.one_hot(labels, 10))


def _tau() -> Any:
    """deel-torchlip's cross-entropy at a temperature."""
    return _lip().TauCrossEntropyLoss(TEMPERATURE)


def aoc_patches() -> Built:
    """orthogonium's PatchBasedCNN: one width all through, around the image, an l2 pool."""
    made = _factory()
    centred = made.ClassParam(made.BatchCentering2D, num_features=64)
    module = made.PatchBasedCNN(dim=64, depth=4, norm=centred)
    return Built(module, _without_parametrizations, "cifar10")


def aoc_staged() -> Built:
    """orthogonium's StagedCNN, zero padding."""
    made = _factory()
    conv = made.ClassParam(
        made.AdaptiveOrthoConv2d, kernel_size=3, padding=1, padding_mode="zeros", bias=False
    )
    centred = made.ClassParam(made.LayerCentering2D, num_features=1)
    module = made.StagedCNN(
        dim_repeats=[(32, 1), (64, 1)], dim_nb_dense=(256, 2), conv=conv, norm=centred
    )
    return Built(module, _without_parametrizations, "cifar10", steps=8, folded=True)


def aoc_mixer() -> Built:
    """orthogonium's ConvMixerInspired: depthwise and pointwise convolutions."""
    made = _factory()
    module = made.ConvMixerInspired(dim=64, depth=4, norm=None, pool=partial(nn.LPPool2d, 2))
    return Built(module, _without_parametrizations, "cifar10")


def aoc_residual() -> Built:
    """orthogonium's AOCNetV1: residual branches of grouped convolutions, zero padding."""
    made = _factory()
    module = made.AOCNetV1(
        img_shape=(3, 32, 32),
        n_classes=10,
        embedding_dim=256,
        groups=4,
        block_depth=1,
        norm=None,
        pool=lambda **_: nn.LPPool2d(2, 1),
    )
    return Built(module, _without_parametrizations, "cifar10", folded=True)


def sll() -> Built:
    """orthogonium's residual blocks: SLL, SLL with orthogonal strides, AOC; AOL convolutions."""
    layers = importlib.import_module("orthogonium.layers")
    blocks = importlib.import_module("orthogonium.layers.conv.SLL")
    aol = importlib.import_module("orthogonium.layers.conv.AOL")
    module = nn.Sequential(
        *(nn.PixelUnshuffle(2), aol.AOLConv2D(12, 32, kernel_size=3, padding=1)),
        *(layers.MaxMin(), blocks.SDPBasedLipschitzResBlock(32, 2)),
        blocks.SLLxAOCLipschitzResBlock(32, 64, 2),
        blocks.AOCLipschitzResBlock(64, 1, 3),
        *(nn.LPPool2d(2, 2), nn.Flatten(), layers.OrthoLinear(1024, 128)),
        blocks.SDPBasedLipschitzDense(128, 128, 128),
        layers.UnitNormLinear(128, 10),
    )
    return Built(module, _without_parametrizations, "cifar10", folded=True)


def orthogonium_rest() -> Built:
    """Its other layers: groups, shuffled channels, joined halves, sums, adaptive SOC."""
    layers = importlib.import_module("orthogonium.layers")
    residual = importlib.import_module("orthogonium.layers.residual")
    conv = layers.AdaptiveOrthoConv2d
    module = nn.Sequential(
        *(conv(3, 32, 3), layers.MaxMin(), conv(32, 64, 4, stride=4, padding=0), layers.Abs()),
        *(conv(64, 64, 3, groups=4), layers.ChannelShuffle(4, 16), layers.MaxMin()),
        residual.ConcatResidual(nn.Sequential(conv(32, 32, 3), layers.MaxMin())),
        residual.AdditiveResidual(nn.Sequential(conv(64, 64, 3), layers.MaxMin())),
        *(nn.LPPool2d(2, 2), nn.Flatten(), layers.OrthoLinear(1024, 10)),
    )
    return Built(module, _without_parametrizations, "cifar10", folded=True)


def aoc_folds() -> Built:
    """orthogonium's PatchBasedCNN with HouseHolder, which divides by the root of 2 beside."""
    made = _factory()
    layers = importlib.import_module("orthogonium.layers")
    folds = made.ClassParam(layers.HouseHolder, channels=64)
    module = made.PatchBasedCNN(dim=64, depth=4, act=folds, norm=None)
    return Built(module, _without_parametrizations, "cifar10", factor=0.5**2.5)


class _MaxMin(nn.Module):
    """Neighbours in order, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (-1, 2))
        return torch.stack([pairs.amax(2), pairs.amin(2)], 2).flatten(1)


def torch_orthogonal() -> Built:
    """torch's own: ``orthogonal`` and ``spectral_norm``."""
    own = nn.utils.parametrizations

    def dense(inputs: int, out: int) -> nn.Module:
        return own.orthogonal(nn.Linear(inputs, out), orthogonal_map="householder")

    module = nn.Sequential(
        *(nn.Flatten(), dense(784, 256), _MaxMin(), dense(256, 256), _MaxMin()),
        *(own.spectral_norm(nn.Linear(256, 128), n_power_iterations=20), nn.ReLU()),
        dense(128, 10),
    )
    return Built(module, _without_parametrizations, "mnist")


def geotorch() -> Built:
    """Dense layers on the Stiefel manifold, as the library's example on MNIST has its core."""
    library = importlib.import_module("geotorch")
    sizes = (784, 256, 256, 128, 10)
    body: list[nn.Module] = [nn.Flatten()]
    for inputs, out in pairwise(sizes):
        layer = nn.Linear(inputs, out)
        library.orthogonal(layer, "weight")
        body += [layer, _MaxMin()]
    return Built(nn.Sequential(*body[:-1]), _without_parametrizations, "mnist")


def monotonenorm() -> Built:
    """Weights whose rows have a sum of 1, GroupSort: norm 1 from linf to linf."""
    library = importlib.import_module("monotonenorm")

    def dense(inputs: int, out: int) -> nn.Module:
        layer: nn.Module = library.direct_norm(nn.Linear(inputs, out), kind="inf", always_norm=True)
        return layer

    module = nn.Sequential(
        *(nn.Flatten(), dense(784, 256), library.GroupSort(128)),
        *(dense(256, 256), library.GroupSort(64), dense(256, 10)),
    )
    return Built(module, _without_parametrizations, "mnist", norm="linf")


#: By library and network.
NETWORKS: dict[str, Callable[[], Built]] = {
    "deel-torchlip, dense": torchlip_dense,
    "deel-torchlip, MNIST": torchlip_mnist,
    "deel-torchlip, CIFAR-10": torchlip_cifar,
    "deel-torchlip, HouseHolder": torchlip_folds,
    "orthogonium, BCOPLargeCNN": aoc_bcop,
    "orthogonium, PatchBasedCNN": aoc_patches,
    "orthogonium, HouseHolder": aoc_folds,
    "orthogonium, StagedCNN": aoc_staged,
    "orthogonium, BCOPLargeCNN, learned": lambda: _learned(aoc_bcop()),
    "orthogonium, StagedCNN, learned": lambda: _learned(aoc_staged()),
    "orthogonium, ConvMixerInspired": aoc_mixer,
    "orthogonium, AOCNetV1": aoc_residual,
    "orthogonium, SLL": sll,
    "orthogonium, other layers": orthogonium_rest,
    "torch, orthogonal": torch_orthogonal,
    "geotorch": geotorch,
    "monotonenorm": monotonenorm,
    "deel-torchlip, dense, trained": lambda: _trained(torchlip_dense(), 4000, _hkr()),
    "deel-torchlip, MNIST, trained": lambda: _trained(torchlip_mnist(), 1500, _hkr()),
    "deel-torchlip, HouseHolder, trained": lambda: _trained(torchlip_folds(), 1500, _hkr()),
    "deel-torchlip, dense, trained, tau": lambda: _trained(torchlip_dense(), 2000, _tau()),
    "torch, orthogonal, trained": lambda: _trained(torch_orthogonal(), 600, batch=256),
    "orthogonium, PatchBasedCNN, trained": lambda: _trained(aoc_patches(), 500, _xent(), rate=1e-2),
    "orthogonium, BCOPLargeCNN, trained": lambda: _trained(aoc_bcop(), 80, _xent(), 256, 1e-2),
    "orthogonium, StagedCNN, trained": lambda: _trained(aoc_staged(), 80, _xent(), 256, 1e-2),
    "deel-torchlip, CIFAR-10, trained": lambda: _trained(torchlip_cifar(), 1200, _tau()),
    "geotorch, trained": lambda: _trained(geotorch(), 120, batch=512),
    "orthogonium, HouseHolder, trained": lambda: _trained(aoc_folds(), 500, _xent(), rate=1e-2),
}
