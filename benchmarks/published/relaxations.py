"""What linear relaxations verify on published networks, and what an image costs.

    OMP_NUM_THREADS=1 python -m benchmarks.published.relaxations
        [--shared FOLDER] [--images 100]

One thread. Every bound runs on all correctly classified images of the first 10 per class; its cost
is its CPU time per image over that of a plain forward pass of the same network (batch of all
images; the median of runs before and after the bounds). A bound that proves nothing counts its full
cost. "plain" is CROWN as the papers compute it, without any account of rounding and with the l2
ball not cut to the pixel box: what the reference verifier does, on the very images of this run.
``auto`` includes the attack.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from benchmarks.published.networks import SETTINGS, Setting, load_images, load_network
from models.network import Network
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region
from workers.verification.results import CertificationRequest

#: Bars on the medians, in plain forward passes per image.
BARS = {"crown": 1_000.0, "alpha-crown": 65_000.0}
METHODS = ("ibp", "crown", "alpha-crown", "alpha-crown-intermediate")


def seconds_of(run: Callable[[], object]) -> float:
    """CPU seconds: the machine may be shared."""
    start = time.process_time()
    run()
    return time.process_time() - start


def plain_count(network: Network, setting: Setting, x: torch.Tensor, y: torch.Tensor) -> int:
    """How many plain float32 CROWN verifies."""
    compiled = CompiledNetwork.compile(network, estimate=True)
    problem = Problem(compiled, False, torch.device("cpu"))
    reach = torch.full((len(x),), setting.reach, dtype=torch.float64)
    margin = torch.ones_like(reach)
    region = Region(x, reach, setting.norm, setting.norm == "linf")
    return int(BOUNDS["crown"].attempt(problem, region, y, Budget(margin)).proved.sum())


def auto_count(network: Network, setting: Setting, x: torch.Tensor, y: torch.Tensor) -> int:
    """How many the whole cascade certifies."""

    def deployed(batch: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        with torch.no_grad():
            return network(torch.from_numpy(np.ascontiguousarray(batch))).numpy()

    request = CertificationRequest(setting.norm, (Fraction(setting.epsilon),), radius=False)
    pixels = x.numpy()
    found = certify_samples(
        network,
        pixels,
        y.numpy(),
        np.arange(len(x)),
        request,
        deployed=deployed,
        deployed_logits=deployed(pixels),
        device=torch.device("cpu"),
    )
    return int(found.certified.sum())


def measure(setting: Setting, shared: Path, per_class: int) -> dict[str, float]:
    """Print one row of the table; the costs by method."""
    network = load_network(setting, shared / "models")
    x, y = load_images(setting.data, shared / "data", per_class)
    x = x.reshape(-1, *network.input_shape)
    with torch.no_grad():
        logits = network(x)
        network(x)
        forward = [seconds_of(lambda: network(x)) for _ in range(10)]
    images = x
    margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -1e30).amax(1)
    correct = margin > 0
    x, y, margin = x[correct], y[correct], margin[correct].to(torch.float64)
    reach = torch.full((len(x),), setting.reach, dtype=torch.float64)
    problem = Problem(CompiledNetwork.compile(network), True, torch.device("cpu"))
    region = Region(x, reach, setting.norm, True)
    counts: dict[str, int] = {}
    costs: dict[str, float] = {}
    for name in METHODS:

        def run(name: str = name) -> None:
            verdict = BOUNDS[name].attempt(problem, region, y, Budget(margin))
            counts[name] = int(verdict.proved.sum())

        costs[name] = seconds_of(run)

    def cascade() -> None:
        counts["auto"] = auto_count(network, setting, x, y)

    costs["auto"] = seconds_of(cascade)
    with torch.no_grad():
        forward += [seconds_of(lambda: network(images)) for _ in range(10)]
    unit = statistics.median(forward) / len(images)
    costs = {name: cost / len(x) / unit for name, cost in costs.items()}
    plain = plain_count(network, setting, x, y)
    cells = [f"{counts[name]}" for name in METHODS] + [f"{counts['auto']}", f"{plain}"]
    cells += ["{} / {} / {}".format(*setting.reference)]
    cells += [f"{costs[name]:,.0f}" for name in (*METHODS, "auto")]
    title = f"{Path(setting.path).stem}, {setting.norm} {setting.epsilon}"
    print("| " + " | ".join([title, f"{len(x)}", *cells, f"{1e3 * unit:.3f}"]) + " |", flush=True)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("CERTSERVE_TEST_DATA")
    parser.add_argument("--shared", type=Path, default=default, required=default is None)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--only", default="", help="part of a network's path, or of its norm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| network, threat | correct | IBP | CROWN | alpha | intermediate | auto | plain CROWN | "
        "reference IBP / CROWN / alpha | IBP cost | CROWN cost | alpha cost | intermediate cost | "
        "auto cost | ms per forward pass |"
    )
    print("|---" * 15 + "|")
    costs = [
        measure(setting, options.shared, options.images // 10)
        for setting in SETTINGS
        if options.only in f"{setting.path} {setting.norm}"
        and (options.shared / "models" / setting.path).exists()
    ]
    for name in (*METHODS, "auto"):
        median = statistics.median(row[name] for row in costs)
        bar = f" (bar {BARS[name]:,.0f})" if name in BARS else ""
        print(f"median {name}: {median:,.0f} plain forward passes per image{bar}")


if __name__ == "__main__":
    main()
