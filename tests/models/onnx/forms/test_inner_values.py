"""Values inside a file are the network's too, also where the logits do not show them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from models.errors import ModelError
from models.onnx.forms.inner_values import ROWS, refuse_other_values
from models.onnx.importer import read_onnx_bytes
from models.onnx.operators.registry import OPERATORS
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import assert_same_logits, graph_of, normal

node = helper.make_node


def silent_branch() -> bytes:
    """x, and a branch that is 0 wherever anybody looks: Relu(x turned round, less 1000)."""
    constants = {
        "last": np.array([-1], np.int64),
        "before": np.array([-99], np.int64),
        "back": np.array([-1], np.int64),
        "axis": np.array([1], np.int64),
        "far": np.array(1000, np.float32),
        "same": np.array([0, 4], np.int64),
    }
    nodes = [
        node("Squeeze", ["x", "axis"], ["flat"]),
        node("Slice", ["flat", "last", "before", "axis", "back"], ["turned"]),
        node("Reshape", ["turned", "same"], ["viewed"]),
        node("Sub", ["viewed", "far"], ["below"]),
        node("Relu", ["below"], ["silent"]),
        node("Reshape", ["x", "same"], ["plain"]),
        node("Add", ["plain", "silent"], ["y"]),
    ]
    return graph_of(nodes, (1, 4), constants).SerializeToString()


@pytest.mark.parametrize(("operator", "said"), [("Slice", "differs"), ("Squeeze", "has shape")])
def test_an_operator_read_otherwise_is_found_behind_silence(
    operator: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it read as the identity, the logits would be the same near all data."""
    data = silent_branch()
    refuse_other_values(read_onnx_bytes(data))
    monkeypatch.setitem(OPERATORS, operator, OPERATORS["Identity"])
    if operator == "Squeeze":
        monkeypatch.setitem(OPERATORS, "Slice", OPERATORS["Identity"])
    imported = read_onnx_bytes(data)
    assert_same_logits(imported.network, data)
    with pytest.raises(ModelError, match=said) as caught:
        refuse_other_values(imported)
    assert caught.value.code == "deployment_mismatch"


def test_rounding_is_no_other_value() -> None:
    """Where all digits cancel, float32 is as far from itself as from anything."""
    constants = {"large": np.array(1e9, np.float32), "tiny": np.full((4,), 1e-3, np.float32)}
    nodes = [
        node("Mul", ["x", "large"], ["up"]),
        node("Add", ["up", "tiny"], ["moved"]),
        node("Sub", ["moved", "up"], ["y"]),
    ]
    refuse_other_values(read_onnx_bytes(graph_of(nodes, (4,), constants).SerializeToString()))


def test_probabilities_of_probabilities_lose_one_softmax_only() -> None:
    """The plain form is deployed as it is: nothing more is cut off its end."""
    nodes = [
        node("MatMul", ["x", "w"], ["z"]),
        node("Softmax", ["z"], ["p"]),
        node("Softmax", ["p"], ["y"]),
    ]
    data = graph_of(nodes, (4,), {"w": normal(0, 4, 3)}).SerializeToString()
    imported = read_onnx_bytes(data)
    x = normal(1, 5, 4)
    found = OnnxRuntimeModel(imported.deployed, (4,), plain=True)(x)
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-6)


@pytest.mark.parametrize("bias", [-14.0, -17.0, -40.0])
@pytest.mark.parametrize("form", ["sigmoid", "gate", "softplus"])
def test_a_shut_gate_is_no_other_value(
    form: str, bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are off by a fixed number, all of a value that is smaller; a view behind it that is
    read otherwise is found as before."""
    gates = {
        "sigmoid": [node("Sigmoid", ["h"], ["g"])],
        "gate": [node("Sigmoid", ["h"], ["s"]), node("Mul", ["x", "s"], ["g"])],
        "softplus": [
            *(node("Exp", ["h"], ["e"]), node("Add", ["e", "one"], ["c"])),
            node("Log", ["c"], ["g"]),
        ],
    }
    constants = {
        **{name: np.array(value, np.float32) for name, value in (("one", 1), ("bias", bias))},
        **{name: np.array([value]) for name, value in (("last", -1), ("before", -99), ("axis", 1))},
        "w": normal(0, 4, 3),
    }
    nodes = [
        node("Add", ["x", "bias"], ["h"]),
        *gates[form],
        node("Slice", ["g", "last", "before", "axis", "last"], ["turned"]),
        node("Add", ["turned", "x"], ["sum"]),
        node("MatMul", ["sum", "w"], ["y"]),
    ]
    used = {name for each in nodes for name in each.input}
    constants = {name: value for name, value in constants.items() if name in used}
    data = graph_of(nodes, (4,), constants).SerializeToString()
    refuse_other_values(read_onnx_bytes(data))
    monkeypatch.setitem(OPERATORS, "Slice", OPERATORS["Identity"])
    if bias == -14.0:
        imported = read_onnx_bytes(data)
        with pytest.raises(ModelError, match="'turned'"):
            refuse_other_values(imported)


@pytest.mark.parametrize("kind", ["Sign", "Round"])
def test_a_number_next_to_a_jump_may_be_on_either_side(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input that is compared on lies at a jump, to within the rounding of the sum before; what
    follows is the file's again. A view behind the jump that is read otherwise is found as before.
    """
    x = np.random.default_rng(0).standard_normal((ROWS, 64), np.float32)
    weight = normal(1, 64, 8)
    jump = 0.5 if kind == "Round" else 0.0
    exact = x[0].astype(np.float64) @ weight.astype(np.float64)
    constants = {
        "w": weight,
        "c": (jump - exact).astype(np.float32),
        **{name: np.array([value]) for name, value in (("last", -1), ("before", -99), ("axis", 1))},
        "v": normal(2, 8, 3),
    }
    nodes = [
        *(node("MatMul", ["x", "w"], ["z"]), node("Add", ["z", "c"], ["h"])),
        node(kind, ["h"], ["s"]),
        node("Slice", ["s", "last", "before", "axis", "last"], ["turned"]),
        node("MatMul", ["turned", "v"], ["y"]),
    ]
    data = graph_of(nodes, (64,), constants).SerializeToString()
    refuse_other_values(read_onnx_bytes(data))
    monkeypatch.setitem(OPERATORS, "Slice", OPERATORS["Identity"])
    with pytest.raises(ModelError, match="'turned'"):
        refuse_other_values(read_onnx_bytes(data))
