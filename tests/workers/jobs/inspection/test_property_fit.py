"""Inputs that a property declares are the network's, in its order."""

from __future__ import annotations

import pytest
import torch

from models.layers.kinds import Linear, Reshape
from models.network import Network
from workers.jobs.inspection.loaded_model import LoadedModel
from workers.jobs.inspection.property_inspection import check_fit
from workers.verification.properties.errors import PropertyError
from workers.verification.properties.text.vnnlib import parse_vnnlib

#: [2, 3] -> [1]
ROWS = [("flat", Reshape(shape=(6,)), ("input",)), ("y", Linear(torch.ones(1, 6)), ("flat",))]


def stated(*shape: int) -> str:
    """A property of six inputs between 0 and 1 that are declared in this shape."""
    lines = [
        "(vnnlib-version <2.0>)",
        f"(declare-network N (declare-input X float32 {[*shape]})",
        "(declare-output Y float32 [1,1]))",
    ]
    for place in range(6):
        index, left = list[int](), place
        for size in reversed(shape):
            index.insert(0, left % size)
            left //= size
        lines += [f"(assert (>= X{index} 0))", f"(assert (<= X{index} 1))"]
    return "\n".join([*lines, "(assert (>= Y[0,0] 7))"])


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3), (1, 6), (6,)])
def test_the_network_s_own_order(shape: tuple[int, ...]) -> None:
    check_fit(parse_vnnlib(stated(*shape)), LoadedModel(Network((2, 3), ROWS), b"", None))


@pytest.mark.parametrize("shape", [(1, 3, 2), (3, 2)])
def test_the_same_numbers_in_another_order_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PropertyError) as caught:
        check_fit(parse_vnnlib(stated(*shape)), LoadedModel(Network((2, 3), ROWS), b"", None))
    assert caught.value.code == "property_mismatch"
