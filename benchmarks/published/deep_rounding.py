"""What float32 may take from the margins of deep residual networks, and which radii are left.

    CERTSERVE_TEST_DATA=... PYTHONPATH=. python -m benchmarks.published.deep_rounding [--images 4]

Networks of the shape of the competition's 2b and 4b (7 and 13 convolutions and dense layers one
after the other or beside each other), weights by torch's default, CIFAR-10 images, the class that
they say, l2. b: the sum over all steps of |derivative of the margin| times what float32 may err
there, at the sample. Per network: the budget carried backward at epsilon 1e-9 over b, the largest;
that budget; the one carried forward; how many samples have a margin above 4 b, and how many of
these have a radius above 0 by ``lipschitz`` and by ``ibp``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from benchmarks.published.beside_lirpa import residual_network
from benchmarks.published.networks import load_images
from tests.workers.verification.deviation.worst_execution import worst_execution
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.clock import UNLIMITED
from workers.verification.deviation.budget import margin_budget
from workers.verification.deviation.deep import forward_errors
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region
from workers.verification.rounding import exact_arithmetic

#: Blocks by network: name, channels before, stride.
NETWORKS = {
    "2b": (("a", 8, 2), ("b", 16, 1)),
    "4b": (("a", 8, 2), ("b", 16, 1), ("c", 16, 1), ("d", 16, 1)),
}
#: A radius as small as anything.
EPSILON = 1e-9


def measure(name: str, data: Path, images: int) -> str:
    """One row."""
    network = residual_network(NETWORKS[name])
    compiled = CompiledNetwork.compile(network)
    x, _ = load_images("cifar10", data, -(-images // 10))
    x = x[:images].reshape(-1, *network.input_shape)
    with torch.no_grad():
        logits = network(x).double()
    labels = logits.argmax(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    margin, second = logits.amax(1) - others.amax(1), others.argmax(1)
    region = Region(x, torch.full((len(x),), EPSILON, dtype=torch.float64), "l2", True)
    with exact_arithmetic():
        lost = margin_budget(compiled, region, labels).gather(1, second[:, None])[:, 0]
    b = torch.tensor(
        [
            worst_execution(compiled, x[k : k + 1], int(labels[k]), int(second[k]))[1]
            for k in range(len(x))
        ],
        dtype=torch.float64,
    )
    problem = Problem(compiled, True, torch.device("cpu"))
    forward = forward_errors(problem, region, torch.arange(len(x)), UNLIMITED, torch.float64)
    wide = margin > 4 * b
    proved = []
    for bound in ("lipschitz", "ibp"):
        verdict = BOUNDS[bound].attempt(problem, region, labels, Budget(margin))
        proved.append(int(verdict.proved[wide].sum()))
    return (
        f"| {name} | {len(x)} | {float((lost / b).max()):.2f} | {float(lost.max()):.1e} | "
        f"{float(forward.max()):.1e} | {float(margin.min()):.1e} | {int(wide.sum())} | "
        f"{proved[0]} / {proved[1]} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("CERTSERVE_TEST_DATA")
    parser.add_argument("--shared", type=Path, default=default, required=default is None)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| network | images | budget / b | budget | forward | least margin | above 4 b | proved |"
    )
    print("|---" * 8 + "|")
    for name in NETWORKS:
        print(measure(name, options.shared / "data", options.images), flush=True)


if __name__ == "__main__":
    main()
