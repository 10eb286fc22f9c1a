"""Executions against clipped boxes of domains, at length: what a test of theirs takes a slice of.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.verification.clipping [--networks N] [--seed S]

Random networks (``tests/workers/verification/complete/boxes.py``): weights of all sizes, denormal
boxes, duplicate and dead units, any splits and multipliers, l2 and linf. Every execution, as
float32 has it and as real arithmetic nearly has it, has to lie in the boxes of every domain in
which it may still be wrong. Exits 1 where one does not.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from tests.workers.verification.complete.boxes import Tally, try_boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=6000, help="built; some have no unit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tally = Tally()
    with torch.no_grad():
        for seed in range(options.seed, options.seed + options.networks):
            shown = len(tally.wrong)
            try_boxes(seed, tally)
            for line in tally.wrong[shown:]:
                print(f"OUTSIDE ITS BOX: {line}", flush=True)
    print(
        f"{len(tally.wrong)} wrong in {tally.checks} checks of {tally.networks} networks; "
        f"{tally.cut} executions left out that may be, {tally.decided} units decided, "
        f"{tally.empty} domains empty; {time.process_time():.0f} s of CPU time"
    )
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
