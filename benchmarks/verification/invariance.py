"""How many decisions and radii depend on batch, shard, threads or device: counted, none should.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/verification/invariance.py [--decisions 100000]

Random networks of every layer kind and the trained example, every bound in turn, l2 and linf; all
samples at once on one thread against shards of 1, 7 and 64 samples, against two threads, against
the arithmetic of a GPU (float64 alone), and against a CUDA device where there is one. Ten epsilons
around where bounds begin to fail. At most one decision in 10,000 may differ, where a bound misses
by less than 1e-9; radii to 1e-6. The example is left out where a bound would take hours on it, and
the most expensive bounds meet a tenth of the samples.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from models.network import Network
from models.onnx.importer import import_onnx
from tests.workers.verification.cascade.answers import answers
from tests.workers.verification.networks import random_network
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.results import CertificationRequest

ROOT = Path(__file__).resolve().parents[2]
#: Samples of a round; of bounds of ``DAYS`` forward passes and more so few.
SAMPLES, FEW = 100, 10
#: Bounds of so many forward passes and more meet random networks alone.
HOURS, DAYS = 5000, 50_000
EPSILONS = tuple(Fraction(k, 1000) for k in (2, 5, 10, 20, 40, 70, 100, 200, 400, 800))


def example() -> tuple[Network, np.ndarray]:  # type: ignore[type-arg]
    """The trained network and its images."""
    with np.load(ROOT / "examples" / "mnist_test.npz", allow_pickle=False) as stored:
        x = stored["x"][:SAMPLES].astype(np.float32) / np.float32(255)
    return import_onnx(ROOT / "examples" / "mnist_certified.onnx"), x.reshape(-1, 1, 28, 28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=100_000, help="compared at least")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    variants = {f"shards of {size}": {"shard": size} for size in (1, 7, 64)}
    variants["two threads"] = {"shard": SAMPLES, "threads": 2}
    variants["float64 alone"] = {"shard": SAMPLES, "float64_alone": True}
    if torch.cuda.is_available():
        variants["CUDA"] = {"shard": SAMPLES, "device": "cuda"}  # type: ignore[dict-item]
    compared: Counter[str] = Counter()
    decisions: Counter[str] = Counter()
    radii: Counter[str] = Counter()
    methods = list(BOUNDS)
    cache = Path(tempfile.mkdtemp(prefix="certserve-norms-"))
    began, seed = time.monotonic(), options.seed
    while sum(compared.values()) < options.decisions:
        method = methods[seed % len(methods)]
        norm = ("l2", "linf")[seed // len(methods) % 2]
        if seed % 11 == 0 and BOUNDS[method].expected_passes < HOURS:
            network, x = example()
        else:
            network = random_network(seed)
            count = FEW if BOUNDS[method].expected_passes >= DAYS else SAMPLES
            x = np.random.default_rng(seed).random((count, 2, 8, 8)).astype(np.float32)
        request = CertificationRequest(
            norm,
            EPSILONS,
            method,
            attack=None,
            deterministic=bool(seed % 3),
            # Searching with more expensive bounds would take most of the time.
            radius=BOUNDS[method].expected_passes < 10,
        )
        whole = answers(network, x, request, cache, shard=len(x))
        for name, variant in variants.items():
            found = whole.differences(answers(network, x, request, cache, **variant))  # type: ignore[arg-type]
            compared[name] += whole.certified.size
            decisions[name] += found[0]
            radii[name] += found[1]
            if any(found):
                print(f"seed {seed}, {method}, {norm}, {name}: {found}", flush=True)
        print(
            f"{sum(compared.values()):>8} decisions, {sum(decisions.values())} differ, "
            f"{sum(radii.values())} radii, {time.monotonic() - began:.0f} s ({method}, {norm})",
            flush=True,
        )
        seed += 1
    for name, count in compared.items():
        share = decisions[name] / count
        print(
            f"{name}: {decisions[name]} of {count} decisions differ ({share:.1e}), "
            f"{radii[name]} radii"
        )
    shutil.rmtree(cache)
    print(f"{seed - options.seed} rounds, {time.monotonic() - began:.0f} s")
    sys.exit(1 if sum(decisions.values()) > 1e-4 * sum(compared.values()) else 0)


if __name__ == "__main__":
    main()
