"""A slice of ``benchmarks/verification/differential.py``: random graphs are refused, or are ONNX
Runtime's.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.verification.differential import chunk, operators_to_cover
from models.onnx.constant_rules import CONSTANT_OPERATORS
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.differential.comparison import compare, compare_mutant, mutant
from workers.verification.cascade.parity import check_parity
from workers.verification.graph.compiled_network import CompiledNetwork

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
    outcomes = chunk(SEED, 100, "mutants")
    assert len(outcomes) == 100
    assert not [row for row in outcomes if row["status"] == "wrong"]


#: Damaged graphs that ended the process inside ONNX Runtime (a Concat of constants whose ranks
#: differ, one of them empty), and how they are refused.
ENDED = (110_000_315, 110_000_371)


@pytest.mark.parametrize("seed", ENDED)
def test_an_empty_constant_of_another_rank_is_refused(seed: int) -> None:
    (outcome,) = chunk(seed, 1, "mutants")
    assert (outcome["status"], outcome["detail"]) == ("refused", "invalid_onnx")


def test_odd_nodes_on_constants_end_no_process_and_give_what_the_standard_says() -> None:
    outcomes = chunk(SEED, 1500, "constants")
    assert len(outcomes) == 1500
    assert not [row for row in outcomes if row["status"] == "wrong"]
    accepted = {row["operators"][0] for row in outcomes if row["status"] == "accepted"}
    assert len(accepted) > 0.9 * (len(CONSTANT_OPERATORS) - 1)


@pytest.mark.parametrize("seed", [110_000_987, 110_001_060])
def test_beyond_float32_nothing_is_compared_and_nothing_certified(seed: int) -> None:
    """Weights of 3e38: ONNX Runtime's sums overflow, and the parity check knows where."""
    assert compare_mutant(seed).status != "wrong"
    data = mutant(seed).SerializeToString()
    network = import_onnx_bytes(data)
    x = np.random.default_rng(0).standard_normal((8, *network.input_shape)).astype(np.float32)
    deployed = OnnxRuntimeModel(data, network.input_shape)
    logits = deployed(x)
    program = CompiledNetwork.compile(network, norms=False)
    facts = check_parity(program, x, logits, deployed, clip=False)
    assert not np.isfinite(logits).all()
    assert facts["unchecked"] > 0
