"""1-Lipschitz layers: exact moves, isometries, gradients, and what is deployed for them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.architectures.published import build
from models.checkpoints.state_dict import load_checkpoint, weights_of
from models.errors import ModelError
from models.layers.base import Layer, ShapeError
from models.layers.kinds import Abs, Conv2d, Gather, Reshape
from models.layers.one_lipschitz import (
    ONE_LIPSCHITZ,
    AbsShift,
    NormalizedHead,
    OrthogonalChannels,
    PadChannels,
    SpaceToDepth,
)
from models.layers.one_lipschitz.orthogonal import polar_factor
from models.layers.partial_sums import block_and_levels
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel

F64 = torch.float64
TINY = {"name": "shiftnet", "input": [3, 8, 8], "width": 16, "depths": [2, 1], "classes": 5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthogonal(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator(seed), dtype=F64))[0]


def of_layer(layer: Layer, shape: tuple[int, ...]) -> Network:
    """The layer alone, its result flattened."""
    size = math.prod(layer.output_shape(shape))
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("a", layer, ("input",)),
        ("b", Reshape(shape=(size,)), ("a",)),
    ]
    return Network(shape, rows)


LAYERS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "abs-shift": (AbsShift(), (16, 5, 3)),
    "space-to-depth": (SpaceToDepth(block=2), (3, 6, 4)),
    "space-to-depth of 3": (SpaceToDepth(block=3), (2, 3, 6)),
    "pad-channels": (PadChannels(channels=7), (4, 3, 2)),
    "orthogonal-channels": (
        OrthogonalChannels(orthogonal(24).float()[:, :, None, None], torch.randn(24)),
        (24, 3, 2),
    ),
    "normalized-head": (
        NormalizedHead(torch.randn(6, 40, generator=generator()), torch.arange(6.0)),
        (40,),
    ),
    "normalized-head of a prime": (
        NormalizedHead(torch.randn(6, 41, generator=generator()), torch.arange(6.0)),
        (41,),
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_what_is_deployed_computes_the_same_by_plain_layers(case: str) -> None:
    layer, shape = LAYERS[case]
    network = (
        of_layer(layer, shape) if len(shape) == 3 else Network(shape, [("a", layer, ("input",))])
    )
    deployed = network.deployed()
    assert not {type(deployed.layer(n.name)) for n in deployed.nodes} & set(ONE_LIPSCHITZ)
    x = torch.randn(4, *shape, generator=generator(1))
    with torch.no_grad():
        expected = network(x)
        # Also where the images lie in memory with their channels last.
        if len(shape) == 3:
            last = x.contiguous(memory_format=torch.channels_last)
            assert torch.allclose(network(last), expected, atol=1e-6)
        exact = case in ("abs-shift", "space-to-depth", "space-to-depth of 3", "pad-channels")
        tolerance = 0.0 if exact else 2e-6 * float(expected.abs().max())
        assert float((deployed(x) - expected).abs().max()) <= tolerance
        data = export_onnx(deployed)
        assert float((import_onnx_bytes(data)(x) - expected).abs().max()) <= tolerance
        found = torch.from_numpy(OnnxRuntimeModel(data, shape)(x.numpy()))
        assert float((found - expected).abs().max()) <= tolerance


@pytest.mark.parametrize("shape", [(8, 2, 2), (16, 5, 3), (24, 1, 4), (8, 1, 1), (32, 16, 16)])
def test_the_shift_is_a_permutation_that_moves_by_one_place_at_most(
    shape: tuple[int, int, int],
) -> None:
    layer = AbsShift()
    places = layer.places(shape)
    assert torch.equal(places.sort().values, torch.arange(math.prod(shape)))
    channels, height, width = shape
    step = channels // 8
    numbers = torch.arange(math.prod(shape))
    for here, there in zip(numbers.tolist(), places.tolist(), strict=True):
        (c, h, w), (source, row, column) = (
            (n // (height * width), n // width % height, n % width) for n in (here, there)
        )
        assert abs(h - row) + abs(w - column) <= 1
        if c < channels // 2:
            assert (c, h, w) == (source, row, column)
            continue
        # Down and up change places at the border, right and left too; nothing else does.
        group, other = (c - channels // 2) // step, (source - channels // 2) // step
        assert other == group or {group, other} in ({0, 1}, {2, 3})
        assert (c - source) % step == 0
    x = torch.randn(3, *shape, generator=generator())
    absolute = torch.cat([x[:, : channels // 2].abs(), x[:, channels // 2 :]], 1)
    moved = layer(x)
    assert torch.equal(moved.flatten(1), absolute.flatten(1)[:, places])
    if height > 2:
        assert torch.equal(moved[:, channels // 2, 1:], x[:, channels // 2, :-1])
    if width > 2:
        first = channels // 2 + 3 * step
        assert torch.equal(moved[:, first, :, :-1], x[:, first, :, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_gradients_are_those_of_the_plain_layers(dtype: torch.dtype) -> None:
    shape = (16, 4, 3)
    x = torch.randn(5, *shape, generator=generator()).to(dtype).requires_grad_()
    weight = torch.randn(5, *shape, generator=generator(1)).to(dtype)
    (found,) = torch.autograd.grad((AbsShift()(x) * weight).sum(), x)
    places = AbsShift().places(shape)
    plain = torch.cat([x[:, :8].abs(), x[:, 8:]], 1).flatten(1)[:, places].reshape(x.shape)
    (expected,) = torch.autograd.grad((plain * weight).sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("case", ["orthogonal-channels", "space-to-depth", "pad-channels"])
def test_other_gradients_by_finite_differences(case: str) -> None:
    layer, shape = LAYERS[case]
    double = type(layer).build(
        layer.config(), {name: t.double() for name, t in layer.state_dict().items()}
    )
    x = torch.randn(2, *shape, generator=generator(), dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(double, x, fast_mode=True)


@pytest.mark.parametrize("size", [1, 2, 24, 64])
def test_the_nearest_orthogonal_matrix_is_orthogonal_to_the_last_digits(size: int) -> None:
    rough = orthogonal(size) + 1e-3 * torch.randn(size, size, generator=generator(1), dtype=F64)
    nearest = polar_factor(rough.float())
    assert nearest.dtype == F64
    for product in (nearest @ nearest.T, nearest.T @ nearest):
        assert float((product - torch.eye(size, dtype=F64)).abs().max()) <= 1e-12
    # Nearest: rough is it times a symmetric positive matrix.
    symmetric = nearest.T @ rough.float().double()
    assert float((symmetric - symmetric.T).abs().max()) <= 1e-12
    assert float(torch.linalg.eigvalsh((symmetric + symmetric.T) / 2)[0]) > 0
    broken = rough.clone()
    broken[0, 0] = torch.nan
    assert bool(torch.isnan(polar_factor(broken)).any())


def test_singular_values_of_what_is_deployed_are_one_to_float32() -> None:
    network = build(TINY, generator=generator())
    with torch.no_grad():
        for node in network.nodes:
            layer = network.layer(node.name)
            if isinstance(layer, OrthogonalChannels):
                layer.weight.add_(1e-3 * torch.randn(layer.weight.shape, generator=generator(2)))
    deployed = network.deployed()
    matrices = 0
    for node in deployed.nodes:
        layer = deployed.layer(node.name)
        if isinstance(layer, Conv2d) and node.name.startswith("orthogonal"):
            out = layer.weight.shape[0] // layer.groups
            weight = layer.weight.detach()
            matrix = weight.reshape(layer.groups, out, -1).transpose(0, 1).reshape(out, -1)
            values = torch.linalg.svdvals(matrix.double())
            assert float((values - 1).abs().max()) <= 2e-7
            matrices += 1
    assert matrices == 3


@pytest.mark.parametrize("channels", [1, 2, 7, 12, 32, 48, 512, 768, 8192, 8191])
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_blocks_and_levels_have_the_least_sum(channels: int, levels: int) -> None:
    sizes = block_and_levels(channels, levels)
    assert math.prod(sizes) == channels
    assert len(sizes) <= levels + 1
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    if len(divisors) <= 16:
        for others in itertools.product(divisors, repeat=levels):
            rest, left = divmod(channels, math.prod(others))
            if not left:
                used = [size for size in (rest, *others) if size > 1] or [1]
                assert sum(sizes) <= sum(used)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_shiftnet_goes_through_onnx_and_state_dicts(opset: int, tmp_path: Path) -> None:
    network = build(TINY, generator=generator())
    deployed = network.deployed()
    x = torch.rand(6, 3, 8, 8, generator=generator(1))
    data = export_onnx(deployed, opset=opset)
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_of(deployed))
    with torch.no_grad():
        expected = network(x)
        assert torch.allclose(deployed(x), expected, atol=2e-6)
        back = import_onnx_bytes(data)
        assert torch.allclose(back(x), expected, atol=2e-6)
        assert torch.equal(load_checkpoint(path, "safetensors", TINY)(x), deployed(x))
    kinds = [type(back.layer(node.name)) for node in back.nodes]
    assert kinds.count(Abs) == kinds.count(Gather) == 3
    assert back.parameter_count == deployed.parameter_count
    head = network.layer(network.nodes[-1].name)
    assert isinstance(head, NormalizedHead)
    assert torch.allclose(head.tensors()[0].norm(dim=1), torch.ones(5), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"width": 8}, "invalid_architecture"),
        ({"width": 20}, "invalid_architecture"),
        ({"depths": []}, "invalid_architecture"),
        ({"depths": [0]}, "invalid_architecture"),
        ({"depths": 3}, "invalid_architecture"),
        ({"depths": [1, 1, 1, 1]}, "invalid_architecture"),
        ({"patch": 3}, "invalid_architecture"),
        ({"mean": [0.5, 0.5]}, "invalid_architecture"),
        ({"width": 4096, "depths": [1, 1, 1]}, "model_too_large"),
        ({"depth": 2}, "invalid_architecture"),
    ],
)
def test_a_shiftnet_refuses_what_it_cannot_be(change: dict[str, object], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        build({**TINY, **change})
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("places", "axis"),
    [([0, 0], 0), ([0, 4], 0), ([-1, 2], 0), ([], 0), ([0], 3), ([0, 1, 2, 3], 1)],
)
def test_gather_takes_places_of_its_axis_once_each(places: list[int], axis: int) -> None:
    with pytest.raises(ShapeError):
        Gather(torch.tensor(places, dtype=torch.int64), axis=axis).output_shape((4, 3, 2))
    with pytest.raises(ShapeError):
        Gather(torch.tensor([[0]]), axis=0).output_shape((4, 3, 2))
    with pytest.raises(ShapeError):
        Gather(torch.tensor([0.0]), axis=0).output_shape((4, 3, 2))
    for channels in (0, 4, 5):
        with pytest.raises(ShapeError):
            Abs(channels=channels).output_shape((4, 3, 2))
