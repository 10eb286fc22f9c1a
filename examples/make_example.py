"""Train the example network certifiably on MNIST and pack it with real test images.

    OMP_NUM_THREADS=1 .venv/bin/python examples/make_example.py --data FOLDER

FOLDER holds the four MNIST files (``train-images-idx3-ubyte.gz`` and so on). Written beside this
script: ``mnist_certified.onnx`` (two convolutions, two dense layers, ReLU) and ``mnist_test.npz``
(the first test images). ``README.md`` in this folder says what it reached and in what time.

The loss is EMMA (Hu et al., NeurIPS 2023): cross-entropy over the logits in which every wrong
class j is lifted by the most that a perturbation of size epsilon can win against the label, that is
epsilon * L * ||w_label - w_j|| with L the product of the operator norms below the last layer. While
training, the norms come from warm-started power iteration (good gradients, no guarantee); the
figures printed use exact norms of the materialised operators in float64. The certificate itself is
the service's business: post both files to it.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.layers.kinds import Conv2d, Layer, Linear, ReLU, Reshape
from models.network import Network
from models.onnx.exporter.export import export_onnx

HERE = Path(__file__).resolve().parent
VALIDATION = 5_000
REPORTED_EPSILONS = (0.3, 1.0)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped idx file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is not an idx file of unsigned bytes")
    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i]) for i in range(rank)]
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def as_input(images: NDArray[np.uint8]) -> Tensor:
    """Pixels in [0, 1], float32 [n, 1, 28, 28]."""
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)).unsqueeze(1)


def build_network(hidden: int) -> Network:
    """conv 16 - conv 32 - dense - dense 10, all orthogonal at the start: every norm is about 1."""

    def orthogonal(*shape: int) -> Tensor:
        return nn.init.orthogonal_(torch.empty(shape))

    return Network(
        (1, 28, 28),
        [
            (
                "conv1",
                Conv2d(orthogonal(16, 1, 4, 4), torch.zeros(16), stride=2, padding=1),
                ["input"],
            ),
            ("relu1", ReLU(), ["conv1"]),
            (
                "conv2",
                Conv2d(orthogonal(32, 16, 4, 4), torch.zeros(32), stride=2, padding=1),
                ["relu1"],
            ),
            ("relu2", ReLU(), ["conv2"]),
            ("flatten", Reshape(shape=(32 * 7 * 7,)), ["relu2"]),
            ("dense1", Linear(orthogonal(hidden, 32 * 7 * 7), torch.zeros(hidden)), ["flatten"]),
            ("relu3", ReLU(), ["dense1"]),
            ("logits", Linear(orthogonal(10, hidden), torch.zeros(10)), ["relu3"]),
        ],
    )


def body_layers(network: Network) -> list[tuple[Layer, tuple[int, ...]]]:
    """The affine layers below the last one, each with the shape of its input."""
    shapes = {"input": network.input_shape} | {node.name: node.shape for node in network.nodes}
    return [
        (network.layer(node.name), shapes[node.inputs[0]])
        for node in network.nodes[:-1]
        if isinstance(network.layer(node.name), Conv2d | Linear)
    ]


def without_bias(layer: Layer, x: Tensor) -> Tensor:
    """The linear part of an affine layer."""
    return layer(x) - layer(torch.zeros_like(x))


class PowerNorm:
    """Running estimate of one operator norm: a power step per call, with gradient."""

    def __init__(self, layer: Layer, shape: tuple[int, ...]) -> None:
        self.layer = layer
        self.right = F.normalize(torch.randn(1, *shape).flatten(1)).reshape(1, *shape)

    def __call__(self) -> Tensor:
        right = self.right.requires_grad_()
        left = without_bias(self.layer, right)
        left = (left / left.norm()).detach()
        (pulled,) = torch.autograd.grad((without_bias(self.layer, right) * left).sum(), right)
        self.right = (pulled / pulled.norm()).detach()
        return (without_bias(self.layer, self.right) * left).sum()


def exact_norm(layer: Layer, shape: tuple[int, ...]) -> float:
    """Largest singular value of the materialised operator in float64, rounded up by 1e-9."""
    size = int(np.prod(shape))
    double = type(layer).build(
        layer.config(), {name: value.double() for name, value in layer.state_dict().items()}
    )
    matrix = without_bias(double, torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    matrix = matrix.reshape(size, -1)
    gram = matrix @ matrix.T if size <= matrix.shape[1] else matrix.T @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()) * (1 + 1e-9)


def pair_gain(last: Linear, labels: Tensor) -> Tensor:
    """||w_label - w_j|| for every class j, [batch, classes]; 0 at the label."""
    difference = last.weight[labels].unsqueeze(1) - last.weight.unsqueeze(0)
    return (difference.square().sum(-1) + 1e-12).sqrt() * (
        1 - F.one_hot(labels, last.weight.shape[0])
    )


def emma_loss(logits: Tensor, labels: Tensor, gain: Tensor) -> Tensor:
    """Cross-entropy after every wrong logit took what it can win, but no more than it needs."""
    margin = logits.gather(1, labels.unsqueeze(1)) - logits
    needed = (margin / gain.clamp_min(1e-9)).clamp(0.01, 1.0).detach()
    return F.cross_entropy(logits + needed * gain, labels)


def train(
    network: Network,
    x: Tensor,
    y: Tensor,
    options: argparse.Namespace,
    report: Callable[[int], None],
) -> None:
    """Adam with a one-cycle rate; epsilon rises linearly over the first half of the epochs."""
    norms = [PowerNorm(layer, shape) for layer, shape in body_layers(network)]
    last = network.layer(network.nodes[-1].name)
    assert isinstance(last, Linear)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    steps = len(x) // options.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.epochs * steps, pct_start=0.1
    )
    for epoch in range(options.epochs):
        order = torch.randperm(len(x))
        for step in range(steps):
            rows = order[step * options.batch_size : (step + 1) * options.batch_size]
            progress = (epoch + step / steps) / options.epochs
            epsilon = options.epsilon * min(1.0, 0.1 + 1.8 * progress)
            lipschitz = torch.stack([norm() for norm in norms]).prod()
            gain = epsilon * lipschitz * pair_gain(last, y[rows])
            loss = emma_loss(network(x[rows]), y[rows], gain)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        report(epoch)


@torch.no_grad()
def certified_shares(network: Network, x: Tensor, y: Tensor) -> list[float]:
    """Shares correct, and proved at each reported epsilon by the global Lipschitz bound (l2)."""
    lipschitz = float(np.prod([exact_norm(layer, shape) for layer, shape in body_layers(network)]))
    last = network.layer(network.nodes[-1].name)
    assert isinstance(last, Linear)
    logits = network(x).double()
    wrong = F.one_hot(y, logits.shape[1]) == 0
    margin = logits.gather(1, y.unsqueeze(1)) - logits
    gain = lipschitz * pair_gain(last, y).double() * (1 + 1e-5) + 1e-12
    radius = torch.where(wrong, margin / gain, torch.inf).min(1).values
    return [float((radius > epsilon).double().mean()) for epsilon in (0.0, *REPORTED_EPSILONS)]


def read_split(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 28, 28] and labels [n] of the split ``train`` or ``t10k``."""
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    return images, read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and pack the MNIST example.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the MNIST idx files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write into")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--epsilon", type=float, default=0.8, help="l2, pixel units")
    parser.add_argument("--hidden", type=int, default=64, help="width of the dense layer")
    parser.add_argument("--images", type=int, default=500, help="test images to pack")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def in_words(shares: list[float]) -> str:
    """The figures of ``certified_shares`` on one line."""
    clean, *certified = shares
    pairs = zip(REPORTED_EPSILONS, certified, strict=True)
    return f"clean {clean:.2%}" + "".join(f", certified at {e}: {s:.2%}" for e, s in pairs)


def main() -> None:
    options = parse_options()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    images, labels = read_split(options.data, "train")
    x, y = as_input(images), torch.from_numpy(labels)
    network = build_network(options.hidden)
    start = time.perf_counter()

    def report(epoch: int) -> None:
        if epoch % 5 == 4 or epoch + 1 == options.epochs:
            shares = certified_shares(network, x[-VALIDATION:], y[-VALIDATION:])
            seconds = time.perf_counter() - start
            print(f"epoch {epoch + 1}, {seconds:.0f} s: validation {in_words(shares)}", flush=True)

    train(network, x[:-VALIDATION], y[:-VALIDATION], options, report)
    images, labels = read_split(options.data, "t10k")
    for name, count in (("test set", len(images)), ("packed images", options.images)):
        shares = certified_shares(
            network, as_input(images[:count]), torch.from_numpy(labels[:count])
        )
        print(f"{name} ({count}): {in_words(shares)}")
    (options.out / "mnist_certified.onnx").write_bytes(export_onnx(network.eval()))
    np.savez_compressed(
        options.out / "mnist_test.npz",
        x=images[: options.images, :, :, None],
        y=labels[: options.images],
    )


if __name__ == "__main__":
    main()
