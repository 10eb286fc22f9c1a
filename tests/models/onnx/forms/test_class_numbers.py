"""Labels of a data set are places of scores: a file that calls its classes by other numbers is
refused, or a certificate of the label 1 would be about the class that the file calls 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.errors import ModelError
from models.onnx.forms import class_numbers
from models.onnx.forms.plain import Asked, plain_form
from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.forms.files import (
    answers_of,
    floats,
    labels_and_maps,
    linear_classifier,
    node,
    written,
)
from tests.models.onnx.graphs import graph_of, normal

ML = {"domain": "ai.onnx.ml"}
LABEL = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
INPUT = [floats("x", "N", 4)]


def classifier(classes: Sequence[int], transform: str) -> NodeProto:
    """Labels and scores ``p`` of three classes."""
    return node(
        *("LinearClassifier", ["x"], ["label", "p"]),
        **ML,
        coefficients=[float(number) for number in normal(0, 12)],
        intercepts=[0.1, 0.2, 0.3],
        classlabels_ints=list(classes),
        post_transform=transform,
    )


def scores_beside_labels(classes: Sequence[int]) -> bytes:
    """A linear classifier without ZipMap."""
    return written([classifier(classes, "SOFTMAX")], INPUT, [LABEL, floats("p", None, 3)], {})


def table(operator: str) -> Callable[[Sequence[int]], bytes]:
    """An ArgMax whose number is looked up among the classes, as scikit-learn's MLPs are written."""

    def made(classes: Sequence[int]) -> bytes:
        constants = {"w": normal(0, 4, 3), "classes": np.array(classes, np.int64)}
        nodes = [
            node("MatMul", ["x", "w"], ["p"]),
            node("ArgMax", ["p"], ["place"], axis=1, keepdims=0),
            node("Cast", ["place"], ["at"], to=TensorProto.INT64),
            node(operator, ["classes", "at"], ["label"], **(ML if operator != "Gather" else {})),
        ]
        return written(nodes, INPUT, [LABEL, floats("p", "N", 3)], constants)

    return made


def numerals(classes: Sequence[int]) -> bytes:
    """Probabilities as maps from numbers that are written as words."""
    maps = node("ZipMap", ["p"], ["maps"], **ML, classlabels_strings=[str(n) for n in classes])
    nodes = [node("MatMul", ["x", "w"], ["l"]), node("Softmax", ["l"], ["p"], axis=1), maps]
    return written(nodes, INPUT, labels_and_maps()[1:], {"w": normal(0, 4, 3)})


FILES: dict[str, Callable[[Sequence[int]], bytes]] = {
    "maps": lambda classes: linear_classifier(classes=classes),
    "labels": scores_beside_labels,
    "table": table("Gather"),
    "table of scikit-learn": table("ArrayFeatureExtractor"),
    "numerals": numerals,
}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("classes", [(1, 2, 3), (1, 0, 2), (0, 2, 5), (-1, 0, 1)])
def test_a_file_that_calls_classes_by_other_numbers_than_their_places_is_refused(
    form: str, classes: tuple[int, ...]
) -> None:
    with pytest.raises(ModelError) as raised:
        read_onnx_bytes(FILES[form](classes))
    assert raised.value.code == "class_numbers"
    assert ", ".join(map(str, classes)) in str(raised.value)


@pytest.mark.parametrize("form", FILES)
def test_classes_that_are_called_by_their_places_are_taken(form: str) -> None:
    assert read_onnx_bytes(FILES[form]((0, 1, 2))).network.classes == 3


def test_the_label_that_a_file_gives_is_not_the_place_of_its_score() -> None:
    data, x = scores_beside_labels((1, 0, 2)), normal(3, 8, 4)
    given = np.array([row[0] for row in answers_of(data, x, "label")])
    places = np.array([row[0].argmax() for row in answers_of(data, x, "p")])
    assert (given == np.array([1, 0, 2])[places]).all()
    assert (given != places).any()


def test_classes_with_names_are_in_the_order_of_their_scores() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("ZipMap", ["p"], ["maps"], **ML, classlabels_strings=["cat", "dog", "10"]),
    ]
    data = written(nodes, INPUT, labels_and_maps()[1:], {"w": normal(0, 4, 3)})
    assert read_onnx_bytes(data).network.classes == 3


def test_the_scores_that_a_spec_names_are_taken_by_place() -> None:
    data, x = scores_beside_labels((1, 2, 3)), normal(3, 8, 4)
    imported = read_onnx_bytes(data, asked=Asked(output="p"))
    again = plain_form(imported.deployed)
    assert again.model.SerializeToString() == imported.deployed
    places = OnnxRuntimeModel(imported.deployed, (4,))(x).argmax(1)
    assert [row[0].argmax() for row in answers_of(data, x, "p")] == places.tolist()


def test_maps_that_a_spec_names_say_what_their_numbers_are() -> None:
    with pytest.raises(ModelError) as raised:
        read_onnx_bytes(linear_classifier(classes=(1, 2, 3)), asked=Asked(output="maps"))
    assert raised.value.code == "class_numbers"


def test_a_property_asks_about_scores_by_place() -> None:
    outputs = [LABEL, floats("p", None, 3)]
    data = written([classifier((1, 2, 3), "NONE")], INPUT, outputs, {})
    imported = read_onnx_bytes(data, asked=Asked(classifier=False))
    assert OnnxRuntimeModel(imported.deployed, (4,))(normal(3, 8, 4)).shape == (8, 3)


def test_a_long_table_that_many_nodes_read_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five thousand readers of a table of four megabytes took half an hour."""
    read: list[str] = []
    plain = numpy_helper.to_array

    def counted(tensor: TensorProto) -> Any:
        read.append(tensor.name)
        return plain(tensor)

    monkeypatch.setattr(numpy_helper, "to_array", counted)
    nodes = [
        node("ArgMax", ["x"], ["i"], axis=1),
        *(node("Gather", ["table", "i"], [f"g{index}"]) for index in range(20)),
        node("Relu", ["x"], ["y"]),
    ]
    graph = graph_of(nodes, (3,), {"table": np.arange(3)}).graph
    class_numbers.refuse_other_numbers(graph, "y", named=False)
    assert read == ["table"]


@pytest.mark.parametrize("named", ["Identity", "Constant"])
def test_a_table_by_another_name_or_spelled_out(named: str) -> None:
    table = {
        "Identity": node("Identity", ["stored"], ["table"]),
        "Constant": node("Constant", [], ["table"], value_ints=[1, 2, 3]),
    }[named]
    nodes = [
        table,
        node("ArgMax", ["x"], ["i"], axis=1),
        node("Gather", ["table", "i"], ["g"]),
        node("Relu", ["x"], ["y"]),
    ]
    graph = graph_of(nodes, (3,), {"stored": np.array([1, 2, 3])}).graph
    with pytest.raises(ModelError) as caught:
        class_numbers.refuse_other_numbers(graph, "y", named=False)
    assert caught.value.code == "class_numbers"


def test_names_of_classes_are_in_the_order_of_their_scores() -> None:
    names = ["benign", "malignant", "10"]
    maps = node("ZipMap", ["p"], ["maps"], **ML, classlabels_strings=names)
    dense = [node("MatMul", ["x", "w"], ["l"]), node("Softmax", ["l"], ["p"], axis=1)]
    file = written([*dense, maps], INPUT, labels_and_maps()[1:], {"w": normal(0, 4, 3)})
    assert class_numbers.class_names(file, 3) == tuple(names)
    # Not those of two classes, and no file with numbers, or without either.
    assert class_numbers.class_names(file, 2) is None
    assert class_numbers.class_names(scores_beside_labels((0, 1, 2)), 3) is None
    assert class_numbers.class_names(graph_of([], (2,)).SerializeToString(), 2) is None
    places = [
        node("MatMul", ["x", "w"], ["p"]),
        node("ArgMax", ["p"], ["place"], axis=1, keepdims=0),
        node("ArrayFeatureExtractor", ["classes", "place"], ["label"], **ML),
    ]
    label = helper.make_tensor_value_info("label", TensorProto.STRING, [None])
    constants = {"w": normal(0, 4, 3), "classes": np.array(names, object)}
    file = written(places, INPUT, [label, floats("p", "N", 3)], constants)
    assert class_numbers.class_names(file, 3) == tuple(names)
    # Names in two orders say nothing.
    other = node("ZipMap", ["p"], ["maps"], **ML, classlabels_strings=names[::-1])
    both = [*places, other]
    file = written(both, INPUT, [label, *labels_and_maps()[1:], floats("p", "N", 3)], constants)
    assert class_numbers.class_names(file, 3) is None
