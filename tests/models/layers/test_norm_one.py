"""Layers that never stretch a distance: so they are, at random points and steps of any size; what
only folds, pools or moves takes nothing from a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.architectures.layer_makers import KINDS
from models.architectures.lipconvnet import POOLS
from models.architectures.published import ACTIVATIONS, build
from models.layers.base import Layer, Shape
from tests.models.layers.every_kind import layer_of, row_of

F64 = torch.float64


#: Rows that stand between the weighted layers of a network of norm 1.
BETWEEN: list[dict[str, Any]] = [
    *(row for rows in ACTIVATIONS.values() for row in rows),
    *POOLS.values(),
    *(row_of(kind) for kind in KINDS if layer_of(kind)[0].one_lipschitz),
]
BY_KIND: dict[str, dict[str, Any]] = {str(list(row.items())): row for row in BETWEEN}


def made(row: dict[str, Any]) -> tuple[Layer, Shape]:
    """The layer of this row with first weights, in float64, not as it learns."""
    _, shape = layer_of(row["kind"])
    tail = [{"kind": "flatten"}] if len(shape) == 3 and row["kind"] != "flatten" else []
    network = build(
        {"input": list(shape), "layers": [row, *tail, {"kind": "linear", "out": 2}]},
        generator=torch.Generator().manual_seed(0),
    )
    return network.layer(network.nodes[0].name).double().requires_grad_(False), shape


@pytest.mark.parametrize("row", BY_KIND.values(), ids=lambda row: row["kind"])
def test_no_distance_grows(row: dict[str, Any]) -> None:
    layer, shape = made(row)
    generator = torch.Generator().manual_seed(1)
    x, step = (torch.randn(200, *shape, generator=generator, dtype=F64) for _ in range(2))
    step = step * 10.0 ** torch.linspace(-5, 1, 200).reshape(-1, *([1] * len(shape)))
    with torch.no_grad():
        moved = (layer(x + step) - layer(x)).flatten(1).norm(dim=1)
    assert bool((moved <= (1 + 1e-6) * step.flatten(1).norm(dim=1)).all())
    for point in x[:3]:
        assert float(jacobian_values(layer, point)[0]) <= 1 + 1e-6


def jacobian_values(layer: Layer, point: Tensor) -> Tensor:
    """Singular values of the derivative at a point, the largest first."""
    with torch.enable_grad():
        matrix: Any = torch.autograd.functional.jacobian(lambda z: layer(z[None])[0], point)
    return torch.linalg.svdvals(matrix.reshape(-1, point.numel()))


def keeps_gradients(row: dict[str, Any]) -> bool:
    """Whether it is a fold, a pool or a move: nothing in it is a matrix."""
    layer, _ = layer_of(row["kind"])
    return (layer.one_lipschitz and "weight" not in layer.state_dict()) or row["kind"] == "maxmin"


@pytest.mark.parametrize(
    "row", [row for row in BY_KIND.values() if keeps_gradients(row)], ids=lambda row: row["kind"]
)
def test_folds_pools_and_moves_keep_the_norm_of_every_gradient(row: dict[str, Any]) -> None:
    """Every singular value of the derivative is 1, but where channels were appended or left out."""
    layer, shape = made(row)
    for point in torch.randn(5, *shape, generator=torch.Generator().manual_seed(2), dtype=F64):
        values = jacobian_values(layer, point)
        assert float((values - 1).abs().max()) <= 1e-6
