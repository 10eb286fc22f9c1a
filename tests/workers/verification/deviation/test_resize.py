"""What ONNX Runtime rounds between the places of an image, where rows of the image cancel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from models.layers.kinds import Conv2d, Reshape
from models.network import Network
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import graph_of
from workers.verification.deviation.budget import margin_budget
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import exact_arithmetic

SIDE = 8
node = helper.make_node


def between_rows(sign: np.ndarray) -> bytes:
    """A difference of neighbours that what is mixed along a row never has, in odd rows, where what
    is mixed along a column is 0 for rows that cancel."""
    count = SIDE - 1
    constants = {
        "roi": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "kernel": np.array([[[[0.5, -1.0, 0.5]]]], np.float32),
        "start": np.array([1], np.int64),
        "stop": np.array([2 * SIDE - 2], np.int64),
        "rows": np.array([2], np.int64),
        "flat": np.array([-1, count * count], np.int64),
        "w": np.stack([sign, -sign]).T.astype(np.float32).copy(),
    }
    nodes = [
        node(
            "Resize",
            ["x", "roi", "scales"],
            ["r"],
            mode="linear",
            coordinate_transformation_mode="asymmetric",
        ),
        node("Slice", ["r", "start", "stop", "rows"], ["s"]),
        node("Conv", ["s", "kernel"], ["c"], strides=[2, 2], kernel_shape=[1, 3]),
        node("Reshape", ["c", "flat"], ["f"]),
        node("MatMul", ["f", "w"], ["logits"]),
    ]
    shape = (1, SIDE, SIDE)
    return graph_of(nodes, shape, constants, output="logits", opset=13).SerializeToString()


@pytest.mark.parametrize("seed", range(4))
def test_a_sum_of_four_rounds_though_its_rows_cancel(seed: int) -> None:
    """In real arithmetic both logits are 0, and so is what the mix along columns gives."""
    generator = np.random.default_rng(seed)
    data = between_rows(generator.choice([-1.0, 1.0], (SIDE - 1) ** 2))
    network = import_onnx_bytes(data)
    row = generator.random((1, 1, 1, SIDE))
    x = np.concatenate([row, -row] * (SIDE // 2), axis=2).astype(np.float32)
    deployed = OnnxRuntimeModel(data, network.input_shape)(x)
    off = float(abs(deployed[0, 0] - deployed[0, 1]))
    compiled = CompiledNetwork.compile(network)
    region = Region(torch.from_numpy(x), torch.zeros(1, dtype=torch.float64), "l2", False)
    with exact_arithmetic():
        lost = margin_budget(compiled, region, torch.tensor([0]))
    # Of 49 sums of three, 9 roundings of numbers below 1 each.
    assert 0.0 < off <= float(lost[0, 1]) <= 1e-4


@pytest.mark.parametrize("zeros", [0, 1])
def test_a_matrix_of_four_numbers_in_a_row_rounds_as_a_resize(zeros: int) -> None:
    """More numbers in a row are an ordinary convolution."""
    weight = torch.zeros(3, 9, 1, 1)
    weight[:, : 5 - zeros] = 1.0
    rows = [("conv", Conv2d(weight), ("input",)), ("flat", Reshape(shape=(12,)), ("conv",))]
    step = CompiledNetwork.compile(Network((9, 2, 2), rows), norms=False).steps[0]
    assert step.affine.terms == (9.0 if zeros else 11)
    assert step.affine.summation is not None
    assert step.affine.summation.sizes == ((4.0,) if zeros else (9.0,))
