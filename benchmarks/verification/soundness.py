"""Try to break certificates on a large scale: PGD end points inside certified radii, none may win.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.verification.soundness
        --points 1000000 --starts 500 [--newest]

Random networks of every layer kind, scaled and plain, and the trained example are certified by
every bound in turn; every certified sample is attacked at 0.999 of its radius from many starts (20
steps, margin loss). Most end points go to samples whose radius is at least 0.8 of the smallest
epsilon at which an attack succeeds, where a bound that lies would be found first. With ``--newest``
the networks hold layer and RMS norms, softmax and products of activations, attention, smooth
activations, waves, exponentials and quotients, maxima, steps
(``tests.workers.verification.blocks``), and
ONNX Runtime judges. Exits 1 on a false certificate, and where ``auto`` or most methods never
certify: a search that asks nothing proves nothing. ``--points 20000`` takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx
from models.onnx.runtime import OnnxRuntimeModel
from tests.workers.verification.blocks import KINDS, block_network
from tests.workers.verification.networks import dense_network, random_network
from workers.verification.attacks.pgd import attack
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.graph.compiled_network import UnsupportedLayer
from workers.verification.results import AttackSettings, CertificationRequest

Array = NDArray[Any]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
#: Plain forward passes a sample in networks of the newest layers: bounds that search stop there.
WORK = 2e4
#: So many samples that a method was asked about, and proved nothing of, say that it never does.
ENOUGH = 30
#: Rounds after which a search that asks nothing ends.
PATIENCE = 500


@dataclass
class Round:
    """What one round asks: a method, about the inputs x of a network."""

    method: str
    network: Network
    x: Array
    norm: str
    kind: str
    name: str
    deployed: Callable[[Array], Array]
    work: float | None = None


def evaluate(network: Network, x: Array) -> Array:
    """Logits of the float32 network."""
    with torch.no_grad():
        logits: Array = network(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    return logits


def broken(
    asked: Round,
    rows: Array,
    labels: Array,
    reach: Array,
    starts: int,
    seed: int,
) -> Array:
    """Which of the samples ``rows`` some start breaks within their own epsilon, [N] bool."""
    x = asked.x[rows]
    found = np.zeros(len(x), dtype=bool)
    # Each start is a copy of the sample, so that all descend together.
    copies = np.repeat(np.arange(len(x)), starts)
    indices = np.arange(len(copies)) + 1_000_003 * seed
    for chunk in np.array_split(np.arange(len(copies)), max(1, len(copies) // 2000)):
        chosen = copies[chunk]
        won, _ = attack(
            asked.network,
            asked.deployed,
            torch.from_numpy(x[chosen]),
            torch.from_numpy(labels[rows][chosen]),
            indices[chunk] % (2**31),
            torch.from_numpy(reach[chosen]),
            norm=asked.norm,
            clip=True,
            settings=AttackSettings(steps=STEPS, restarts=2, seed=seed),
        )
        np.logical_or.at(found, chosen, won.numpy())
    return found


def newest_round(seed: int, methods: list[str]) -> Round:
    """The round of this seed among networks of the newest layers."""
    random = np.random.default_rng(seed)
    kind = list(KINDS)[seed % len(KINDS)]
    # What users run most is asked most.
    method = "auto" if random.random() < 0.25 else methods[int(random.integers(len(methods)))]
    network, scale = block_network(kind, seed)
    x = random.random((8, *network.input_shape)).astype(np.float32)
    deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    norm, name = ("l2", "linf")[int(random.integers(2))], f"{kind}, scale {scale:g}"
    return Round(method, network, x, norm, kind, name, deployed, WORK)


def round_of(seed: int, methods: list[str]) -> Round:
    """The round of this seed among the example, dense and convolutional networks."""
    random = np.random.default_rng(seed)
    method = methods[seed % len(methods)]
    norm = ("l2", "linf")[seed // len(methods) % 2]
    kind = seed % 7
    if kind == 0:
        with np.load(ROOT / "examples" / "mnist_test.npz", allow_pickle=False) as stored:
            pixels = stored["x"][random.choice(len(stored["x"]), 20, replace=False)]
        x = (pixels.astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
        network = import_onnx(ROOT / "examples" / "mnist_certified.onnx")
        return _as_round(method, network, x, norm, "example")
    if kind == 1:
        x = random.random((20, 6)).astype(np.float32)
        return _as_round(method, dense_network([6, 12, 12, 4], seed), x, norm, "dense")
    scale = (1.0, 1.0, 1e4, 1e-4)[seed % 4]
    x = random.random((20, 2, 8, 8)).astype(np.float32)
    network = random_network(seed, scale=scale)
    return _as_round(method, network, x, norm, "random", f", scale {scale:g}")


def _as_round(
    method: str,
    network: Network,
    x: Array,
    norm: str,
    kind: str,
    more: str = "",
) -> Round:
    return Round(
        method, network, x, norm, kind, kind + more, lambda batch: evaluate(network, batch)
    )


class Proofs:
    """How many samples each method was asked about, and certified some radius of, per kind."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self.proved: Counter[tuple[str, str]] = Counter()
        self.passed_over: Counter[tuple[str, str]] = Counter()

    def lines(self) -> list[str]:
        """One line a method."""
        keys = {**self.asked, **self.passed_over}
        told = []
        for method in sorted({method for method, _ in keys}):
            kinds = sorted(kind for name, kind in keys if name == method)
            parts = [
                f"{kind} {self.proved[method, kind]}/{self.asked[method, kind]}"
                if self.asked[method, kind]
                else f"{kind} unsupported"
                for kind in kinds
            ]
            told.append(f"{method}: {', '.join(parts)}")
        return told

    def idle(self) -> str | None:
        """Why the search asked nothing; None where it did: ``auto`` certifies samples of every
        kind, and most methods some."""
        total: Counter[str] = Counter()
        certified: Counter[str] = Counter()
        for (method, _), count in self.asked.items():
            total[method] += count
        for (method, _), count in self.proved.items():
            certified[method] += count
        kinds = {kind for _, kind in self.asked}
        never = [
            kind
            for kind in sorted(kinds)
            if self.asked["auto", kind] >= ENOUGH and not self.proved["auto", kind]
        ]
        if never:
            return f"auto certifies nothing in networks of the kinds {', '.join(never)}"
        enough = [method for method, count in total.items() if count >= ENOUGH]
        silent = sorted(method for method in enough if not certified[method])
        if not enough and total.total() >= ENOUGH and not certified.total():
            return "nothing was certified"
        if "auto" in silent or 2 * len(silent) > len(enough):
            return f"these methods certify nothing: {', '.join(silent)}"
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=20_000, help="PGD end points")
    parser.add_argument("--starts", type=int, default=50, help="per sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--newest", action="store_true", help="layer norms, attention and the like")
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = ["auto", *BOUNDS]
    points = near = violations = rounds = 0
    proofs = Proofs()
    began = time.monotonic()
    seed = options.seed
    while points < options.points:
        asked = (newest_round if options.newest else round_of)(seed, methods)
        key = asked.method, asked.kind
        logits = asked.deployed(asked.x)
        labels = logits.argmax(1).astype(np.int64)
        epsilons = Fraction(1, 100), Fraction(1, 10)
        rounds += 1
        seed += 1
        try:
            found = certify_samples(
                asked.network,
                asked.x,
                labels,
                np.arange(len(asked.x)),
                CertificationRequest(asked.norm, epsilons, asked.method, attack=None),
                deployed=asked.deployed,
                deployed_logits=logits,
                device=torch.device("cpu"),
                work=asked.work,
            )
        except UnsupportedLayer:
            proofs.passed_over[key] += 1
            continue
        radius = np.minimum(found.radius, 10.0)
        rows = np.flatnonzero(radius > 0)
        proofs.asked[key] += len(radius)
        proofs.proved[key] += len(rows)
        if rows.size:
            tight = broken(asked, rows, labels, radius[rows] / 0.8, 5, seed - 1)
            # Half of the end points where the radius is close to what an attack reaches.
            starts = np.where(tight, options.starts, max(1, options.starts // 20))
            for flag, count in ((True, options.starts), (False, max(1, options.starts // 20))):
                chosen = rows[tight == flag]
                if not chosen.size:
                    continue
                won = broken(asked, chosen, labels, 0.999 * radius[chosen], count, seed - 1)
                violations += int(won.sum())
                if won.any():
                    what = f"{asked.method}, {asked.norm}, {asked.name}, rows {chosen[won]}"
                    print(f"FALSE CERTIFICATE: seed {seed - 1}, {what}", flush=True)
            # Two restarts a start: from the point itself and from a random one.
            points += int(2 * starts.sum())
            near += int(2 * starts[tight].sum())
        if rounds % 50 == 0:
            print(f"{points} end points ({near} near the boundary), {rounds} rounds", flush=True)
            # Else end points that nobody asks for would be waited for.
            if rounds % PATIENCE == 0 and proofs.idle() is not None:
                break
    seconds = time.monotonic() - began
    print("\n".join(["samples certified / asked about:", *proofs.lines()]))
    print(
        f"{violations} false certificates over {points} end points of {STEPS} steps, {near} of "
        f"them at radii >= 0.8 of an attack's, {rounds} rounds, {seconds:.0f} s"
    )
    idle = proofs.idle()
    if idle is not None:
        print(f"THE SEARCH ASKED NOTHING: {idle}")
    sys.exit(1 if violations or idle is not None else 0)


if __name__ == "__main__":
    main()
