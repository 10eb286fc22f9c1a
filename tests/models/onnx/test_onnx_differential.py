"""A slice of ``benchmarks/verification/differential.py``: random graphs are refused, or are ONNX
Runtime's.
"""

from __future__ import annotations

from collections import Counter

from benchmarks.verification.differential import chunk, operators_to_cover
from tests.models.differential.comparison import compare

SEED = 77_000_000
GRAPHS = 300


def test_random_graphs() -> None:
    outcomes = [compare(seed) for seed in range(SEED, SEED + GRAPHS)]
    assert not [outcome for outcome in outcomes if outcome.status == "wrong"]
    accepted = [outcome for outcome in outcomes if outcome.status == "accepted"]
    assert len(accepted) > 0.6 * GRAPHS
    holding = Counter(kind for outcome in accepted for kind in outcome.operators)
    assert sum(holding[kind] > 0 for kind in operators_to_cover()) > 0.9 * len(operators_to_cover())


def test_damaged_graphs_end_no_process() -> None:
    outcomes = chunk(SEED, 100, mutants=True)
    assert len(outcomes) == 100
    assert not [row for row in outcomes if row["status"] == "wrong"]
