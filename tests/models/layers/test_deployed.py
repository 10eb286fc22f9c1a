"""What is deployed in a layer's place may be a sub-graph: one network in every form it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.architectures.layer_makers import KINDS
from models.architectures.published import build
from models.checkpoints.state_dict import load_checkpoint, weights_of
from models.errors import ModelError
from models.layers.base import DeployedLayer, Layer, Shape
from models.layers.kinds import Add, Linear, Multiply, Reshape
from models.layers.reparametrized import NormalizedLinear
from models.network import Network, NetworkError
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.layers.every_kind import IMAGE, layers_with
from tests.models.layers.series import ARCHITECTURE, Series, convolutional, known_series

__all__ = ["known_series"]

pytestmark = pytest.mark.usefixtures("known_series")
DEGREES = [1, 2, 5]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(degree: int, *, bias: bool = False) -> Network:
    """As it is trained: a dense layer, the series, the classes."""
    weight = torch.randn(6, 6, generator=generator(1)) / 4
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("first", Linear(torch.randn(6, 4, generator=generator(2))), ("input",)),
        ("series", Series(weight, weight[0] if bias else None, degree=degree), ("first",)),
        ("head", Linear(torch.randn(3, 6, generator=generator(3))), ("series",)),
    ]
    return Network((4,), rows).eval()


def points() -> torch.Tensor:
    return torch.rand(5, 4, generator=generator(4))


def test_a_layer_of_three_with_a_residual_branch_takes_its_nodes_place() -> None:
    deployed = trained(1).deployed()
    assert [
        (node.name, deployed.layer(node.name).kind, node.inputs) for node in deployed.nodes
    ] == [
        ("first", "linear", ("input",)),
        ("series/map_1", "linear", ("first",)),
        ("series/scale_1", "multiply", ("series/map_1",)),
        ("series", "add", ("first", "series/scale_1")),
        ("head", "linear", ("series",)),
    ]
    again = deployed.deployed()
    assert [node.name for node in again.nodes] == [node.name for node in deployed.nodes]
    assert again.graph_digest() == deployed.graph_digest()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("degree", DEGREES)
def test_the_sub_graph_computes_the_layer(degree: int, bias: bool) -> None:
    network = trained(degree, bias=bias)
    with torch.no_grad():
        found = network.deployed()(points())
        assert torch.allclose(found, network(points()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("degree", DEGREES)
def test_save_and_load_keep_digest_and_store_a_shared_weight_once(
    degree: int, tmp_path: Path
) -> None:
    deployed = trained(degree).deployed()
    deployed.save(tmp_path)
    again = Network.load(tmp_path)
    assert again.graph_digest() == deployed.graph_digest()
    assert torch.equal(again(points()), deployed(points()))
    kernels = {again.layer(f"series/map_{i}") for i in range(1, degree + 1)}
    assert len(kernels) == 1
    shapes = [tuple(t.shape) for t in load_file(tmp_path / "weights.safetensors").values()]
    assert shapes.count((6, 6)) == 1
    assert again.parameter_count == deployed.parameter_count == 24 + 36 + degree + 18


def test_the_digest_asks_for_numbers_and_not_for_how_they_are_stored() -> None:
    shared = trained(2).deployed()
    copies = Network(
        shared.input_shape,
        [
            (n.name, shared.layer(n.name).build(shared.layer(n.name).config(),
                                                shared.layer(n.name).state_dict()), n.inputs)
            for n in shared.nodes
        ],
    )  # fmt: skip
    assert shared.shared
    assert not copies.shared
    assert copies.graph_digest() == shared.graph_digest()
    with torch.no_grad():
        next(iter(copies.layer("series/map_1").parameters()))[0, 0] += 1
    assert copies.graph_digest() != shared.graph_digest()


@pytest.mark.parametrize("degree", DEGREES)
def test_export_runtime_and_import_agree(degree: int) -> None:
    deployed = trained(degree).deployed()
    data = export_onnx(deployed)
    constants = [tuple(c.dims) for c in onnx.load_from_string(data).graph.initializer]
    assert constants.count((6, 6)) == 1
    x, again = points(), import_onnx_bytes(data)
    with torch.no_grad():
        assert torch.equal(again(x), deployed(x))
        np.testing.assert_allclose(
            OnnxRuntimeModel(data, (4,))(x.numpy()), deployed(x).numpy(), rtol=0, atol=2e-6
        )
    kinds = [deployed.layer(node.name).kind for node in deployed.nodes]
    assert [again.layer(node.name).kind for node in again.nodes] == kinds
    assert import_onnx_bytes(export_onnx(again)).graph_digest() == again.graph_digest()


def test_skew_convolutions_with_strides_and_changing_channels_are_exported_whole() -> None:
    network = convolutional()
    x = torch.rand(4, 2, 8, 8, generator=generator())
    with pytest.raises(ModelError, match="has no ONNX form"):
        export_onnx(network)
    deployed = network.deployed()
    data = export_onnx(deployed)
    kernels = [c for c in onnx.load_from_string(data).graph.initializer if len(c.dims) == 4]
    assert [tuple(kernel.dims) for kernel in kernels] == [(12, 12, 3, 3), (48, 48, 3, 3)]
    with torch.no_grad():
        again = import_onnx_bytes(data)(x)
        assert torch.allclose(deployed(x), network(x), rtol=0, atol=1e-5)
        assert torch.equal(again, deployed(x))
    found = OnnxRuntimeModel(data, (2, 8, 8))(x.numpy())
    np.testing.assert_allclose(found, again.numpy(), rtol=0, atol=1e-5)


def test_weights_of_ours_are_loaded_by_their_own_names(tmp_path: Path) -> None:
    """Dense layers of equal shape and other names: no order would tell one from the other."""
    architecture = {**ARCHITECTURE, "layers": [*ARCHITECTURE["layers"]]}
    architecture["layers"].insert(2, {"kind": "linear", "out": 12})
    deployed = build(architecture, generator=generator()).deployed()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_of(deployed))
    again = load_checkpoint(path, "safetensors", architecture)
    assert again.graph_digest() == deployed.graph_digest()
    assert again.shared == deployed.shared != {}
    x = torch.rand(3, 1, 28, 28, generator=generator(5))
    assert torch.equal(again(x), deployed(x))


def test_constants_that_are_not_the_architectures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_of(build(ARCHITECTURE, generator=generator()).deployed()))
    tensors = load_file(path)
    (key,) = [key for key in tensors if key.endswith("scale_3.value")]
    tensors[key] = torch.tensor(0.5)
    save_file(tensors, path)
    with pytest.raises(ModelError, match="scale_3") as caught:
        load_checkpoint(path, "safetensors", ARCHITECTURE)
    assert caught.value.code == "architecture_mismatch"


class Halved(Layer):
    """x / 2 of an image as a matrix product: the sub-graph follows from the input's shape, and one
    of its layers is a sub-graph itself."""

    kind = "halved"

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        ((*_, width),) = shapes
        series = Series(torch.eye(width) * -0.5, degree=1)
        flat = Reshape(shape=(width,))
        return (DeployedLayer(flat, name="flat"), DeployedLayer(series, ("flat",)))


def test_a_sub_graph_knows_its_inputs_shape_and_may_hold_sub_graphs() -> None:
    network = Network((1, 1, 8), [("a", Reshape(shape=(1, 8)), ("input",)), ("b", Halved(), ("a",)),
                                  ("c", Reshape(shape=(8,)), ("b",))])  # fmt: skip
    deployed = network.deployed()
    names = [node.name for node in deployed.nodes]
    assert names == ["a", "b/flat", "b/map_1", "b/scale_1", "b", "c"]
    x = torch.rand(2, 1, 1, 8, generator=generator())
    assert torch.allclose(deployed(x), x.flatten(1) / 2)


def test_layers_of_several_inputs_hand_all_of_them_on() -> None:
    class Sum(Add):
        def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
            double = Multiply(torch.tensor(2.0))
            twice = DeployedLayer(double, (1,), "twice")
            return (DeployedLayer(Add(), name="sum"), twice, DeployedLayer(Add(), ("sum", "twice")))

    rows: list[Any] = [
        ("a", Linear(torch.eye(3)), ("input",)),
        ("b", Linear(2 * torch.eye(3)), ("input",)),
        ("c", Sum(), ("a", "b")),
    ]
    deployed = Network((3,), rows).deployed()
    x = torch.rand(2, 3, generator=generator())
    assert torch.allclose(deployed(x), 7 * x)


def test_a_name_that_is_taken_is_refused() -> None:
    network = trained(1)
    rows: list[Any] = [(n.name, network.layer(n.name), n.inputs) for n in network.nodes[:2]]
    rows += [("series/map_1", Linear(torch.eye(6)), ("series",))]
    with pytest.raises(NetworkError, match="taken"):
        Network((4,), rows).deployed()


def test_digests_of_layers_that_are_deployed_as_one_stay() -> None:
    rows: list[Any] = [
        ("linear_0", Linear(torch.eye(2), torch.zeros(2)), ("input",)),
        ("normalized-linear_1", NormalizedLinear(4 * torch.eye(2)), ("linear_0",)),
    ]
    assert (
        Network((2,), rows).deployed().graph_digest()
        == "sha256:33b36d428c81ef3cd63a374ab2d2898b6077792bb0fa3f8669f0485368364707"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_deployed_follows_weights_that_an_optimizer_in_one_pass_wrote(kind: str) -> None:
    """Fused steps do not count up ``_version``, by which norms were kept: the file had old ones."""
    description = {"input": list(IMAGE), "layers": layers_with(kind)}
    network, again = (build(description, generator=generator()) for _ in range(2))
    assert network.deployed()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.3, fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator(1))
    optimizer.step()
    again.load_state_dict(network.state_dict())
    expected = again.deployed().state_dict()
    found = network.deployed().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
