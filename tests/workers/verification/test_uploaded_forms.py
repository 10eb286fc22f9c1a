"""Every form that a file may come in: its certificates hold for the file as it was sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import helper

from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import graph_of, normal
from tests.workers.verification.judged import judged

node = helper.make_node


def runs(data: bytes) -> Any:
    """The file's own outputs, one row at a time."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: [session.run(None, {given.name: row[None]}) for row in x]


def test_certificates_of_a_network_on_lines_hold() -> None:
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
    data = graph_of(nodes, (2, 12), constants).SerializeToString()
    network = import_onnx_bytes(data)
    whole = runs(data)
    found = judged(
        network,
        OnnxRuntimeModel(data, network.input_shape),
        lambda x: np.array([row[0].argmax() for row in whole(x)]),
        normal(4, 4, 2, 12),
        epsilons=("1/100",),
    )
    assert found.certified[:, 0].sum() >= 2
