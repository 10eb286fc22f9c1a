"""Cost of each bound in plain float32 forward passes of the same network, in the same run.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/verification/bounds.py
        [--models FOLDER] [--data FOLDER]

One CPU thread. The forward pass is timed at the same batch; every figure is the least of several
repeats. The trained example and a random CIFAR 6C2F are always there; with --models (ONNX files of
published networks) and --data (their images as .npz, x in [0, 1] or uint8, NCHW) more can be added.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from models.architectures.published import build
from models.network import Network
from models.onnx.importer import import_onnx
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region

ROOT = Path(__file__).resolve().parents[2]
BATCH = 128


def least(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(
    title: str, network: Network, x: torch.Tensor, y: torch.Tensor, norm: str, epsilon: float
) -> None:
    """Print one table row per bound and arithmetic."""
    with torch.no_grad():
        logits = network(x)
        forward = least(lambda: network(x))
        start = time.perf_counter()
        compiled = CompiledNetwork.compile(network)
        compile_s = time.perf_counter() - start
    margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -1e30).amax(1)
    correct = margin > 0
    print(
        f"\n{title}: forward pass {forward / len(x) * 1e3:.3f} ms per sample (batch {len(x)}), "
        f"operator norms {compile_s:.2f} s once, {norm} {epsilon:.4g}, clean {int(correct.sum())}"
    )
    reach = torch.full((len(x),), epsilon, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        problem = Problem(compiled, True, torch.device("cpu"), dtype)
        region = Region(x, reach, norm, True)
        budget = Budget(margin.double(), tightest=True)
        for bound in BOUNDS.values():
            if norm not in bound.norms:
                continue
            found: list[torch.Tensor] = []

            def run(bound=bound, problem=problem, found=found) -> None:  # type: ignore[no-untyped-def]
                found[:] = [bound.attempt(problem, region, y, budget).proved]  # noqa: B023

            cheap = bound.name in ("lipschitz", "ibp", "bcp")
            seconds = least(run, 5 if cheap else 1)
            print(
                f"  {bound.name:10s} {str(dtype)[6:]}: {seconds / forward:8.1f} forward passes, "
                f"certified {int((found[0] & correct).sum())} of {len(x)}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="one more ONNX file (pixels in, float32)")
    parser.add_argument("--images", type=Path, help="its images: .npz with x and y")
    parser.add_argument("--norm", default="l2", choices=("l2", "linf"))
    parser.add_argument("--epsilon", type=float, default=0.3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model is not None:
        network = import_onnx(options.model)
        with np.load(options.images, allow_pickle=False) as stored:
            x, y = stored["x"][:BATCH], stored["y"][:BATCH]
        pixels = x / np.float32(255) if x.dtype == np.uint8 else x
        x = torch.from_numpy(pixels.astype(np.float32)).reshape(-1, *network.input_shape)
        measure(options.model.name, network, x, torch.from_numpy(y), options.norm, options.epsilon)
        return
    network = import_onnx(ROOT / "examples" / "mnist_certified.onnx")
    with np.load(ROOT / "examples" / "mnist_test.npz", allow_pickle=False) as stored:
        pixels, labels = stored["x"][:BATCH], stored["y"][:BATCH]
    x = torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
    measure("example (MNIST)", network, x, torch.from_numpy(labels), "l2", 0.3)
    measure("example (MNIST)", network, x, torch.from_numpy(labels), "l2", 1.0)
    large = build("cifar-6c2f", generator=torch.Generator().manual_seed(0)).eval()
    x = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels_of = large(x).argmax(1)
    cheap_only = {name: BOUNDS.pop(name) for name in list(BOUNDS) if name in ("crown", "cap")}
    measure("CIFAR 6C2F, random weights", large, x, labels_of, "l2", 1e-4)
    BOUNDS.update(cheap_only)


if __name__ == "__main__":
    main()
