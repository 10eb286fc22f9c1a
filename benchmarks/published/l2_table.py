"""``crown-ball`` on networks of SDP-CROWN's table (ICML 2025, arXiv:2506.06665): l2, whole ball.

    CERTSERVE_TEST_DATA=... python -m benchmarks.published.l2_table [--networks mnist_mlp ...]

Of 200 images each: what the global norms prove, what PGD breaks, and what ``crown-ball`` proves of
the rest, without the pixel box, rounding inside; CPU seconds of one thread per image left to it.
"""

from __future__ import annotations

import argparse
import os
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from models.onnx.importer import import_onnx
from workers.verification.attacks.pgd import attack
from workers.verification.bounds.crown_ball import crown_ball_margins
from workers.verification.bounds.lipschitz import lipschitz_radius
from workers.verification.forward.margins import certified
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region, float_above
from workers.verification.results import AttackSettings
from workers.verification.rounding import Rounding, exact_arithmetic

CIFAR = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (0.225,) * 3)
#: File of the network, of the images, epsilon in pixel units, normalisation.
NETWORKS = {
    "mnist_mlp": ("mnist_200.npz", Fraction(1), None),
    "cifar10_cnn_c": ("cifar_200.npz", Fraction(24, 255), CIFAR),
    "cifar10_convsmall": ("cifar_200.npz", Fraction(24, 255), CIFAR),
}
#: Images that go through the bound together.
BATCH = 20


def measure(folder: Path, name: str) -> str:
    """One row of the table."""
    images, asked, normalization = NETWORKS[name]
    network = import_onnx(folder / f"{name}.onnx")
    if normalization is not None:
        network = network.normalized(*normalization)
    stored = np.load(folder / images, allow_pickle=False)
    x = torch.from_numpy(stored["x"]).permute(0, 3, 1, 2) / 255
    x = x.reshape(-1, *network.input_shape).contiguous()
    labels = torch.from_numpy(stored["y"].astype(np.int64))
    epsilon = torch.full((len(x),), float_above(asked), dtype=torch.float64)
    compiled = CompiledNetwork.compile(network)
    double, single = ((Rounding.sound(t), t) for t in (torch.float64, torch.float32))
    with exact_arithmetic():
        correct = network(x).argmax(1) == labels
        radius = lipschitz_radius(
            compiled, x, labels, norm="l2", rounding=double[0], dtype=double[1]
        )
        norms = correct & (radius >= epsilon)
        rows = (correct & ~norms).nonzero().flatten()
    broken, _ = attack(
        network,
        lambda batch: network(torch.from_numpy(batch)).detach().numpy(),
        x[rows],
        labels[rows],
        rows.numpy(),
        epsilon[rows],
        norm="l2",
        clip=False,
        settings=AttackSettings(),
    )
    rows = rows[~torch.as_tensor(broken)]
    proved, began = 0, time.process_time()
    with exact_arithmetic():
        for part in rows.split(BATCH):
            region = Region(x[part], epsilon[part], "l2", clip=False)
            proved += int(
                certified(crown_ball_margins(compiled, region, labels[part], *single)).sum()
            )
    spent = (time.process_time() - began) / max(1, len(rows))
    figures = (int(correct.sum()), int(norms.sum()), int(broken.sum()), len(rows), proved)
    total = int(norms.sum()) + proved
    return " | ".join([name, *map(str, figures), str(total), f"{spent:.2f}"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    torch.set_num_threads(1)
    folder = Path(os.environ["CERTSERVE_TEST_DATA"]) / "models" / "sdp-crown"
    print(
        "network | correct | norms | broken | open | proved of open | certified | seconds per open"
    )
    for name in parser.parse_args().networks:
        print(measure(folder, name), flush=True)


if __name__ == "__main__":
    main()
