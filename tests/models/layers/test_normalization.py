"""The normalisation of a spec in front of networks of every input layout."""

from __future__ import annotations

import pytest
import torch

from models.layers.kinds import Layer, Linear, Permute, Reshape
from models.network import Network, NetworkError
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.compiled_network import CompiledNetwork

MEAN, STD = [0.1, 0.5, 0.9], [0.2, 0.3, 0.4]


def network(shape: tuple[int, ...]) -> Network:
    """A linear classifier that sees its image as flattened NCHW, whatever layout it comes in."""
    rows: list[tuple[str, Layer, list[str]]] = []
    last = "input"
    if shape == (4, 5, 3):
        rows.append(("p", Permute(axes=(2, 0, 1)), ["input"]))
        last = "p"
    weight = torch.randn(4, 60, generator=torch.Generator().manual_seed(0))
    rows += [("f", Reshape(shape=(60,)), [last]), ("o", Linear(weight), ["f"])]
    return Network(shape, rows)


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5, 3), (60,), (60, 1)])
def test_every_layout_is_normalised_alike(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    given = image.permute(0, 2, 3, 1) if shape == (4, 5, 3) else image.reshape(2, *shape)
    expected = network((3, 4, 5))(
        (image - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)
    )
    normalized = network(shape).normalized(MEAN, STD)
    assert torch.allclose(normalized(given), expected, atol=1e-5)
    deployed = OnnxRuntimeModel(export_onnx(normalized), shape)
    found = deployed(given.contiguous().numpy())
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
    again = Network.from_description(normalized.description(), normalized.state_dict())
    assert torch.equal(again(given), normalized(given))
    compiled = CompiledNetwork.compile(normalized)
    value = given.double()
    for step in compiled.steps:
        value = forward_step(step, [value])
    logits = value.flatten(1) @ compiled.head.weight.T + compiled.head.bias
    assert torch.allclose(logits.float(), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 3), (4, 5, 4), (61,), (2, 30), (6,), (45, 1)])
def test_values_that_fit_nowhere_or_twice_are_refused(shape: tuple[int, ...]) -> None:
    """Neither layout, both, or a table whose features are no pixels of three channels."""
    rows = [("f", Reshape(shape=(int(torch.Size(shape).numel()),)), ["input"])]
    with pytest.raises(NetworkError, match="does not fit"):
        Network(shape, rows).normalized(MEAN, STD)
