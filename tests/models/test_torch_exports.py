"""What torch's exporter writes, for every opset, with a fixed and with a symbolic batch."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper
from torch import Tensor, nn

from tests.models.onnx_graphs import assert_agrees, flattened, normal


class Residual(nn.Module):
    """Normalisation inside, batch norm, a residual sum, pooling with ceil_mode, a computed view."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.rand(1, 3, 1, 1))
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.third = nn.Conv2d(8, 16, 1, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.average = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 0.25
        x = torch.relu(self.norm(self.first(x)))
        x = x + nn.functional.leaky_relu(self.second(x))
        x = self.average(self.pool(self.third(x)))
        return self.last(self.dropout(x.view(x.size(0), -1)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("opset", range(9, 21))
def test_a_residual_network(opset: int, symbolic: bool) -> None:
    torch.manual_seed(0)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Residual().eval(),
            (torch.rand(1, 3, 14, 14),),
            stream,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}} if symbolic else None,
            dynamo=False,
        )
    network = assert_agrees(stream.getvalue(), samples=3)
    assert "add" in [network.layer(node.name).kind for node in network.nodes]


STEPS = ["conv", "relu", "leaky", "bn", "mul", "shift", "skip", "pad", "max", "transpose"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=2, max_size=12), st.sampled_from([11, 13, 17]))
def test_random_compositions(steps: list[str], opset: int) -> None:
    """Operators one after another, with residual sums to any earlier value of the same shape."""
    constants = {
        "w": normal(0, 4, 4, 3, 3) / 4,
        "c": normal(1, 4, 1, 1),
        "s": normal(2, 4),
        "v": abs(normal(3, 4)) + 0.5,
    }
    nodes: list[NodeProto] = []
    skips = ["x"]
    last = "x"
    for index, step in enumerate(steps):
        name = f"h{index}"
        made = {
            "conv": helper.make_node("Conv", [last, "w"], [name], pads=[1] * 4),
            "relu": helper.make_node("Relu", [last], [name]),
            "leaky": helper.make_node("LeakyRelu", [last], [name], alpha=0.3),
            "bn": helper.make_node("BatchNormalization", [last, "s", "s", "s", "v"], [name]),
            "mul": helper.make_node("Mul", ["c", last], [name]),
            "shift": helper.make_node("Sub", ["c", last], [name]),
            "skip": helper.make_node("Add", [skips[index // 2 % len(skips)], last], [name]),
            "pad": helper.make_node(
                "AveragePool", [last], [name], kernel_shape=[3, 3], pads=[1] * 4
            ),
            "max": helper.make_node("MaxPool", [last], [name], kernel_shape=[3, 3], pads=[1] * 4),
            "transpose": helper.make_node("Transpose", [last], [name], perm=[0, 1, 3, 2]),
        }[step]
        nodes.append(made)
        skips.append(name)
        last = name
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    assert_agrees(flattened(nodes, (4, 5, 5), constants, opset=opset))
