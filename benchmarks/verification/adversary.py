"""Adversary first: find the nearest wrong input, then ask every bound to prove that distance.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.verification.adversary
        [--graphs N] [--seed S] [--newest]

Tiny networks of every layer kind, weights from 1e-45 to 1e38, denormal boxes, cancelling pairs
(``tests/workers/verification/adversary/``). Every bound of the table is asked in float32, in
float64 and as the cascade runs it, l2 and linf, with and without the pixel box. Exits 1 on a false
certificate. ``--newest``: every network has a norm, a softmax or a product of two activations,
every third one an exponential, a logarithm, a root or a reciprocal too, every third one a wave,
every third one steps (Sign, Floor, Ceil, Round). The share proved at a hundredth of the distance
says that the bounds prove anything.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from tests.workers.verification.adversary.questions import ASKED, Tally, ask
from tests.workers.verification.adversary.search import find_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the ways to ask, at random")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--newest", action="store_true", help="norms, softmax, attention in each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tally = Tally()
    seed, shown, broken = options.seed, 0, set()
    began = time.monotonic()
    while tally.graphs < options.graphs and time.monotonic() - began < options.seconds:
        case = find_case(seed, newest=options.newest)
        if case is not None:
            ask(case, tally, f"seed {seed}", seed=seed, share=options.share)
            for line in tally.false[shown:]:
                print(f"FALSE CERTIFICATE: {line}", flush=True)
                broken.add(seed)
            shown = len(tally.false)
            if tally.graphs % 100 == 0:
                print(f"{tally.graphs} graphs, {len(tally.false)} false", flush=True)
        seed += 1
    for name, asked in sorted(tally.asked_of.items()):
        print(f"{name}: {tally.proved_of[name]} of {asked} proved at {ASKED[0]} of the distance")
    print(
        f"{len(tally.false)} false certificates in {len(broken)} graphs over {tally.graphs} graphs "
        f"(of {seed - options.seed} built) and {tally.questions} questions; {tally.proved} of "
        f"{tally.allowed} questions below the distance proved; "
        f"{time.process_time():.0f} s of CPU time"
    )
    sys.exit(1 if tally.false else 0)


if __name__ == "__main__":
    main()
