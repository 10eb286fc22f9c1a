"""Several outputs, labels, maps, one score: the logits that are certified, and nothing beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from models.errors import ModelError
from models.onnx.forms.plain import Asked, plain_form
from models.onnx.importer import ImportedOnnx, read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.forms.files import (
    answers_of,
    floats,
    labels_and_maps,
    linear_classifier,
    node,
    written,
)
from tests.models.onnx.graphs import normal
from workers.verification.answers import answers
from workers.verification.rounding import SIGMOID_GAP, SOFTMAX_GAP, answer_gap

WEIGHTS = {"w": normal(0, 4, 3), "b": normal(1, 3), "one": np.ones((1,), np.float32)}
LAYER = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["l"])]


def several(*outputs: Any, end: Any = ()) -> bytes:
    """A dense layer with the logits ``l``, more nodes and the outputs named."""
    return written([*LAYER, *end], [floats("x", "N", 4)], outputs, WEIGHTS)


def logits_of(data: bytes, asked: Asked | None = None) -> ImportedOnnx:
    """The import, whose plain form is its own plain form and is the network."""
    imported = read_onnx_bytes(data, asked=asked)
    again = plain_form(imported.deployed)
    assert again.model.SerializeToString() == imported.deployed
    x = normal(9, 4, *imported.network.input_shape)
    found = OnnxRuntimeModel(imported.deployed, imported.network.input_shape)(x)
    with torch.no_grad():
        np.testing.assert_allclose(imported.network(torch.from_numpy(x)), found, atol=1e-5)
    return imported


INTEGERS = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
ARGMAX = node("ArgMax", ["l"], ["label"], axis=1, keepdims=0)


@pytest.mark.parametrize(
    ("outputs", "end", "asked", "taken"),
    [
        ([INTEGERS, floats("l", "N", 3)], [ARGMAX], None, "l"),
        ([floats("m", "N", 3), floats("l", "N", 3)], [], "l", "l"),
        ([floats("m", "N", 3), floats("l", "N", 3)], [], "m", "m"),
        ([floats("u", "N", 1, 3), floats("l", "N", 3)],
         [node("Unsqueeze", ["l", "at"], ["u"])], None, "l"),
        ([floats("l", "N", 3), floats("d")], [node("Det", ["l"], ["d"])], "l", "l"),
    ],
)  # fmt: skip
def test_the_output_with_the_scores_is_taken(
    outputs: Any, end: Any, asked: str | None, taken: str
) -> None:
    nodes = [*LAYER, *end]
    constants = WEIGHTS | {"at": np.array([1], np.int64)}
    data = written(nodes, [floats("x", "N", 4)], outputs, constants)
    imported = logits_of(data, Asked(asked))
    assert imported.output == taken
    assert set(imported.others) == {value.name for value in outputs} - {taken}
    x = normal(2, 3, 4)
    found = OnnxRuntimeModel(imported.deployed, (4,))(x)
    np.testing.assert_array_equal(
        found, np.concatenate(answers_of(several(floats(taken)), x, taken))
    )


@pytest.mark.parametrize(
    ("asked", "code"), [(None, "ambiguous_output"), ("nowhere", "unknown_output")]
)
def test_an_output_that_is_not_known_is_asked_for(asked: str | None, code: str) -> None:
    data = several(floats("m", "N", 3), floats("l", "N", 3))
    with pytest.raises(ModelError, match="'m', 'l'") as caught:
        read_onnx_bytes(data, asked=Asked(asked))
    assert caught.value.code == code
    assert '"output"' in caught.value.hint


def test_the_number_of_the_class_is_certified_through_its_scores() -> None:
    softmax = node("Softmax", ["l"], ["p"], axis=1)
    argmax = node("ArgMax", ["p"], ["label"], axis=1, keepdims=0)
    data = several(INTEGERS, end=[softmax, argmax])
    imported = logits_of(data)
    assert imported.network.dropped_output == "Softmax and ArgMax"
    x = normal(2, 50, 4)
    found = OnnxRuntimeModel(imported.deployed, (4,))(x).argmax(1)
    np.testing.assert_array_equal(found, np.concatenate(answers_of(data, x, "label")))
    with pytest.raises(ModelError):
        read_onnx_bytes(several(INTEGERS, end=[node("ArgMax", ["l"], ["label"], axis=0)]))


@pytest.mark.parametrize("opposite", [False, True])
def test_a_linear_classifier_of_scikit_learn(opposite: bool) -> None:
    data = linear_classifier(opposite=opposite, transform="LOGISTIC" if opposite else "SOFTMAX")
    imported = logits_of(data)
    dropped = "Sigmoid and Normalizer" if opposite else "Softmax and Normalizer"
    assert (imported.network.dropped_output, imported.output) == (dropped, "maps")
    x = normal(3, 60, 4)
    found = OnnxRuntimeModel(imported.deployed, (4,))(x)
    np.testing.assert_array_equal(found.argmax(1), np.concatenate(answers_of(data, x, "label")))
    maps = [row[0] for row in answers_of(data, x, "maps")]
    shown = np.array([[row[k] for k in sorted(row)] for row in maps])
    np.testing.assert_array_equal(found.argmax(1), shown.argmax(1))


def test_logistic_scores_of_three_classes_may_tie_and_are_refused() -> None:
    with pytest.raises(ModelError, match="LOGISTIC") as caught:
        read_onnx_bytes(linear_classifier(transform="LOGISTIC", normalized=False))
    assert "raw_scores" in caught.value.hint


def test_a_normaliser_behind_raw_scores_is_a_layer() -> None:
    """It may round to a tie what differs by any given number: it is not left out."""
    data = linear_classifier(transform="NONE")
    imported = logits_of(data)
    assert (imported.network.dropped_output, imported.output) == (None, "maps")
    assert imported.network.layer(imported.network.nodes[-1].name).kind == "product"
    x = normal(3, 60, 4)
    found = OnnxRuntimeModel(imported.deployed, (4,))(x)
    maps = [row[0] for row in answers_of(data, x, "maps")]
    shown = np.array([[row[k] for k in sorted(row)] for row in maps])
    np.testing.assert_allclose(found, shown, atol=1e-6)


SCORE = {"w": normal(0, 4, 1), "b": normal(1, 1), "one": np.ones((1,), np.float32)}


def one_score(*end: Any, output: Any) -> bytes:
    return written([*LAYER, *end], [floats("x", "N", 4)], [output], SCORE)


@pytest.mark.parametrize(
    "form", ["sigmoid", "quotient", "reciprocal", "two probabilities", "maps", "asked"]
)
def test_one_score_is_the_logits_0_and_itself(form: str) -> None:
    sigmoid = node("Sigmoid", ["l"], ["p"])
    two = [sigmoid, node("Sub", ["one", "p"], ["q"]), node("Concat", ["q", "p"], ["t"], axis=1)]
    maps = node("ZipMap", ["t"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    parts = [node("Neg", ["l"], ["n"]), node("Exp", ["n"], ["e"]), node("Add", ["e", "one"], ["d"])]
    data = {
        "quotient": one_score(*parts, node("Div", ["one", "d"], ["p"]), output=floats("p", "N", 1)),
        "reciprocal": one_score(
            *parts, node("Reciprocal", ["d"], ["p"]), output=floats("p", "N", 1)
        ),
        "sigmoid": one_score(sigmoid, output=floats("p", "N", 1)),
        "two probabilities": one_score(*two, output=floats("t", "N", 2)),
        "maps": one_score(*two, maps, output=labels_and_maps()[1]),
        "asked": one_score(output=floats("l", "N", 1)),
    }[form]
    imported = logits_of(data, Asked(binary=form == "asked"))
    assert imported.binary
    assert imported.network.dropped_output == (None if form == "asked" else "Sigmoid")
    x = normal(2, 40, 4)
    found = OnnxRuntimeModel(imported.deployed, (4,))(x)
    score = np.concatenate(answers_of(one_score(output=floats("l", "N", 1)), x, "l"))
    np.testing.assert_array_equal(found, np.concatenate([np.zeros_like(score), score], axis=1))
    if form in ("sigmoid", "quotient", "reciprocal"):
        above = np.concatenate(answers_of(data, x, "p"))[:, 0] > 0.5
        np.testing.assert_array_equal(found.argmax(1), above)


def test_a_property_may_be_about_one_output() -> None:
    imported = logits_of(one_score(output=floats("l", "N", 1)), Asked(classifier=False))
    assert (imported.network.classes, imported.binary) == (1, False)


@pytest.mark.parametrize("axes", [("N", 2, 3), ("N", 1, 3, 2), (3, 2)])
def test_a_property_is_of_all_numbers_of_the_output_in_row_major_order(axes: Any) -> None:
    weights = {"w": normal(0, 4, 6), "at": np.array([-1 if a == "N" else a for a in axes])}
    rows = ["N", 4] if "N" in axes else [4]
    moved = [0, 2, 1, 3][: len(axes)] if "N" in axes else [1, 0]
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Reshape", ["m", "at"], ["r"])]
    nodes.append(node("Transpose", ["r"], ["t"], perm=moved))
    data = written(nodes, [floats("x", *rows)], [floats("t", *(axes[k] for k in moved))], weights)
    with pytest.raises(ModelError, match="the output must be"):
        read_onnx_bytes(data)
    imported = read_onnx_bytes(data, asked=Asked(classifier=False))
    assert imported.network.classes == 6
    x = normal(9, 5, 4)
    with torch.no_grad():
        logits = imported.network(torch.from_numpy(x)).numpy()
    stated = np.stack([found.ravel() for found in answers_of(data, x, "t")])
    np.testing.assert_allclose(logits, stated, atol=1e-5)
    np.testing.assert_array_equal(OnnxRuntimeModel(imported.deployed, (4,))(x), stated)


def test_two_scores_are_no_binary_classifier() -> None:
    with pytest.raises(ModelError, match="one score"):
        read_onnx_bytes(several(floats("l", "N", 3)), asked=Asked(binary=True))
    with pytest.raises(ModelError) as caught:
        read_onnx_bytes(one_score(output=floats("l", "N", 1)))
    assert '"binary"' in caught.value.hint


@pytest.mark.parametrize("end", ["pair", "vector", "number"])
def test_two_probabilities_joined_along_the_batch_are_refused(end: str) -> None:
    """They are 2 N numbers of a batch of N: half of a row's answer is in another row."""
    axes = np.array([1], np.int64)
    first = node("Squeeze", ["l", "axes"], ["s"]) if end == "vector" else node("Neg", ["l"], ["s"])
    sigmoid, rest = node("Sigmoid", ["s"], ["p"]), node("Sub", ["one", "p"], ["q"])
    nodes = [*LAYER, first, sigmoid, rest, node("Concat", ["q", "p"], ["t"], axis=0)]
    output = floats("t", None) if end == "vector" else floats("t", None, 1)
    if end == "number":
        nodes.append(node("ArgMax", ["t"], ["n"], axis=1))
        output = helper.make_tensor_value_info("n", TensorProto.INT64, [None, 1])
    data = written(nodes, [floats("x", "N", 4)], [output], {**SCORE, "axes": axes})
    with pytest.raises(ModelError) as caught:
        read_onnx_bytes(data)
    assert caught.value.code == "batch_dependent"


@pytest.mark.parametrize("last", ["Softmax", "LogSoftmax", "ArgMax"])
def test_what_says_the_same_of_every_score_is_no_binary_classifier(last: str) -> None:
    """A softmax of one score is 1, and its largest is the first, whatever the score is."""
    number = helper.make_tensor_value_info("t", TensorProto.INT64, ["N", 1])
    output = number if last == "ArgMax" else floats("t", "N", 1)
    data = one_score(node(last, ["l"], ["t"], axis=1), output=output)
    with pytest.raises(ModelError, match=last) as caught:
        read_onnx_bytes(data, asked=Asked(binary=True))
    assert caught.value.code == "invalid_network"


@pytest.mark.parametrize("kind", ["BOOL", "STRING", "UINT8", "INT64"])
def test_a_cast_of_the_class_must_keep_its_number(kind: str) -> None:
    """As BOOL the classes 1 and 2 are one answer."""
    element = getattr(TensorProto, kind)
    end = [node("ArgMax", ["l"], ["n"], axis=1), node("Cast", ["n"], ["t"], to=element)]
    data = several(helper.make_tensor_value_info("t", element, ["N", 1]), end=end)
    if kind in ("UINT8", "INT64"):
        assert read_onnx_bytes(data).network.dropped_output == "ArgMax"
    else:
        with pytest.raises(ModelError, match="number") as caught:
            read_onnx_bytes(data)
        assert caught.value.code == "unsupported_operator"


def test_no_answer_is_lost_behind_what_was_cut_off() -> None:
    """Scores that lead by more than the gap are ONNX Runtime's answer, whatever made it of them."""
    assert answer_gap("Softmax and Normalizer") == SOFTMAX_GAP
    assert answer_gap("Sigmoid") == SIGMOID_GAP
    assert answer_gap("ArgMax") == answer_gap(None) == 0.0
    rng = np.random.default_rng(0)
    z = SIGMOID_GAP * (1 + rng.exponential(1.0, 4000) ** 6)
    z = (z * rng.choice([-1, 1], len(z))).astype(np.float32)[:, None]
    z = z[np.abs(z[:, 0]) > SIGMOID_GAP]
    session = written([node("Sigmoid", ["x"], ["y"])], [floats("x", "N", 1)],
                      [floats("y", "N", 1)], {})  # fmt: skip
    above = np.concatenate(answers_of(session, z, "y"))[:, 0] > 0.5
    np.testing.assert_array_equal(above, z[:, 0] > 0)
    logits = torch.from_numpy(np.concatenate([np.zeros_like(z), z], axis=1))
    np.testing.assert_array_equal(answers(logits, gap=SIGMOID_GAP).numpy(), above)


def test_a_table_whose_columns_are_inputs_is_told_what_to_do() -> None:
    columns = [floats(name, "N", 1) for name in ("age", "height")]
    join = node("FeatureVectorizer", ["age", "height"], ["x"], domain="ai.onnx.ml")
    glued = node("Concat", ["age", "height"], ["x"], axis=1)
    for first in (join, glued):
        dense = node("MatMul", ["x", "w"], ["y"])
        file = written([first, dense], columns, [floats("y", "N", 3)], {"w": normal(0, 2, 3)})
        with pytest.raises(ModelError) as caught:
            read_onnx_bytes(file)
        assert "to_numpy(numpy.float32)" in (caught.value.hint or "")
    one = node("FeatureVectorizer", ["age"], ["x"], domain="ai.onnx.ml", inputdimensions=[1])
    file = written([one, node("MatMul", ["x", "w"], ["y"])], columns[:1], [floats("y", "N", 3)],
                   {"w": normal(0, 1, 3)})  # fmt: skip
    with pytest.raises(ModelError) as caught:
        read_onnx_bytes(file)
    assert "to_numpy(numpy.float32)" in (caught.value.hint or "")
