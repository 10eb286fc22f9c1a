"""Cost of Local-Lip in plain float32 forward passes, and how many samples each norm decided.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/verification/local_lipschitz.py [--batch 128]

One CPU thread, same batch, same run. Epsilons are chosen per sample, at shares of the largest one
that BCP proves for it: at 1.02 and 1.1 all samples are open after BCP, so that every stage has work
that is not hopeless. "All open" is the cost where no sample is decided. The counts say which norm
was the least per sample and layer.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.architectures.published import build
from models.network import Network
from models.onnx.importer import import_onnx
from workers.verification.bounds.arithmetics import MarginsBound
from workers.verification.bounds.local_lipschitz import local_margins, randomized_local_margins
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.radius import search_radius
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.lanczos import FailureBudget
from workers.verification.problem import Problem
from workers.verification.protocol import Budget, Margins
from workers.verification.region import Region

ROOT = Path(__file__).resolve().parents[2]


def least(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(title: str, network: Network, x: torch.Tensor, y: torch.Tensor) -> None:
    """Costs and decisions at several epsilons around BCP's radius."""
    with torch.no_grad():
        logits = network(x)
        forward = least(lambda: network(x), 5)
    compiled = CompiledNetwork.compile(network)
    margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -1e30).amax(1)
    x, y, margin = x[margin > 0], y[margin > 0], margin[margin > 0].double()
    forward *= len(x) / len(logits)
    problem = Problem(compiled, True, torch.device("cpu"), torch.float32)
    row = BOUNDS["bcp"]
    assert isinstance(row, MarginsBound)

    def tried(
        margins: Margins, rows: torch.Tensor, epsilon: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        region = Region(x[rows], epsilon, "l2", True)
        bound = replace(row, margins=margins)
        verdict = bound.attempt(problem, region, y[rows], Budget(margin[rows]))
        return verdict.proved, verdict.least_margin / margin[rows]

    bcp = row.margins
    zero = torch.zeros(len(x), dtype=torch.float64)
    start = torch.full_like(zero, 1e-3)
    radius = search_radius(partial(tried, bcp), zero, zero + torch.inf, start, 50.0, width=2.0**-10)
    everything = torch.arange(len(x))
    print(
        f"\n{title}: {forward / len(x) * 1e3:.3f} ms per forward pass, {len(x)} samples, "
        f"BCP's radius {radius.median():.4g} (median)"
    )
    for share in (0.98, 1.02, 1.1, 1.5, 4.0):
        epsilon = radius * share
        print(f"  at {share} of BCP's radius:")
        failure_budget = FailureBudget()
        tally: Counter[str] = Counter()
        variants: dict[str, Margins] = {
            "bcp": bcp,
            "global, Schur, Frobenius": partial(local_margins, exact=False),
            "and Gram where open": local_margins,
            "and Lanczos where open": partial(randomized_local_margins, failure_budget),
        }
        for name, margins in variants.items():
            found: list[torch.Tensor] = []

            def run(margins: Margins = margins, found: list[torch.Tensor] = found) -> None:
                found.append(tried(margins, everything, epsilon)[0])  # noqa: B023

            seconds = least(run, 1 if "Lanczos" in name else 2)
            print(
                f"    {name:26s} {seconds / forward:7.1f} forward passes, certified "
                f"{int(found[-1].sum())}",
                flush=True,
            )
        tried(partial(local_margins, tally=tally), everything, epsilon)
        print(f"    {dict(tally)}, failure probability {failure_budget.failure_probability:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = import_onnx(ROOT / "examples" / "mnist_certified.onnx")
    with np.load(ROOT / "examples" / "mnist_test.npz", allow_pickle=False) as stored:
        pixels, labels = stored["x"][: options.batch], stored["y"][: options.batch]
    x = torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
    measure("example (MNIST)", network, x, torch.from_numpy(labels))
    large = build("cifar-6c2f", generator=torch.Generator().manual_seed(0)).eval()
    # Random weights alone leave margins below float32's rounding: nothing would be decided.
    with torch.no_grad():
        large.layer(large.nodes[-1].name).bias[0] += 50.0
    x = torch.rand(options.batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        guessed = large(x).argmax(1)
    measure("CIFAR 6C2F, random weights", large, x, guessed)


if __name__ == "__main__":
    main()
