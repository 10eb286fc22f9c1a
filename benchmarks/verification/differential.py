"""Random ONNX graphs, imported and compared with ONNX Runtime: are they ever another network?

``python -m benchmarks.verification.differential --graphs 5000 --seed 1``. Every graph is refused
with a code or agrees on random inputs of three scales, in batches of 1, 2, 3 and 7. The same graphs
damaged at random (``--mutants``) are refused, or agree, and never end the process; so do odd single
nodes on constants (``--constants``), which are compared with ONNX's reference. Exit status 1
otherwise, or where the graphs are too weak a test: less than 60 % of them accepted, or an operator
in too few.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from models.onnx.constant_rules import CONSTANT_OPERATORS
from models.onnx.importer import SUPPORTED_OPERATORS
from models.onnx.operators.registry import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 500
ACCEPTED_SHARE = 0.6
#: What is made of seeds (``tests.models.differential.chunk``), in this order.
TITLES = {"graphs": "graphs", "mutants": "damaged graphs", "constants": "nodes on constants"}
#: One accepted graph in so many holds any given operator.
ONE_IN = 500


def chunk(start: int, count: int, kind: str) -> list[dict[str, Any]]:
    """The outcomes of a stretch of seeds, each death of a process among them."""
    outcomes: list[dict[str, Any]] = []
    end = start + count
    while start < end:
        command = [sys.executable, "-m", "tests.models.differential.chunk", str(start)]
        command += [str(end - start), kind]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        rows = [json.loads(line) for line in ran.stdout.splitlines()]
        outcomes += [row for row in rows if "status" in row]
        if ran.returncode == 0:
            break
        start = rows[-1]["seed"] if rows else start
        detail = f"the process ended with {ran.returncode}"
        outcomes.append({"seed": start, "status": "wrong", "detail": detail, "operators": []})
        start += 1
    return outcomes


def report(title: str, outcomes: list[dict[str, Any]]) -> bool:
    """Print the figures; whether there is nothing wrong."""
    accepted = sum(row["status"] == "accepted" for row in outcomes)
    wrong = [row for row in outcomes if row["status"] == "wrong"]
    codes = Counter(row["detail"] for row in outcomes if row["status"] == "refused")
    print(
        f"{title}: {len(outcomes)}, accepted {accepted} ({accepted / len(outcomes):.1%}), "
        f"wrong {len(wrong)}"
    )
    print("  refused: " + ", ".join(f"{code} {n}" for code, n in codes.most_common()))
    for row in wrong:
        print(f"  WRONG seed {row['seed']}: {row['detail']} {row['operators']}")
    return not wrong


def operators_to_cover() -> list[str]:
    """Every supported operator, on activations and on constants alone, as outcomes name them.

    But for those that machines compute differently: their constants are taken in few places.
    """
    constants = [f"constant {kind}" for kind, rule in CONSTANT_OPERATORS.items() if not rule.spread]
    activations = {*SUPPORTED_OPERATORS} - ({*CONSTANT_OPERATORS} - {*OPERATORS})
    return sorted(activations) + constants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=5000)
    parser.add_argument("--mutants", type=int, default=5000)
    parser.add_argument("--constants", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    first = args.seed * 10_000_000
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in TITLES:
        found[kind] = []
        total = getattr(args, kind)
        for start in range(0, total, CHUNK):
            found[kind] += chunk(first + start, min(CHUNK, total - start), kind)
    reports = [report(TITLES[kind], outcomes) for kind, outcomes in found.items() if outcomes]
    good = all(reports)
    accepted = [row for row in found["graphs"] if row["status"] == "accepted"]
    holding = Counter(kind for row in accepted for kind in row["operators"])
    needed = len(accepted) // ONE_IN
    covered = {kind: holding[kind] for kind in operators_to_cover()}
    print(
        "  accepted graphs with each operator: "
        + ", ".join(f"{k} {n}" for k, n in sorted(covered.items(), key=lambda row: row[1]))
    )
    rare = [kind for kind, number in covered.items() if number < needed]
    if rare or len(accepted) < ACCEPTED_SHARE * args.graphs:
        print(f"too weak a test: too few accepted, or graphs with {rare}")
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
