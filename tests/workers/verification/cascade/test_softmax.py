"""A float32 softmax makes ties of close logits: what is certified must be on top all the same."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import graph_of, normal
from workers.verification.cascade.run import certify_samples
from workers.verification.results import CertificationRequest

SAMPLES, REACH = examples(60), 1e-3


@pytest.mark.parametrize("final", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-5, 1e-4, 1e5])
def test_what_is_certified_is_strictly_on_top_behind_the_softmax(final: str, scale: float) -> None:
    constants = {"w": normal(0, 4, 16), "v": (normal(1, 16, 3) * scale).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["z"]),
        helper.make_node(final, ["z"], ["y"], axis=1),
    ]
    file = graph_of(nodes, (4,), constants).SerializeToString()
    network, logits_of = import_onnx_bytes(file), OnnxRuntimeModel(file, (4,))
    whole = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    x = rng.random((SAMPLES, 4)).astype(np.float32)
    logits = logits_of(x)
    labels = logits.argmax(1)
    rows = np.arange(SAMPLES)
    for method in ("lipschitz", "bcp", "crown"):
        results = certify_samples(
            network,
            x,
            labels,
            rows,
            CertificationRequest("linf", (Fraction(1, 1000),), method, attack=None),
            deployed=logits_of,
            deployed_logits=logits,
            device=torch.device("cpu"),
        )
        certified = results.certified[:, 0]
        assert certified.any() == (scale > 1e-6)
        assert (results.prediction[certified] == labels[certified]).all()
        assert (results.prediction[results.margin <= 2.0**-18] == -1).all()
        for _ in range(30):
            points = x + rng.uniform(-REACH, REACH, x.shape).astype(np.float32)
            outputs = whole.run(None, {"x": points.clip(0, 1)})[0]
            ahead = outputs[rows, labels][:, None] - outputs
            ahead[rows, labels] = np.inf
            assert (ahead.min(1)[certified] > 0).all()
