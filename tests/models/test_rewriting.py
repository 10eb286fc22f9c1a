"""A rewritten network is the same function in sums of few terms, whatever its layers are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from models.chains import with_whole_sums
from models.layers.base import Layer
from models.layers.joins import ReduceSum
from models.layers.kinds import Abs, Add, Conv2d, Linear, Reshape
from models.network import INPUT, Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from models.rewriting import arrangement, main, rewritten
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork

Rows = list[tuple[str, Layer, tuple[str, ...]]]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def network_of(layers: list[Layer], shape: tuple[int, ...]) -> Network:
    """The layers, each with |.| behind it, and a dense head."""
    rows: Rows = []
    last, after = INPUT, shape
    for index, layer in enumerate(layers):
        rows += [(f"z{index}", layer, (last,)), (f"a{index}", Abs(), (f"z{index}",))]
        last, after = f"a{index}", layer.output_shape(after)
    size = math.prod(after)
    rows += [
        ("flat", Reshape(shape=(size,)), (last,)),
        ("out", Linear(normal(3, size), normal(3)), ("flat",)),
    ]
    return Network(shape, rows).eval()


def conv(out: int, channels: int, **form: int) -> Conv2d:
    return Conv2d(normal(out, channels, 3, 3), normal(out), **form)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([Linear(normal(40, 700), normal(40))], (700,)),
        ([Linear(normal(40, 701))], (701,)),  # a prime
        ([conv(24, 48, padding=1)], (48, 5, 5)),
        ([conv(24, 48, stride=2, padding=1), conv(16, 24, padding=2, dilation=2)], (48, 7, 7)),
        ([conv(8, 67)], (67, 4, 4)),
        ([conv(24, 48, stride=2, padding=1, groups=3)], (144, 5, 5)),
    ],
    ids=[
        *("dense", "a prime width", "convolution", "stride and dilation", "a prime of channels"),
        "groups",
    ],
)
@torch.no_grad()
def test_wide_sums_become_the_same_map_of_few_terms(
    layers: list[Layer], shape: tuple[int, ...]
) -> None:
    network = network_of(layers, shape)
    found = rewritten(network)
    assert found.changed[: len(layers)] == tuple(f"z{index}" for index in range(len(layers)))
    assert found.wide == ()
    file = export_onnx(found.network)
    again = import_onnx_bytes(file)
    x = normal(5, *shape)
    expected = network.double()(x.double())
    size = float(expected.abs().max())
    assert torch.allclose(found.network.double()(x.double()), expected, atol=1e-12 * size)
    assert torch.allclose(again.double()(x.double()), expected, atol=1e-12 * size)
    deployed = torch.from_numpy(OnnxRuntimeModel(file, shape)(x.numpy())).double()
    assert torch.allclose(deployed, expected, atol=1e-5 * size)
    # What gradients are taken of is the plain form again.
    plain = with_whole_sums(again.float())
    assert not any(isinstance(plain.layer(node.name), ReduceSum) for node in plain.nodes)
    assert plain.largest <= network.largest + 16
    assert torch.allclose(plain.double()(x.double()), expected, atol=1e-12 * size)
    # Each is one map for the verifier, and rounds less often than one sum would.
    before, after = (
        [step.op for step in CompiledNetwork.compile(n, norms=False).steps]
        for n in (network.float(), again.float())
    )
    old, new = ([op for op in ops if isinstance(op, Affine)] for ops in (before, after))
    assert len(old) == len(new) == len(layers)
    for whole, parts in zip(old, new, strict=True):
        assert parts.terms < 0.6 * whole.terms
        assert parts.summation is not None
        assert parts.summation.leaves >= whole.terms - 2


def test_what_is_narrow_stays_and_what_stays_wide_is_named() -> None:
    narrow = network_of([Linear(normal(20, 30)), Linear(normal(10, 20))], (30,))
    found = rewritten(narrow)
    assert (found.changed, found.wide) == ((), ())
    assert found.network.graph_digest() == narrow.deployed().graph_digest()
    window = Conv2d(normal(4, 1, 25, 25), groups=4)
    found = rewritten(network_of([window], (4, 26, 26)))
    assert (found.changed, found.wide) == ((), ("z0",))


def test_a_layer_that_is_used_twice_is_stored_once() -> None:
    layer = Linear(normal(256, 256))
    rows: Rows = [
        ("first", layer, (INPUT,)),
        ("second", layer, ("first",)),
        ("sum", Add(), ("first", "second")),
        ("out", Linear(normal(3, 256)), ("sum",)),
    ]
    network = Network((256,), rows).eval()
    found = rewritten(network).network
    assert found.parameter_count == network.parameter_count


@pytest.mark.parametrize("channels", [1, 2, 37, 64, 360, 512, 1001])
@pytest.mark.parametrize("taps", [1, 9])
def test_an_arrangement_is_of_all_channels_within_the_groups_allowed(
    channels: int, taps: int
) -> None:
    for groups in (1, 8, 10_000):
        sizes = arrangement(channels, taps, groups, 400.0)
        assert math.prod(sizes) == channels
        assert math.prod(sizes[1:]) <= groups
        assert min((2, *sizes[1:])) >= 2


def wide_file(*last: NodeProto, kind: int = TensorProto.FLOAT, head: int = 3) -> bytes:
    """A dense layer of 700 inputs behind a Cast if they are bytes, and what ``last`` adds."""
    cast = helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT)
    first = [cast] if kind == TensorProto.UINT8 else []
    nodes = [
        *first,
        helper.make_node("MatMul", ["c" if first else "x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["s"]),
        *last,
    ]
    weights = {"w": normal(700, 40), "v": normal(40, head)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 700])],
        [helper.make_tensor_value_info("p" if last else "s", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (wide_file(), "In partial sums now: linear_0."),
        (wide_file(helper.make_node("Softmax", ["s"], ["p"])), "before the final Softmax"),
        (wide_file(helper.make_node("Sigmoid", ["s"], ["p"]), head=1), "two scores, 0 and the"),
    ],
)
def test_the_command_says_what_the_rewritten_file_is(
    file: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    before.write_bytes(file)
    assert main([str(before), str(after)]) == 0
    assert said in capsys.readouterr().out
    x = normal(5, 700).numpy()
    first, second = (OnnxRuntimeModel(path, (700,)) for path in (before, after))
    given, logits = torch.from_numpy(first(x)), torch.from_numpy(second(x))
    if given.shape[1] == 1:
        # Of its Sigmoid there are 0 and the score.
        assert not logits[:, 0].any()
        logits = logits[:, 1:].sigmoid()
    assert torch.allclose(logits, given, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (wide_file(kind=TensorProto.UINT8), "takes bytes"),
        (wide_file(helper.make_node("Hardmax", ["s"], ["p"])), "Hardmax"),
        (b"no network", "not an ONNX model"),
        (None, "No such file"),
    ],
)
def test_the_command_refuses_in_a_sentence(
    file: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes in the place of floats would be another file's inputs."""
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    if file is not None:
        before.write_bytes(file)
    assert main([str(before), str(after)]) == 2
    assert said in capsys.readouterr().out
    assert not after.exists()


def test_the_command_writes_nothing_where_nothing_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = network_of([Linear(normal(20, 30))], (30,))
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    before.write_bytes(export_onnx(narrow))
    assert main([str(before), str(after)]) == 2
    assert "no sum of it" in capsys.readouterr().out
    assert not after.exists()
