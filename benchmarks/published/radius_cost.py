"""What the search of radii costs beside the verdicts of the same job, by CPU time.

    OMP_NUM_THREADS=1 CERTSERVE_TEST_DATA=... python -m benchmarks.published.radius_cost
        [--only 2b cifar_base] [--images 20] [--method auto]

The networks and threats of ``benchmarks.published.beside_lirpa``, and more (``more_cases``); the
whole cascade and the attack, once without ``radius`` and once with it, after three samples that
load what is loaded once; short ones several times, the least counts; work as of a job of 500
samples. Operator norms are made before, as an inspection makes them. Added: what the radius adds,
over what the verdicts take alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.published.beside_lirpa import Case, cases, residual_network
from benchmarks.published.l2_table import CIFAR
from benchmarks.published.networks import load_images
from models.layers.kinds import Linear, ReLU, Reshape
from models.network import INPUT, Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx
from models.onnx.runtime import OnnxRuntimeModel
from workers.verification.cascade.run import certify_samples
from workers.verification.results import CertificationRequest, SampleResults

#: Forward passes per sample.
WORK = 2e7 / 500
#: What is done in so few seconds is measured so many times: the least counts.
SHORT, AGAIN = 5.0, 3


def dense_network(widths: tuple[int, ...] = (784, 50, 50, 50, 10)) -> Network:
    """Dense layers and ReLUs on MNIST's pixels, in the shape of ERAN's mnist_relu_3_50; weights by
    torch's default."""
    torch.manual_seed(0)
    rows: list[tuple[str, Linear | ReLU | Reshape, tuple[str, ...]]] = []
    rows.append(("flat", Reshape(shape=widths[:1]), (INPUT,)))
    for number, (inner, outer) in enumerate(itertools.pairwise(widths)):
        made = nn.Linear(inner, outer)
        assert made.bias is not None
        layer = Linear(made.weight.detach(), made.bias.detach())
        rows.append((f"dense{number}", layer, (rows[-1][0],)))
        rows.append((f"relu{number}", ReLU(), (rows[-1][0],)))
    return Network((1, 28, 28), rows[:-1]).eval()


def _pixels(path: Path) -> Network:
    """A network of SDP-CROWN's on CIFAR-10, its normalisation inside."""
    return import_onnx(path).normalized(*map(list, CIFAR)).eval()


def more_cases(models: Path) -> list[Case]:
    """Networks that the reference does not read, or that have no published count."""
    folder = models / "sdp-crown"
    blocks = (("a", 8, 2), ("b", 16, 1), ("c", 16, 1), ("d", 16, 1))
    deep: Callable[[], Network] = partial(residual_network, blocks)
    found = [
        Case("4b linf 1/1000", deep, "cifar10", "linf", 0.001, untrained=True),
        Case("4b l2 1/20", deep, "cifar10", "l2", 0.05, untrained=True),
        Case("dense 3x50 linf 0.01", dense_network, "mnist", "linf", 0.01, untrained=True),
        Case("dense 3x50 l2 0.2", dense_network, "mnist", "l2", 0.2, untrained=True),
    ]
    if (folder / "mnist_mlp.onnx").exists():
        make = partial(import_onnx, folder / "mnist_mlp.onnx")
        found.append(Case("mlp linf 0.03", make, "mnist", "linf", 0.03))
    for name in ("cifar10_cnn_c", "cifar10_convsmall"):
        path = folder / f"{name}.onnx"
        if path.exists():
            make = partial(_pixels, path)
            found.append(Case(f"{name} l2 24/255", make, "cifar10", "l2", 24 / 255, clip=False))
            found.append(Case(f"{name} linf 1/255", make, "cifar10", "linf", 1 / 255))
    return found


def seconds(
    network: Network,
    x: torch.Tensor,
    y: torch.Tensor,
    request: CertificationRequest,
    norms: Path,
) -> tuple[float, SampleResults]:
    """CPU seconds of a certification, and its results; norms: where the operator norms are kept."""
    deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    began = time.process_time()
    found = certify_samples(
        network,
        x.numpy(),
        y.numpy().astype(np.int64),
        np.arange(len(x)),
        request,
        deployed=deployed,
        deployed_logits=deployed(x.numpy()),
        device=torch.device("cpu"),
        work=WORK,
        cache_dir=norms,
    )
    return time.process_time() - began, found


def measure(case: Case, data: Path, images: int, method: str) -> None:
    """Print one row."""
    network = case.make()
    x, y = load_images(case.data, data, -(-images // 10))
    x, y = x[:images].reshape(-1, *network.input_shape), y[:images]
    if case.untrained:
        with torch.no_grad():
            y = network(x).argmax(1)
    with tempfile.TemporaryDirectory() as folder:

        def tried(radius: bool, some: slice) -> tuple[float, SampleResults]:
            request = CertificationRequest(
                case.norm,
                (Fraction(case.epsilon).limit_denominator(10_000),),
                method=method,
                clip=case.clip,
                radius=radius,
            )
            return seconds(network, x[some], y[some], request, Path(folder))

        tried(True, slice(0, 3))
        pairs = [[tried(radius, slice(None)) for radius in (False, True)]]
        while len(pairs) < AGAIN and pairs[0][1][0] < SHORT:
            pairs.append([tried(radius, slice(None)) for radius in (False, True)])
    alone, both = (min(pair[side][0] for pair in pairs) for side in (0, 1))
    plain, found = (results for _, results in pairs[0])
    certified = [int(result.certified.sum()) for result in (plain, found)]
    radii = found.radius[np.isfinite(found.radius)]
    print(
        f"| {case.title} | {method} | {len(x)} | {certified[0]} / {certified[1]} | {alone:.2f} | "
        f"{both:.2f} | {both / alone - 1.0:.2f} | {radii.mean():.4g} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("CERTSERVE_TEST_DATA")
    parser.add_argument("--shared", type=Path, default=default, required=default is None)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of titles, such as 2b")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--method", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("network, threat", "method", "images", "certified")
    columns += ("verdicts s", "with radius s", "added", "mean radius")
    print(f"| {' | '.join(columns)} |")
    print("|---" * 8 + "|")
    models = options.shared / "models"
    for case in [*cases(models), *more_cases(models)]:
        if any(part in case.title for part in options.only):
            measure(case, options.shared / "data", options.images, options.method)


if __name__ == "__main__":
    main()
