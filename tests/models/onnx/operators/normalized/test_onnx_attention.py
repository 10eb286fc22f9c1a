"""Softmax inside a network, MatMul of two activations, and attention as torch exports it."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper
from torch import Tensor, nn

from models.errors import ModelError
from models.onnx.importer import import_onnx_bytes
from tests.models.onnx.graphs import assert_agrees, flattened

node = helper.make_node


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize(("shape", "axis"), [((5,), 1), ((3, 4), -1), ((3, 4), 1), ((2, 3, 4), 2)])
def test_softmax_inside_is_over_one_axis_or_before_opset_13_over_the_rest(
    opset: int, shape: tuple[int, ...], axis: int
) -> None:
    nodes = [node("Softmax", ["x"], ["s"], axis=axis), node("Mul", ["s", "x"], ["y"])]
    network = assert_agrees(flattened(nodes, shape, opset=opset), samples=4)
    assert network.dropped_output is None
    assert network.layer(network.nodes[0].name).kind == "softmax"


def test_softmax_over_the_batch_is_refused() -> None:
    nodes = [node("Softmax", ["x"], ["y"], axis=0)]
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (4,)))
    assert caught.value.code == "batch_dependent"


def product(*, swapped: bool, perm: list[int]) -> list[NodeProto]:
    inputs = ["x", "t"]
    return [
        node("Transpose", ["x"], ["t"], perm=perm),
        node("MatMul", inputs[::-1] if swapped else inputs, ["y"]),
    ]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("shape", "perm"), [((3, 4), [0, 2, 1]), ((2, 2, 1), [0, 1, 3, 2]), ((2, 3, 4), [0, 1, 3, 2])]
)
def test_two_activations_are_multiplied_as_matrices(
    swapped: bool, shape: tuple[int, ...], perm: list[int]
) -> None:
    assert_agrees(flattened(product(swapped=swapped, perm=perm), shape), samples=4)


def test_matrices_that_do_not_fit_are_refused() -> None:
    same = [node("MatMul", ["x", "x"], ["y"])]
    for shape, code in (((3, 4), "shape_mismatch"), ((4,), "batch_dependent")):
        with pytest.raises(ModelError) as caught:
            import_onnx_bytes(flattened(same, shape))
        assert caught.value.code == code


def test_a_product_of_huge_matrices_is_too_large() -> None:
    pair = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["x", "t"], ["z"]),
        node("ReduceMean", ["z"], ["y"], axes=[1], keepdims=0),
    ]
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(pair, (2048, 64), {"none": np.zeros(1, np.float32)}))
    assert caught.value.code == "model_too_large"


class Attention(nn.Module):
    """A transformer's block of one layer and two heads on the rows of an image."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.place = nn.Parameter(0.1 * torch.randn(1, 6, width))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 3)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        y = self.first(x)
        parts = [f(y).reshape(-1, 6, 2, 4).transpose(1, 2) for f in (self.query, self.key)]
        values = self.value(y).reshape(-1, 6, 2, 4).transpose(1, 2)
        scores = torch.softmax(parts[0] @ parts[1].transpose(2, 3) / 2.0, dim=-1)
        x = x + self.out((scores @ values).transpose(1, 2).reshape(-1, 6, 8))
        x = x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


class Library(nn.Module):
    """torch's own layers; the batch in front, or the places."""

    def __init__(self, *, encoder: bool, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(48, 3)
        self.encoder, self.batch_first = encoder, batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.layers(x) if self.encoder else self.attention(x, x, x, need_weights=False)[0]
        x = x if self.batch_first else x.transpose(0, 1)
        logits: Tensor = self.head(x.flatten(1))
        return logits


LIBRARY = [
    Library(encoder=encoder, batch_first=first) for encoder in (False, True) for first in (0, 1)
]


@pytest.mark.parametrize("symbolic", [True, False])
@pytest.mark.parametrize("module", [Attention(), *LIBRARY])
def test_a_block_of_a_transformer_is_taken(module: nn.Module, symbolic: bool) -> None:
    module, x = module.eval(), torch.rand(2, 6, 4)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (x if symbolic else x[:1],),
            stream,
            input_names=["x"],
            opset_version=17,
            dynamic_axes={"x": {0: "n"}} if symbolic else None,
            dynamo=False,
        )
    network = assert_agrees(stream.getvalue())
    with torch.no_grad():
        assert torch.allclose(network(x), module(x), atol=1e-5)
    assert {"softmax", "product"} <= {network.layer(row.name).kind for row in network.nodes}


def of_one(*more: str, opset: int = 23, places: int = 3, **attributes: object) -> bytes:
    """Attention of [heads, places, size]: queries; of the first places keys (by tanh), values."""
    constants = {"start": np.array([0]), "end": np.array([places]), "axis": np.array([2])}
    nodes = [
        node("Tanh", ["x"], ["t"]),
        *(node("Slice", [name, "start", "end", "axis"], [name + "s"]) for name in ("t", "x")),
        node("Attention", ["x", "ts", "xs", *more], ["y"], **attributes),
    ]
    constants["mask"] = np.zeros((4, places), np.float32)
    return flattened(nodes, (2, 4, 5), constants, opset=opset)


@pytest.mark.parametrize("opset", [23, 24, 25, 26])
def test_the_operator_of_attention_is_read(opset: int) -> None:
    for data in (
        of_one(opset=opset),
        of_one(opset=opset, scale=0.25, places=4),
        of_one(opset=opset, scale=1.0, softcap=0.0, is_causal=0, places=1),
    ):
        network = assert_agrees(data, samples=3)
        assert [row for row in network.nodes if network.layer(row.name).kind == "softmax"]


def test_other_kinds_of_attention_are_refused_by_their_reason() -> None:
    for data, reason in (
        (of_one("mask"), "a mask"),
        (of_one(is_causal=1), "is_causal"),
        (of_one(softcap=2.0), "softcap"),
        (of_one(scale=0.0), "scales"),
        (of_one(scale=3.0), "scales"),
        (of_one(softmax_precision=10), "softmax_precision"),
        (of_one(opset=25, left_window_size=1), "windows"),
        (of_one(opset=25, right_window_size=0), "windows"),
    ):
        with pytest.raises(ModelError, match=reason):
            import_onnx_bytes(data)
    whole = [node("Attention", ["x", "x", "x"], ["y"], q_num_heads=1, kv_num_heads=1)]
    with pytest.raises(ModelError, match="heads, places, size"):
        import_onnx_bytes(flattened(whole, (4, 5), opset=23))
