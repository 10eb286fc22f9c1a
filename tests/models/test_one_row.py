"""A new layer is one class, and one row in each table that has to know it; nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.architectures.layer_makers import KINDS
from models.architectures.published import build
from models.checkpoints.state_dict import load_checkpoint, weights_of
from models.errors import ModelError
from models.layers.base import Layer
from models.layers.kinds import LAYER_KINDS
from models.network import Network
from models.onnx.exporter.export import EXPORTERS, export_onnx
from models.onnx.exporter.writer import GraphWriter
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.importer import import_onnx_bytes
from models.onnx.operators.registry import OPERATORS
from models.onnx.runtime import OnnxRuntimeModel

ARCHITECTURE: dict[str, Any] = {
    "input": [2, 3, 3],
    "layers": [
        {"kind": "conv2d", "out": 4, "kernel": 2},
        {"kind": "thresholded-relu", "alpha": 0.5},
        {"kind": "flatten"},
        {"kind": "linear", "out": 3},
    ],
}


class Thresholded(Layer):
    """x where x > alpha, 0 elsewhere."""

    kind = "thresholded-relu"

    def __init__(self, *, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = float(alpha)

    def forward(self, x: Tensor) -> Tensor:
        return F.threshold(x, self.alpha, 0.0)

    def config(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


def thresholded(operation: Operation, translation: Translation) -> Activation:
    layer = Thresholded(alpha=operation.attributes["alpha"])
    return translation.emit(operation, layer, operation.activation())


def write_thresholded(
    graph: GraphWriter, layer: Thresholded, inputs: list[str], output: str, shape: Any
) -> None:
    graph.node("ThresholdedRelu", inputs, output, alpha=layer.alpha)


def test_a_layer_is_one_class_and_one_row_each_for_lists_files_and_onnx(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="unknown kind"):
        build(ARCHITECTURE)
    monkeypatch.setitem(
        KINDS,
        "thresholded-relu",
        lambda row, shape: Thresholded(alpha=row.number("alpha", 1.0, 0.0, 9.0)),
    )
    monkeypatch.setitem(LAYER_KINDS, "thresholded-relu", Thresholded)
    monkeypatch.setitem(EXPORTERS, "thresholded-relu", write_thresholded)
    network = build(ARCHITECTURE, generator=torch.Generator().manual_seed(0))
    data = export_onnx(network)
    with pytest.raises(ModelError, match="ThresholdedRelu"):
        import_onnx_bytes(data)
    monkeypatch.setitem(OPERATORS, "ThresholdedRelu", thresholded)
    network.save(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(weights_of(network))
    forms = [
        import_onnx_bytes(data),
        Network.load(tmp_path),
        load_checkpoint(tmp_path / "w.safetensors", "safetensors", ARCHITECTURE),
    ]
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x)
        assert float(network.layer("conv2d_0")(x).min()) < 0
        assert all(torch.equal(form(x), expected) for form in forms)
    found = OnnxRuntimeModel(data, (2, 3, 3))(x.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6)
