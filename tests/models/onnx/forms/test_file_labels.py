"""A label beside the scores that is not the class of the largest one is refused, however the file
makes it; one that is, or that is no label, changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from models.errors import ModelError
from models.onnx.deployed import DeployedNetwork
from models.onnx.forms.class_numbers import class_names
from models.onnx.forms.file_labels import StatedLabels, refuse_other_labels
from models.onnx.importer import read_onnx_bytes
from tests.models.onnx.forms.files import floats, node, written
from tests.models.onnx.graphs import normal

NUMBERS: dict[str, Any] = {
    "w": normal(0, 4, 3),
    "other": normal(1, 4, 3),
    "one": np.array(1, np.int64),
    "two": np.array(2, np.int64),
    "ten": np.array(10, np.int64),
    "zero": np.array([0], np.int64),
    "three": np.array(3, np.int64),
    "half": np.float32(0.5),
    "sure": np.float32(0.6),
    "no": np.array(-1, np.int64),
    "k": np.array([1], np.int64),
}
SCORES = node("MatMul", ["x", "w"], ["s"])
BEST = node("ArgMax", ["s"], ["best"], axis=1, keepdims=0)
#: Files whose label is another class than that of the largest score, in ways that nothing follows.
OTHER: dict[str, list[NodeProto]] = {
    "from the end": [BEST, node("Sub", ["two", "best"], ["label"])],
    "the next one": [
        *(BEST, node("Add", ["best", "one"], ["more"])),
        node("Mod", ["more", "three"], ["label"]),
    ],
    "from one on": [BEST, node("Add", ["best", "one"], ["label"])],
    "tens": [BEST, node("Mul", ["best", "ten"], ["label"])],
    "of other scores": [
        node("MatMul", ["x", "other"], ["o"]),
        node("ArgMax", ["o"], ["label"], axis=1, keepdims=1),
    ],
    "of their sizes": [
        node("Abs", ["s"], ["sizes"]),
        node("ArgMax", ["sizes"], ["label"], axis=1),
    ],
}
#: A file that answers only where it is sure, by a number or by a class that is none.
DECLINED: dict[str, list[NodeProto]] = {
    kind: [
        BEST,
        node("Softmax", ["s"], ["p"], axis=1),
        node("ReduceMax", ["p"], ["most"], axes=[1], keepdims=0),
        node("Greater", ["most", "sure"], ["clear"]),
        node("Where", ["clear", "best", kind], ["label"]),
    ]
    for kind in ("no", "three")
}
#: Whole numbers beside the scores that are the class, or no class.
SAME: dict[str, list[NodeProto]] = {
    "the class": [BEST, node("Identity", ["best"], ["label"])],
    "the class, in a column": [node("ArgMax", ["s"], ["label"], axis=1)],
    "there and back": [
        *(BEST, node("Sub", ["two", "best"], ["more"])),
        node("Sub", ["two", "more"], ["label"]),
    ],
    "the best one": [node("TopK", ["s", "k"], ["v", "label"], axis=1)],
    "how many are positive, in hundreds": [
        node("Greater", ["s", "half"], ["above"]),
        node("Cast", ["above"], ["counted"], to=TensorProto.INT64),
        node("Mul", ["counted", "ten"], ["tens"]),
        node("ReduceSum", ["tens", "one_axis"], ["label"], keepdims=0),
    ],
    "all of them": [node("Cast", ["s"], ["label"], to=TensorProto.INT64)],
    "the size of the batch": [
        node("Shape", ["x"], ["sizes"]),
        node("Gather", ["sizes", "zero"], ["label"]),
    ],
    "the version of the file": [node("Identity", ["one"], ["label"])],
    "what never ends": [
        BEST,
        node(
            "Loop",
            ["", "", "best"],
            ["label"],
            body=helper.make_graph(
                [node("Identity", ["go"], ["on"]), node("Identity", ["v"], ["w_"])],
                "body",
                [
                    helper.make_tensor_value_info("i", TensorProto.INT64, []),
                    helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                    helper.make_tensor_value_info("v", TensorProto.INT64, None),
                ],
                [
                    helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                    helper.make_tensor_value_info("w_", TensorProto.INT64, None),
                ],
            ),
        ),
    ],
}


def compared(
    nodes: list[NodeProto],
    batch: int | str = "N",
    count: int = 20,
    *,
    kind: int = TensorProto.INT64,
    classes: int = 3,
    opset: int = 13,
) -> None:
    numbers = {**NUMBERS, "w": NUMBERS["w"][:, :classes], "one_axis": np.array([1], np.int64)}
    file = written(
        [SCORES, *nodes],
        [floats("x", batch, 4)],
        [
            helper.make_tensor_value_info("label", kind, [batch]),
            floats("s", batch, classes),
        ],
        numbers,
        opset=opset,
    )
    imported = read_onnx_bytes(file)
    assert (imported.output, imported.others) == ("s", ("label",))
    network = DeployedNetwork(imported.deployed, (4,), {"mean": [0.5], "std": [0.25]})
    x = np.random.default_rng(3).random((count, 4)).astype(np.float32)
    stated = StatedLabels(file, imported.output, imported.others)
    refuse_other_labels(stated, x, network, network.given)


@pytest.mark.parametrize("batch", ["N", 1, 4])
@pytest.mark.parametrize("name", OTHER)
def test_another_label_is_refused(name: str, batch: int | str) -> None:
    with pytest.raises(ModelError) as raised:
        compared(OTHER[name], batch)
    assert raised.value.code == "other_labels"
    assert '"output": "s"' in (raised.value.hint or "")


@pytest.mark.parametrize("name", DECLINED)
def test_a_file_that_declines_to_answer_is_refused(name: str) -> None:
    """Within a ball of one class it might cease to answer."""
    with pytest.raises(ModelError) as raised:
        compared(DECLINED[name], count=40)
    assert raised.value.code == "other_labels"


@pytest.mark.parametrize("name", OTHER)
def test_one_sample_is_enough(name: str) -> None:
    """Its numbers in other orders have other classes."""
    with pytest.raises(ModelError, match="label"):
        compared(OTHER[name], count=1)


@pytest.mark.parametrize("batch", ["N", 1, 4])
@pytest.mark.parametrize("name", SAME)
def test_the_class_itself_and_other_numbers_are_taken(name: str, batch: int | str) -> None:
    compared(SAME[name], batch)


@pytest.mark.parametrize("scores", ["w", "other"])
def test_names_beside_the_scores_are_those_of_their_classes_or_refused(scores: str) -> None:
    names = ["benign", "malignant", "neither"]
    nodes = [
        SCORES,
        node("MatMul", ["x", scores], ["o"]),
        node("ArgMax", ["o"], ["place"], axis=1, keepdims=0),
        node("ArrayFeatureExtractor", ["names", "place"], ["label"], domain="ai.onnx.ml"),
    ]
    label = helper.make_tensor_value_info("label", TensorProto.STRING, None)
    constants = {"w": NUMBERS["w"], "other": NUMBERS["other"], "names": np.array(names, object)}
    file = written(nodes, [floats("x", "N", 4)], [label, floats("s", "N", 3)], constants)
    found = read_onnx_bytes(file)
    assert found.output == "s"
    assert class_names(file, 3) == tuple(names)
    stated = StatedLabels(file, found.output, found.others, names)
    deployed = DeployedNetwork(found.deployed, (4,), None)
    x = normal(5, 100, 4)
    if scores == "w":
        refuse_other_labels(stated, x, deployed, deployed.given)
        return
    with pytest.raises(ModelError) as caught:
        refuse_other_labels(stated, x, deployed, deployed.given)
    assert caught.value.code == "other_labels"


KINDS = [
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.UINT8),
    *(TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    *(TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE),
]
NEXT = [*OTHER["the next one"][:-1], node("Mod", ["more", "three"], ["next"])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_of_any_type_is_compared(kind: int) -> None:
    with pytest.raises(ModelError) as raised:
        compared([*NEXT, node("Cast", ["next"], ["label"], to=kind)], kind=kind)
    assert raised.value.code == "other_labels"
    compared([BEST, node("Cast", ["best"], ["label"], to=kind)], kind=kind)


def test_a_float_for_each_sample_is_no_label() -> None:
    largest = node("ReduceMax", ["s"], ["label"], axes=[1], keepdims=0)
    compared([largest], kind=TensorProto.FLOAT)


def test_a_truth_value_is_one_of_two_classes_and_no_other() -> None:
    best = [BEST, node("Cast", ["best"], ["yes"], to=TensorProto.BOOL)]
    turned = [*best, node("Not", ["yes"], ["label"])]
    compared([*best, node("Identity", ["yes"], ["label"])], kind=TensorProto.BOOL, classes=2)
    compared(turned, kind=TensorProto.BOOL)
    with pytest.raises(ModelError) as raised:
        compared(turned, kind=TensorProto.BOOL, classes=2)
    assert raised.value.code == "other_labels"


@pytest.mark.parametrize("name", ["BitShift", "CastLike", "OneHot"])
def test_operators_that_only_labels_need_are_run(name: str) -> None:
    """Each makes another class of it, by an operator that no network has."""
    bits = TensorProto.UINT64
    nodes = {
        "BitShift": [
            node("Cast", ["best"], ["bits"], to=bits),
            node("Cast", ["one"], ["by"], to=bits),
            node("BitShift", ["bits", "by"], ["more"], direction="LEFT"),
            node("Cast", ["more"], ["twice"], to=TensorProto.INT64),
            node("Mod", ["twice", "three"], ["label"]),
        ],
        "CastLike": [
            node("CastLike", ["best", "one"], ["alike"]),
            node("Sub", ["two", "alike"], ["label"]),
        ],
        "OneHot": [
            node("OneHot", ["best", "three", "ends"], ["row"]),
            node("Add", ["row", "row"], ["rows"]),
            node("ArgMin", ["rows"], ["label"], axis=1, keepdims=0),
        ],
    }[name]
    ends = node("Range", ["none", "two", "one"], ["ends"])
    none = node("Sub", ["one", "one"], ["none"])
    with pytest.raises(ModelError) as raised:
        compared([BEST, none, ends, *nodes], opset=15)
    assert raised.value.code == "other_labels"


@pytest.mark.parametrize("batch", ["N", 4])
def test_one_number_of_a_whole_batch_is_no_label(batch: int | str) -> None:
    above = node("Greater", ["s", "half"], ["above"])
    counted = node("Cast", ["above"], ["counted"], to=TensorProto.INT64)
    compared([above, counted, node("ReduceMax", ["counted"], ["label"], keepdims=0)], batch)
