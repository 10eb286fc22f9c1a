"""What torch's exporter writes, for every opset, with a fixed and with a symbolic batch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper
from torch import Tensor, nn

from models.errors import ModelError
from models.onnx.importer import import_onnx_bytes
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, normal


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


def exported(module: nn.Module, side: int, opset: int, *, symbolic: bool) -> bytes:
    """The module as torch writes it, for images [3, side, side]."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.rand(1, 3, side, side),),
            stream,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}} if symbolic else None,
            dynamo=False,
        )
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("opset", range(9, 21))
def test_a_residual_network(opset: int, symbolic: bool) -> None:
    torch.manual_seed(0)
    network = assert_agrees(exported(Residual(), 14, opset, symbolic=symbolic), samples=3)
    assert "add" in [network.layer(node.name).kind for node in network.nodes]


class Assorted(nn.Module):
    """What else classifiers hold: bounded and smooth activations, MaxMin, slices, joins, means."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.theta = nn.Parameter(torch.rand(8, 1, 1))
        self.last = nn.Linear(26, 5)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.first(x))
        a, b = x.chunk(2, dim=1)
        x = torch.cat([torch.max(a, b), torch.min(a, b)], dim=1)
        x = torch.minimum(torch.relu(self.second(x)), self.theta)
        y = torch.cat([x[:, ::4, 1:-1, :8], x[:, 3:4, 2:, -8:]], dim=1)
        y = nn.functional.hardtanh(self.first(y))
        z = torch.sigmoid(-x).mean((2, 3)) + torch.tanh(1 - x).sum((2, 3))
        first, middle, last = torch.split(y, [2, 2, 4], dim=1)
        parts = [z, first.mean(dim=(2, 3)), last[:, 0].sum(dim=-1), y[:, 5, 3, :7]]
        parts.append(middle.sum((1, 2, 3)).unsqueeze(1))
        return self.head(self.last(torch.cat(parts, dim=1).clamp(min=-0.5)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("opset", range(10, 21))
def test_an_assorted_network(opset: int, symbolic: bool) -> None:
    torch.manual_seed(0)
    head, dropped = [
        (nn.Identity(), None),
        (nn.Softmax(dim=1), "Softmax"),
        (nn.LogSoftmax(dim=-1), "LogSoftmax"),
    ][opset % 3]
    network = assert_agrees(exported(Assorted(head), 10, opset, symbolic=symbolic), samples=3)
    assert network.dropped_output == dropped
    kinds = {network.layer(node.name).kind for node in network.nodes}
    assert {"clip", "maxmin", "relu-theta", "concat", "slice", "sigmoid", "tanh"} <= kinds


class Bjorck(nn.Module):
    """Two steps towards the nearest orthogonal matrix, as libraries compute it in every pass."""

    def forward(self, weight: Tensor) -> Tensor:
        for _ in range(2):
            weight = 1.5 * weight - 0.5 * weight @ weight.T @ weight
        return weight


def bjorck(module: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(module, "weight", Bjorck())
    return module


def computed(module: nn.Module) -> nn.Module:
    """With the weights in the place of what computes them."""
    return nn.utils.parametrize.remove_parametrizations(module, "weight")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("wrapped", "plain", "refused"),
    [
        (nn.utils.parametrizations.weight_norm, lambda module: module, False),
        (nn.utils.parametrizations.orthogonal, computed, False),
        (nn.utils.parametrizations.spectral_norm, computed, False),
        (nn.utils.spectral_norm, nn.utils.remove_spectral_norm, True),
        (bjorck, computed, True),
    ],
)
def test_parametrised_weights_are_plain_once_they_are_computed(
    wrapped: Callable[[nn.Module], nn.Module],
    plain: Callable[[nn.Module], nn.Module],
    refused: bool,
) -> None:
    """The exporter folds a few; files that multiply matrices of weights are refused in words."""
    torch.manual_seed(0)
    dense = wrapped(nn.Linear(48, 48))
    module = nn.Sequential(nn.Flatten(), dense, nn.ReLU(), nn.Linear(48, 5)).eval()
    if refused:
        with pytest.raises(ModelError) as caught:
            import_onnx_bytes(exported(module, 4, 17, symbolic=True))
        assert "before the export" in str(caught.value.hint)
    plain(dense)
    network = assert_agrees(exported(module, 4, 17, symbolic=True))
    kinds = [network.layer(node.name).kind for node in network.nodes]
    assert kinds == ["reshape", "linear", "relu", "linear"]


STEPS = ["conv", "relu", "leaky", "bn", "mul", "shift", "skip", "pad", "max", "transpose",
         "clip", "sigmoid", "tanh", "neg", "maximum", "minimum", "at-most", "concat", "split",
         "slice", "mean", "sum"]  # fmt: skip


def several(step: str, last: str, earlier: str, name: str, opset: int) -> list[NodeProto]:
    """A step of more than one node whose result has the shape it started from."""
    parts = [f"{name}_{index}" for index in range(4)]
    make = helper.make_node
    if step == "concat":
        joined = make("Concat", [last, earlier], parts[:1], axis=2)
        return [joined, make("Slice", [parts[0], "zero", "last", "one", "one"], parts[1:2]),
                make("AveragePool", parts[1:2], [name], kernel_shape=[6, 1])]  # fmt: skip
    if step == "split":
        split = make("Split", [last], parts[:4], axis=1)
        return [split, make("Concat", [parts[k] for k in (2, 0, 3, 1)], [name], axis=1)]
    if step == "slice":
        return [make("Slice", [last, "one", "last", "end2"], parts[:1]),
                make("Pad", [parts[0], "pads"], [name])]  # fmt: skip
    if step == "sum" and opset >= 13:
        reduced = make("ReduceSum", [last, "one"], parts[:1], keepdims=1)
    else:
        reduced = make("ReduceMean" if step == "mean" else "ReduceSum", [last], parts[:1],
                       keepdims=1, axes=[1])  # fmt: skip
    return [reduced, make("Concat", parts[:1] * 4, [name], axis=1)]


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=2, max_size=12), st.sampled_from([11, 13, 17]))
def test_random_compositions(steps: list[str], opset: int) -> None:
    """Operators one after another, joined with any earlier value of the same shape."""
    constants = {
        "w": normal(0, 4, 4, 3, 3) / 4,
        "c": normal(1, 4, 1, 1),
        "s": normal(2, 4),
        "v": abs(normal(3, 4)) + 0.5,
        "low": np.array(-0.6, np.float32),
        "high": np.array(0.8, np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "end2": np.array([2], np.int64),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 0], np.int64),
        "last": np.array([2**31 - 1], np.int64),
    }
    nodes: list[NodeProto] = []
    skips = ["x"]
    last = "x"
    for index, step in enumerate(steps):
        name = f"h{index}"
        earlier = skips[index // 2 % len(skips)]
        if step in ("concat", "split", "slice", "mean", "sum"):
            nodes += several(step, last, earlier, name, opset)
            skips.append(name)
            last = name
            continue
        made = {
            "conv": helper.make_node("Conv", [last, "w"], [name], pads=[1] * 4),
            "relu": helper.make_node("Relu", [last], [name]),
            "leaky": helper.make_node("LeakyRelu", [last], [name], alpha=0.3),
            "bn": helper.make_node("BatchNormalization", [last, "s", "s", "s", "v"], [name]),
            "mul": helper.make_node("Mul", ["c", last], [name]),
            "shift": helper.make_node("Sub", ["c", last], [name]),
            "skip": helper.make_node("Add", [earlier, last], [name]),
            "pad": helper.make_node(
                "AveragePool", [last], [name], kernel_shape=[3, 3], pads=[1] * 4
            ),
            "max": helper.make_node("MaxPool", [last], [name], kernel_shape=[3, 3], pads=[1] * 4),
            "transpose": helper.make_node("Transpose", [last], [name], perm=[0, 1, 3, 2]),
            "clip": helper.make_node("Clip", [last, "low", "high"], [name]),
            "sigmoid": helper.make_node("Sigmoid", [last], [name]),
            "tanh": helper.make_node("Tanh", [last], [name]),
            "neg": helper.make_node("Neg", [last], [name]),
            "maximum": helper.make_node("Max", [last, earlier], [name]),
            "minimum": helper.make_node("Min", [earlier, last, "high"], [name]),
            "at-most": helper.make_node("Min", [last, "c"], [name]),
        }[step]
        nodes.append(made)
        skips.append(name)
        last = name
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    assert_agrees(flattened(nodes, (4, 5, 5), constants, opset=opset))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [9, 13, 17, 20])
def test_instance_norm_with_running_statistics(opset: int) -> None:
    """Statistics that are repeated once for each row of the batch, of which there is one."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    network = assert_agrees(exported(module, 6, opset, symbolic=False), samples=1)
    assert "batch-norm" in [network.layer(node.name).kind for node in network.nodes]
