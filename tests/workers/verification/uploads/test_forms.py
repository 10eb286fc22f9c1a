"""Every form that a file may come in: its certificates hold for the file as it was sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.forms.files import (
    answers_of,
    floats,
    labels_and_maps,
    linear_classifier,
    nnet,
    node,
    written,
)
from tests.models.onnx.graphs import graph_of, normal
from tests.workers.verification.uploads.judged import judged

Array = NDArray[Any]


def lines() -> bytes:
    """Convolutions and pools over lines [2, 8]."""
    constants = {
        "k": normal(0, 6, 2, 3) / 2,
        "b": normal(1, 6),
        "k2": normal(2, 4, 6, 3) / 4,
        "w": normal(3, 4, 3),
    }
    nodes = [
        node("Conv", ["x", "k", "b"], ["c1"], pads=[1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["m"], kernel_shape=[2], strides=[2]),
        node("Conv", ["m", "k2"], ["c2"]),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    return graph_of(nodes, (2, 8), constants).SerializeToString()


def dense(*end: Any, outputs: Any, classes: int) -> bytes:
    """Two dense layers with scores ``l`` and the nodes behind them."""
    constants = {"w": normal(0, 6, 8), "v": normal(1, 8, classes), "b": normal(2, classes)}
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "v"], ["m"]),
        node("Add", ["m", "b"], ["l"]),
    ]
    return written([*nodes, *end], [floats("x", "N", 6)], outputs, constants)


def largest(output: str) -> Callable[[bytes], Callable[[Array], Array]]:
    return lambda data: (
        lambda x: np.array([row.reshape(-1).argmax() for row in answers_of(data, x, output)])
    )


def label(data: bytes) -> Callable[[Array], Array]:
    return lambda x: np.array([row.reshape(-1)[0] for row in answers_of(data, x, "label")])


def above_half(data: bytes) -> Callable[[Array], Array]:
    return lambda x: np.array([row.reshape(-1)[0] > 0.5 for row in answers_of(data, x, "p")])


ARGMAX = [node("Softmax", ["l"], ["p"]), node("ArgMax", ["p"], ["label"], axis=1, keepdims=0)]
SIGMOID = [node("Sigmoid", ["l"], ["p"])]
FORMS: dict[str, tuple[bytes, Any]] = {
    "lines": (lines(), largest("y")),
    "no batch axis": (nnet((5, 7, 4)), largest("h1")),
    "class number": (dense(*ARGMAX, outputs=[labels_and_maps()[0]], classes=3), label),
    "one score": (dense(*SIGMOID, outputs=[floats("p", "N", 1)], classes=1), above_half),
    "scikit-learn": (linear_classifier(), label),
    "two opposite scores": (linear_classifier(opposite=True, transform="LOGISTIC"), label),
}


@pytest.mark.parametrize("form", FORMS)
def test_certificates_hold_for_the_file_as_it_was_sent(form: str) -> None:
    data, decides = FORMS[form]
    imported = read_onnx_bytes(data)
    shape = imported.network.input_shape
    found = judged(
        imported.network,
        OnnxRuntimeModel(imported.deployed, shape),
        decides(data),
        normal(4, 4, *shape),
        epsilons=("1/1000", "1/50"),
        method="ibp" if form == "lines" else "crown",
    )
    assert found.certified[:, 0].sum() >= 2
