"""Files that Keras, tf2onnx and torch wrote, and what their own makers answered to two inputs.

Made with keras 3.15 (torch's backend: ``model.export``), tf2onnx 1.17 on TensorFlow 2.21, and
``torch.onnx.export(dynamo=True)`` of torch 2.13; debug texts and declared shapes are taken out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel

FOLDER = Path(__file__).resolve().parent / "exported"
FILES = sorted(path.stem for path in FOLDER.glob("*.onnx"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_network_that_its_maker_has(name: str) -> None:
    found = read_onnx_bytes((FOLDER / f"{name}.onnx").read_bytes())
    with np.load(FOLDER / f"{name}.npz") as arrays:
        x, answer = arrays["x"], arrays["answer"]
    network = found.network
    assert x.shape[1:] == network.input_shape
    with torch.no_grad():
        scores = network(torch.from_numpy(x))
    assert found.batch is None, "batches of any size"
    deployed = OnnxRuntimeModel(found.deployed, network.input_shape)(x)
    assert np.allclose(scores.numpy(), deployed, rtol=1e-5, atol=1e-5)
    if network.dropped_output == "Softmax":
        scores = scores.softmax(dim=1)
    assert np.allclose(scores.numpy(), answer, rtol=1e-4, atol=1e-5)


def test_each_exporter_is_there() -> None:
    assert {name.partition("-")[0] for name in FILES} == {"keras", "tf2onnx", "torch"}
