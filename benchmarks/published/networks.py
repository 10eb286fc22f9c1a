"""Published networks and the images they are judged on: data for the benchmarks.

The folder given by ``--shared`` or CERTSERVE_TEST_DATA holds ``models`` and ``data`` as the tests
expect them; what is not there is left out.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.checkpoints.state_dict import load_checkpoint
from models.network import Network
from models.onnx.importer import import_onnx

__all__ = [
    "CIFAR",
    "SETTINGS",
    "Setting",
    "all_images",
    "load_images",
    "load_network",
    "mnist",
    "unpacked",
]

CIFAR = ([0.485, 0.456, 0.406], [0.225, 0.225, 0.225])
_COLT = ([0.1307], [0.3081])
_BASE, _WIDE = "vnncomp2021/cifar_base_kw.onnx", "vnncomp2021/cifar_wide_kw.onnx"
_MLP, _CONV, _CAP = (
    "vnncomp2021/mnist-net_256x2.onnx",
    "colt/mnist_0.1.onnx",
    "cap/mnist_linf_0_1.pth",
)


@dataclass(frozen=True)
class Setting:
    """A network under a threat (epsilon in pixel units) and what auto_LiRPA 0.7.1 verifies of 100.

    reference: IBP, CROWN, alpha-CROWN (20 iterations), in plain float32; on CIFAR-10 of other
    images than here (71 and 66 of them classified correctly).
    """

    path: str
    norm: str
    epsilon: str
    reference: tuple[int, int, int]
    normalization: tuple[list[float], list[float]] | None = None
    architecture: str = ""

    @property
    def data(self) -> str:
        """``cifar10`` or ``mnist``."""
        return "cifar10" if "cifar" in self.path else "mnist"

    @property
    def reach(self) -> float:
        """Epsilon as a number."""
        return float(Fraction(self.epsilon))


SETTINGS = (
    Setting(_BASE, "l2", "36/255", (0, 6, 7), CIFAR),
    Setting(_BASE, "linf", "2/255", (0, 51, 51), CIFAR),
    Setting(_WIDE, "l2", "36/255", (0, 22, 22), CIFAR),
    Setting(_WIDE, "linf", "2/255", (0, 52, 52), CIFAR),
    Setting(_CONV, "l2", "0.5", (0, 0, 0), _COLT),
    Setting(_CONV, "l2", "1.58", (0, 0, 0), _COLT),
    Setting(_CONV, "linf", "0.1", (0, 94, 95), _COLT),
    Setting(_CAP, "l2", "0.5", (0, 0, 0), architecture="mnist-small"),
    Setting(_CAP, "l2", "1.58", (0, 0, 0), architecture="mnist-small"),
    Setting(_CAP, "linf", "0.1", (0, 96, 96), architecture="mnist-small"),
    Setting(_MLP, "l2", "0.5", (0, 10, 11)),
    Setting(_MLP, "l2", "1.58", (0, 0, 0)),
    Setting(_MLP, "linf", "0.1", (0, 0, 0)),
    Setting(_MLP, "linf", "0.03", (0, 35, 36)),
)


def load_network(setting: Setting, models: Path) -> Network:
    """The network of pixels: its normalisation inside."""
    path = models / setting.path
    if setting.architecture:
        network = load_checkpoint(path, "pt", setting.architecture)
    else:
        network = import_onnx(path)
    if setting.normalization is not None:
        network = network.normalized(*setting.normalization)
    return network.eval()


def load_images(name: str, data: Path, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x float32 in [0, 1], NCHW; y): the first ``per_class`` test images of each class."""
    x, y = mnist(data, "t10k") if name == "mnist" else _cifar(data)
    chosen = np.sort(np.concatenate([np.flatnonzero(y == c)[:per_class] for c in range(10)]))
    pixels = x[chosen].astype(np.float32) / np.float32(255)
    return torch.from_numpy(pixels), torch.from_numpy(y[chosen].astype(np.int64))


def all_images(name: str, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(x float32 in [0, 1], NCHW; y): every test image, in the data set's order."""
    x, y = mnist(data, "t10k") if name == "mnist" else unpacked(data / "cifar10" / "test.npz")
    pixels = x.astype(np.float32) / np.float32(255)
    return torch.from_numpy(pixels), torch.from_numpy(y.astype(np.int64))


def unpacked(path: Path, count: int = 10_000) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """The first thousands of images [n, 3, 32, 32] and labels [n] of a file of lossless mosaics of
    25 x 40 images."""
    tiles = []
    with np.load(path, allow_pickle=False) as pack:
        for number in range(count // 1000):
            held = Image.open(io.BytesIO(pack[f"mosaic_{number}"].tobytes()))
            mosaic = np.asarray(held.convert("RGB")).reshape(25, 32, 40, 32, 3)
            tiles.append(mosaic.transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32))
        return np.concatenate(tiles), pack["labels"][:count]


def mnist(data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Pixels as they are stored [n, 1, 28, 28] and labels [n] of ``train`` or ``t10k``."""
    images = gzip.decompress((data / "mnist" / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((data / "mnist" / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return x, np.frombuffer(labels, np.uint8, offset=8)


def _cifar(data: Path) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    plain = data / "cifar10_test.npz"
    if plain.exists():
        with np.load(plain, allow_pickle=False) as stored:
            return stored["x"].transpose(0, 3, 1, 2), stored["y"]
    return unpacked(data / "cifar10" / "test.npz", 1000)
