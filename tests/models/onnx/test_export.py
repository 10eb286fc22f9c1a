"""Export: ONNX Runtime and our own import both compute the network's logits, for every layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.architectures.published import ARCHITECTURES, build
from models.errors import ModelError
from models.layers.kinds import (
    LAYER_KINDS,
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Divide,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Multiply,
    Normalize,
    Pad,
    Permute,
    PReLU,
    ReLU,
    Reshape,
    Shift,
)
from models.layers.one_lipschitz import ONE_LIPSCHITZ
from models.layers.reparametrized import REPARAMETRIZED
from models.network import Network
from models.onnx.exporter.export import EXPORTERS, export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples

OPSETS = [13, 15, 17, 18, 19, 21]


def assert_round_trip(network: Network, opset: int = 17) -> None:
    data = export_onnx(network, opset=opset)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *network.input_shape, generator=generator)
    with torch.no_grad():
        expected = network(x).numpy()
        again = import_onnx_bytes(data)(x).numpy()
    deployed = OnnxRuntimeModel(data, network.input_shape)(x.numpy())
    size = 1 + np.abs(expected).max()
    assert np.abs(again - expected).max() <= 2e-6 * size
    assert np.abs(deployed - expected).max() <= 2e-5 * size


def test_every_kind_that_is_deployed_has_an_exporter() -> None:
    trained = {layer.kind for layer in (*REPARAMETRIZED, *ONE_LIPSCHITZ)}
    assert set(EXPORTERS) == set(LAYER_KINDS) - trained


def everything() -> Network:
    def t(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    rows: list[Any] = [
        ("normalize", Normalize(t(3), t(3).abs() + 0.5), ("input",)),
        ("pad", Pad(padding=(1, 0, 2, 1), value=0.5), ("normalize",)),
        ("conv", Conv2d(t(6, 1, 3, 3), t(6), stride=(2, 1), padding=(1, 0, 0, 2),
                        dilation=(1, 2), groups=3), ("pad",)),
        ("bn", BatchNorm(t(6), t(6), t(6), t(6).abs() + 0.1, eps=1e-3), ("conv",)),
        ("relu", ReLU(), ("bn",)),
        ("multiply", Multiply(t(6, 1, 1)), ("relu",)),
        ("add", Add(), ("relu", "multiply")),
        ("max", MaxPool2d(kernel=(2, 3), stride=1, padding=(0, 1, 1, 0)), ("add",)),
        ("avg", AvgPool2d(kernel=2, stride=2, padding=1, count_include_pad=True), ("max",)),
        ("avg2", AvgPool2d(kernel=2, stride=1, padding=(1, 0, 0, 1)), ("avg",)),
        ("permute", Permute(axes=(2, 0, 1)), ("avg2",)),
        ("divide", Divide(t(1, 6, 1).abs() + 0.5), ("permute",)),
        ("prelu", PReLU(t(1, 6, 1).abs().clamp_max(1.0)), ("divide",)),
        ("leaky", LeakyReLU(slope=0.2), ("prelu",)),
    ]  # fmt: skip
    size = int(np.prod(_shape_after(rows, (3, 8, 9))))
    rows += [
        ("flat", Reshape(shape=(size,)), ("leaky",)),
        ("linear", Linear(t(5, size), t(5)), ("flat",)),
        ("shift", Shift(t(5)), ("linear",)),
    ]
    return Network((3, 8, 9), rows).eval()


def _shape_after(rows: list[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    shapes = {"input": shape}
    for name, layer, inputs in rows:
        shapes[name] = layer.output_shape(*(shapes[source] for source in inputs))
    return shapes[rows[-1][0]]


@pytest.mark.parametrize("opset", OPSETS)
def test_every_layer_in_one_network(opset: int) -> None:
    assert_round_trip(everything(), opset)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "tiny-8c2f"])
def test_named_architectures(name: str) -> None:
    network = build(name, generator=torch.Generator().manual_seed(0))
    assert_round_trip(network.normalized([0.5] * network.input_shape[0], [0.25]
                                         * network.input_shape[0]))  # fmt: skip


@settings(max_examples=examples(50), deadline=None)
@given(
    st.sampled_from(["max", "avg", "avg-include"]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 2)] * 4),
)
def test_pooling(
    kind: str, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, ...]
) -> None:
    padding = tuple(min(p, k - 1) for p, k in zip(padding, kernel * 2, strict=True))
    options: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
    layer = (
        MaxPool2d(**options)
        if kind == "max"
        else AvgPool2d(**options, count_include_pad=kind == "avg-include")
    )
    size = int(np.prod(layer.output_shape((2, 5, 6))))
    rows = [("pool", layer, ("input",)), ("flat", Reshape(shape=(size,)), ("pool",))]
    assert_round_trip(Network((2, 5, 6), rows))


@pytest.mark.parametrize("include", [False, True])
def test_dilated_average_pooling_needs_opset_19(include: bool) -> None:
    layer = AvgPool2d(kernel=2, stride=1, dilation=2, count_include_pad=include)
    network = Network(
        (1, 5, 5), [("pool", layer, ("input",)), ("flat", Reshape(shape=(9,)), ("pool",))]
    )
    assert_round_trip(network, 19)
    with pytest.raises(ModelError) as caught:
        export_onnx(network)
    assert caught.value.code == "unsupported_opset"


@pytest.mark.parametrize("opset", [8, 12, 22])
def test_opsets_that_are_not_written(opset: int) -> None:
    with pytest.raises(ModelError):
        export_onnx(everything(), opset=opset)
