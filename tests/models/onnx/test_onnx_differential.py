"""A slice of ``benchmarks/verification/differential.py``: random graphs are refused, or are ONNX
Runtime's.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import helper

from benchmarks.verification.differential import chunk, operators_to_cover
from models.errors import ModelError
from models.onnx.constant_rules import CONSTANT_OPERATORS
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.differential.comparison import compare
from tests.models.onnx.graphs import flattened, normal
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
    # Rare ones come with the thousands of the night.
    assert sum(holding[kind] > 0 for kind in operators_to_cover()) > 0.8 * len(operators_to_cover())


def test_damaged_graphs_end_no_process() -> None:
    outcomes = chunk(SEED, 100, "mutants")
    assert len(outcomes) == 100
    assert not [row for row in outcomes if row["status"] == "wrong"]


@pytest.mark.parametrize(("first", "second"), [((0,), (3, 2)), ((3, 2), (0,)), ((3, 0), (2, 2))])
def test_an_empty_constant_of_another_shape_is_refused(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    """A Concat of [0] and [3, 2] ends ONNX Runtime's process: it must not be asked."""
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["c"], axis=0),
        helper.make_node("ReduceSum", ["c"], ["k"], keepdims=0),
        helper.make_node("Add", ["x", "k"], ["y"]),
    ]
    constants = {"a": np.zeros(first, np.float32), "b": np.zeros(second, np.float32)}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (4,), constants))
    assert caught.value.code == "invalid_onnx"


def test_odd_nodes_on_constants_end_no_process_and_give_what_the_standard_says() -> None:
    outcomes = chunk(SEED, 1500, "constants")
    assert len(outcomes) == 1500
    assert not [row for row in outcomes if row["status"] == "wrong"]
    accepted = {row["operators"][0] for row in outcomes if row["status"] == "accepted"}
    assert len(accepted) > 0.9 * (len(CONSTANT_OPERATORS) - 1)


def test_beyond_float32_nothing_is_compared_and_nothing_certified() -> None:
    """Weights of 3e38: ONNX Runtime's sums overflow, and the parity check knows where."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = 3e38 * np.sign(normal(0, 4, 3))
    data = flattened(nodes, (4,), {"w": weight.astype(np.float32)})
    network = import_onnx_bytes(data)
    x = np.random.default_rng(0).standard_normal((8, *network.input_shape)).astype(np.float32)
    deployed = OnnxRuntimeModel(data, network.input_shape)
    logits = deployed(x)
    assert not np.isfinite(logits).all()
    compiled = CompiledNetwork.compile(network, norms=False)
    facts = check_parity(compiled, x, logits, deployed, clip=False)
    assert facts["unchecked"] > 0
