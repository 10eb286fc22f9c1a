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


def normalised(*nodes: Any, opset: int = 21) -> bytes:
    """Numbers h [4, 3] normalised to n by the nodes, and a dense layer behind a ReLU."""
    constants = {
        "w": normal(0, 8, 12),
        "v": normal(3, 12, 3),
        "view": np.array([-1, 4, 3]),
        "scale": normal(4, 4),
        "shift": normal(5, 4),
        "per group": normal(6, 2),
        "gain": normal(4, 4, 1),
        "bias": normal(5, 4, 1),
        "slopes": normal(7, 4, 1) ** 2 / 8,
        "one": np.float32(1),
        "eps": np.float32(1e-3),
        "axes": np.array([2]),
        "first": np.array([1]),
    }
    whole = [
        node("MatMul", ["x", "w"], ["f"]),
        node("Reshape", ["f", "view"], ["h"]),
        *nodes,
        *(node("PRelu", ["n", "slopes"], ["r"]), node("Flatten", ["r"], ["g"])),
        node("MatMul", ["g", "v"], ["y"]),
    ]
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return graph_of(whole, (8,), arrays, opset=opset).SerializeToString()


def in_parts() -> list[Any]:
    """As Keras writes GroupNormalization: E[h^2] - m^2, and one factor for numbers and mean."""
    return [
        node("ReduceMean", ["h", "axes"], ["m"], keepdims=1),
        *(node("Mul", ["h", "h"], ["s"]), node("ReduceMean", ["s", "axes"], ["q"], keepdims=1)),
        *(node("Mul", ["m", "m"], ["mm"]), node("Sub", ["q", "mm"], ["var"])),
        *(node("Add", ["var", "eps"], ["e"]), node("Sqrt", ["e"], ["root"])),
        *(node("Div", ["one", "root"], ["i"]), node("Mul", ["i", "gain"], ["c"])),
        *(node("Neg", ["m"], ["minus"]), node("Mul", ["minus", "c"], ["o"])),
        *(node("Add", ["o", "bias"], ["b"]), node("Mul", ["h", "c"], ["p"])),
        node("Add", ["p", "b"], ["n"]),
    ]


def by_root_mean_squares() -> list[Any]:
    """h times the reciprocal of its root mean square, as torch's newer exporter writes it."""
    return [
        *(node("Mul", ["h", "h"], ["s"]), node("ReduceMean", ["s", "axes"], ["q"], keepdims=1)),
        *(node("Add", ["q", "eps"], ["e"]), node("Sqrt", ["e"], ["root"])),
        *(node("Reciprocal", ["root"], ["i"]), node("Mul", ["h", "i"], ["z"])),
        node("Mul", ["z", "gain"], ["n"]),
    ]


def attended() -> list[Any]:
    """h as queries, keys and values of one head, by the operator of opset 23."""
    return [
        node("Unsqueeze", ["h", "first"], ["one head"]),
        *(node("Tanh", ["one head"], ["keys"]), node("Neg", ["one head"], ["values"])),
        node("Attention", ["one head", "keys", "values"], ["a"]),
        node("Squeeze", ["a", "first"], ["n"]),
    ]


def by_groups(scale: str, shift: str) -> Any:
    return node("GroupNormalization", ["h", scale, shift], ["n"], num_groups=2, epsilon=1e-3)


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
    "instances": (
        normalised(node("InstanceNormalization", ["h", "scale", "shift"], ["n"]), opset=9),
        largest("y"),
    ),
    "groups": (normalised(by_groups("scale", "shift")), largest("y")),
    "groups before opset 21": (
        normalised(by_groups("per group", "per group"), opset=18),
        largest("y"),
    ),
    "normalisation in parts": (normalised(*in_parts()), largest("y")),
    "root mean squares": (normalised(*by_root_mean_squares()), largest("y")),
    "attention": (normalised(*attended(), opset=24), largest("y")),
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
