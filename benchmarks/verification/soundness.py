"""Try to break certificates on a large scale: PGD end points inside certified radii, none may win.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/verification/soundness.py
        --points 1000000 --starts 500

Random networks of every layer kind, scaled and plain, and the trained example are certified by
every bound in turn; every certified sample is attacked at 0.999 of its radius from many starts (20
steps, margin loss). Most end points go to samples whose radius is at least 0.8 of the smallest
epsilon at which an attack succeeds, where a bound that lies would be found first. Exits 1 on a
false certificate. ``--points 20000`` takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from models.network import Network
from models.onnx.importer import import_onnx
from tests.workers.verification.networks import dense_network, random_network
from workers.verification.attacks.pgd import attack
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.results import AttackSettings, CertificationRequest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20


def evaluate(network: Network, x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Logits of the float32 network."""
    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def broken(
    network: Network,
    x: np.ndarray,  # type: ignore[type-arg]
    labels: np.ndarray,  # type: ignore[type-arg]
    reach: np.ndarray,  # type: ignore[type-arg]
    norm: str,
    starts: int,
    seed: int,
) -> np.ndarray:  # type: ignore[type-arg]
    """Which samples some start breaks within their own epsilon, [N] bool."""
    found = np.zeros(len(x), dtype=bool)
    # Each start is a copy of the sample, so that all descend together.
    copies = np.repeat(np.arange(len(x)), starts)
    indices = np.arange(len(copies)) + 1_000_003 * seed
    for chunk in np.array_split(np.arange(len(copies)), max(1, len(copies) // 2000)):
        rows = copies[chunk]
        won, _ = attack(
            network,
            lambda batch: evaluate(network, batch),
            torch.from_numpy(x[rows]),
            torch.from_numpy(labels[rows]),
            indices[chunk] % (2**31),
            torch.from_numpy(reach[rows]),
            norm=norm,
            clip=True,
            settings=AttackSettings(steps=STEPS, restarts=2, seed=seed),
        )
        np.logical_or.at(found, rows, won.numpy())
    return found


def round_of(seed: int, methods: list[str]) -> tuple[str, Network, np.ndarray, str, str]:  # type: ignore[type-arg]
    """Method, network, inputs, norm and name of one round."""
    random = np.random.default_rng(seed)
    method = methods[seed % len(methods)]
    norm = ("l2", "linf")[seed // len(methods) % 2]
    kind = seed % 7
    if kind == 0:
        with np.load(ROOT / "examples" / "mnist_test.npz", allow_pickle=False) as stored:
            pixels = stored["x"][random.choice(len(stored["x"]), 20, replace=False)]
        x = (pixels.astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
        return method, import_onnx(ROOT / "examples" / "mnist_certified.onnx"), x, norm, "example"
    if kind == 1:
        x = random.random((20, 6)).astype(np.float32)
        return method, dense_network([6, 12, 12, 4], seed), x, norm, "dense"
    scale = (1.0, 1.0, 1e4, 1e-4)[seed % 4]
    x = random.random((20, 2, 8, 8)).astype(np.float32)
    return method, random_network(seed, scale=scale), x, norm, f"random, scale {scale:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=20_000, help="PGD end points")
    parser.add_argument("--starts", type=int, default=50, help="per sample")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = ["auto", *BOUNDS]
    points = near = violations = rounds = 0
    began = time.monotonic()
    seed = options.seed
    while points < options.points:
        method, network, x, norm, name = round_of(seed, methods)
        logits = evaluate(network, x)
        labels = logits.argmax(1).astype(np.int64)
        found = certify_samples(
            network,
            x,
            labels,
            np.arange(len(x)),
            CertificationRequest(norm, (Fraction(1, 100), Fraction(1, 10)), method, attack=None),
            deployed=lambda batch, network=network: evaluate(network, batch),
            deployed_logits=logits,
            device=torch.device("cpu"),
        )
        radius = np.minimum(found.radius, 10.0)
        rows = np.flatnonzero(radius > 0)
        if rows.size:
            tight = broken(network, x[rows], labels[rows], radius[rows] / 0.8, norm, 5, seed)
            # Half of the end points where the radius is close to what an attack reaches.
            starts = np.where(tight, options.starts, max(1, options.starts // 20))
            for flag, count in ((True, options.starts), (False, max(1, options.starts // 20))):
                chosen = rows[tight == flag]
                if not chosen.size:
                    continue
                won = broken(
                    network, x[chosen], labels[chosen], 0.999 * radius[chosen], norm, count, seed
                )
                violations += int(won.sum())
                if won.any():
                    print(f"FALSE CERTIFICATE: seed {seed}, {method}, {norm}, {name}", flush=True)
            # Two restarts a start: from the point itself and from a random one.
            points += int(2 * starts.sum())
            near += int(2 * starts[tight].sum())
        rounds += 1
        seed += 1
        if rounds % 50 == 0:
            print(f"{points} end points ({near} near the boundary), {rounds} rounds", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{violations} false certificates over {points} end points of {STEPS} steps, {near} of "
        f"them at radii >= 0.8 of an attack's, {rounds} rounds, {seconds:.0f} s"
    )
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
