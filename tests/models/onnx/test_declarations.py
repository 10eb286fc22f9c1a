"""Names given twice and declared types that the nodes contradict are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.errors import ModelError
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import assert_agrees, graph_of, normal

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Change = Callable[[ModelProto], None]


def model(*, softmax: bool = False) -> ModelProto:
    """x [N, 4] -> Gemm -> g [N, 3] -> y [N, 3]."""
    last = helper.make_node("Softmax", ["g"], ["y"], name="last", axis=1)
    if not softmax:
        last = helper.make_node("Relu", ["g"], ["y"], name="last")
    first = helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="first")
    constants = {"w": normal(0, 4, 3), "b": normal(1, 3)}
    return graph_of([first, last], (4,), constants, opset=17)


def value(name: str, code: int, *sizes: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, code, list(sizes))


def tensor(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


#: What is wrong with the graph -> (how it is made, words of the refusal).
DOUBLED: dict[str, tuple[Change, str]] = {
    "an output twice": (lambda m: m.graph.output.append(m.graph.output[0]), "output 'y'"),
    "an input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "input 'x'"),
    "two inputs of one name": (lambda m: m.graph.input.append(value("x", FLOAT, "N", 5)), "'x'"),
    "a constant's input twice": (
        lambda m: m.graph.input.extend([value("w", FLOAT, 4, 3)] * 2),
        "input 'w'",
    ),
    "an initializer twice": (
        lambda m: m.graph.initializer.append(tensor("b", 3)),
        "initializer 'b'",
    ),
    "an unused initializer twice": (
        lambda m: m.graph.initializer.extend([tensor("u", 1)] * 2),
        "initializer 'u'",
    ),
    "an initializer that is computed": (
        lambda m: m.graph.initializer.append(tensor("g", 3)),
        "'g' of its output is an initializer",
    ),
    "an initializer called as the output": (
        lambda m: m.graph.initializer.append(tensor("y", 3)),
        "'y' of its output is an initializer",
    ),
    "a node that computes the input": (
        lambda m: m.graph.node.append(helper.make_node("Relu", ["g"], ["x"])),
        "'x' of its output is an input",
    ),
    "two nodes that compute one value": (
        lambda m: m.graph.node.append(helper.make_node("Tanh", ["g"], ["y"])),
        "'y' of its output is a node's output",
    ),
    "one node that computes a value twice": (
        lambda m: m.graph.node.append(helper.make_node("Split", ["g"], ["h", "h"], axis=1)),
        "'h' of its output is a node's output",
    ),
    "two nodes of one name": (
        lambda m: setattr(m.graph.node[1], "name", "first"),
        "node 'first' is declared 2 times",
    ),
    "no ir_version": (lambda m: m.ClearField("ir_version"), "ir_version"),
}

#: The declared value -> words of the refusal.
CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "shape of a value": (lambda m: m.graph.value_info.append(value("g", FLOAT, "N", 7)), "'g'"),
    "rank of a value": (lambda m: m.graph.value_info.append(value("g", FLOAT, "N", 3, 1)), "'g'"),
    "type of a value": (lambda m: m.graph.value_info.append(value("g", INT64, "N", 3)), "INT64"),
    "two declarations of a value": (
        lambda m: m.graph.value_info.extend([value("g", FLOAT, "N", 3), value("g", FLOAT, "N", 4)]),
        "'g'",
    ),
    "shape of the input": (lambda m: m.graph.value_info.append(value("x", FLOAT, "N", 5)), "'x'"),
    "shape of the output": (lambda m: m.graph.output[0].CopyFrom(value("y", FLOAT, "N", 9)), "'y'"),
    "rank of the output": (lambda m: m.graph.output[0].CopyFrom(value("y", FLOAT, 3)), "'y'"),
    "type of the output": (lambda m: m.graph.output[0].CopyFrom(value("y", INT64, "N", 3)), "'y'"),
    "output that is a sequence": (
        lambda m: m.graph.output[0].CopyFrom(
            helper.make_tensor_sequence_value_info("y", FLOAT, None)
        ),
        "'y'",
    ),
    "shape of a constant": (lambda m: m.graph.input.append(value("w", FLOAT, 4, 9)), "'w'"),
    "type of a constant": (lambda m: m.graph.value_info.append(value("w", INT64, 4, 3)), "'w'"),
}

#: What files may well say.
HARMLESS: dict[str, Change] = {
    "a constant among the inputs": lambda m: m.graph.input.append(value("w", FLOAT, 4, 3)),
    "the same declaration twice": lambda m: m.graph.value_info.extend(
        [value("g", FLOAT, "N", 3)] * 2
    ),
    "another batch": lambda m: m.graph.output[0].CopyFrom(value("y", FLOAT, 1, 3)),
    "no size": lambda m: m.graph.output[0].CopyFrom(value("y", FLOAT, "N", "classes")),
    "no type": lambda m: m.graph.output[0].CopyFrom(ValueInfoProto(name="y")),
    "of a value that there is not": lambda m: m.graph.value_info.append(value("z", INT64, 9)),
    "nodes without names": lambda m: [node.ClearField("name") for node in m.graph.node] and None,
}


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("case", [*DOUBLED, *CONTRADICTIONS])
def test_what_contradicts_itself_is_refused_by_name(case: str, softmax: bool) -> None:
    change, words = (DOUBLED | CONTRADICTIONS)[case]
    damaged = model(softmax=softmax)
    change(damaged)
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(damaged.SerializeToString())
    assert caught.value.code == "invalid_onnx"
    assert words in caught.value.message


@pytest.mark.parametrize("case", DOUBLED)
def test_the_runtime_alone_refuses_doubled_names_too(case: str) -> None:
    """Also where a Softmax at the end is cut off, which would hide the second of two."""
    damaged = model(softmax=True)
    DOUBLED[case][0](damaged)
    with pytest.raises(ModelError) as caught:
        OnnxRuntimeModel(damaged.SerializeToString(), (4,))
    assert caught.value.code == "invalid_onnx"


@pytest.mark.parametrize("case", HARMLESS)
def test_what_contradicts_nothing_is_taken(case: str) -> None:
    changed = model()
    HARMLESS[case](changed)
    assert_agrees(changed.SerializeToString())
