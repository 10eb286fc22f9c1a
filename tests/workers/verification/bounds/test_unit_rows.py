"""A last layer that is read pair by pair, behind features of norm 1: radii are distances."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.affine import Linear
from models.layers.base import Layer
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from workers.verification.bounds.lipschitz import lipschitz_radius
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.rounding import Rounding

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def radius_of(model: Network, x: Tensor, labels: Tensor) -> Tensor:
    """l2, on unbounded inputs, rounding included."""
    return lipschitz_radius(
        CompiledNetwork.compile(model),
        x,
        labels,
        norm="l2",
        rounding=Rounding.sound(F64),
        dtype=F64,
    )


@torch.no_grad()
def test_the_nearest_boundary_may_belong_to_the_lowest_of_fifteen_logits() -> None:
    """Thirteen rows near the winner's lead by little and are far; the opposite one is near."""
    first = F.normalize(normal(1, 24), dim=1)
    near = F.normalize(first + 0.01 * normal(13, 24, seed=1), dim=1)
    weight = torch.cat([first, near, -first])
    x = 0.2 * normal(1, 24, seed=2)
    wanted = torch.tensor([1.0, *[0.9 - 0.01 * k for k in range(13)], 0.0])
    head = Linear(weight, wanted - (x @ weight.T)[0])
    model = Network((24,), [("head", head, ("input",))])
    logits = model(x).double()[0]
    order = logits.argsort(descending=True)
    assert (int(order[0]), int(order[-1])) == (0, 14)
    away = (weight[0] - weight).double().norm(dim=1)
    distances = (logits[0] - logits)[1:] / away[1:]
    assert int(distances.argmin()) + 1 == 14
    found = float(radius_of(model, x, torch.tensor([0])))
    assert 0.999 * float(distances[13]) <= found <= float(distances[13])
    # What the nine highest others alone would certify is wrong.
    believed = float(distances[order[1:10] - 1].min())
    assert believed > 1.2 * float(distances[13])
    moved = x.double() - 0.999 * believed * first.double()
    assert int(OnnxRuntimeModel(export_onnx(model), (24,))(moved.float().numpy()).argmax()) == 14


def test_the_radius_of_linear_features_is_the_distance() -> None:
    """A rotation and unit rows: the nearest boundary lies there, and one step beyond is wrong."""
    rotation = torch.linalg.qr(normal(30, 30).double())[0].float()
    rows = F.normalize(normal(12, 30, seed=1), dim=1)
    parts: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("turn", Linear(rotation, normal(30)), ("input",)),
        ("head", Linear(rows, normal(12)), ("turn",)),
    ]
    model = Network((30,), parts)
    deployed = OnnxRuntimeModel(export_onnx(model), (30,))
    x = normal(8, 30, seed=2)
    with torch.no_grad():
        logits = model(x)
        y = logits.argmax(1)
        radius = radius_of(model, x, y)
        away = (rows[None] - rows[y][:, None]).double()
        distance = (logits.gather(1, y[:, None]) - logits).double() / away.norm(dim=2)
        distance, nearest = distance.scatter(1, y[:, None], torch.inf).min(1)
    assert bool((radius <= distance * (1 + 1e-5)).all())
    assert bool((radius >= distance * (1 - 1e-3) - 1e-5).all())
    step = away[range(8), nearest] @ rotation.double()
    step = step / step.norm(dim=1, keepdim=True) * distance[:, None]
    for factor, same in ((0.999, True), (1.001, False)):
        moved = (x.double() + factor * step).float().numpy()
        found = torch.from_numpy(deployed(moved)).argmax(1)
        assert bool(((found == y) == same).all())


def test_nearly_equal_rows_of_the_last_layer_do_not_cancel() -> None:
    """Distance of two unit rows that differ by 2e-7, to its own precision."""
    row = F.normalize(normal(1, 30), dim=1)
    other = row.clone()
    other[0, 3] = torch.nextafter(other[0, 3], torch.tensor(9.0))
    other[0, 5] = torch.nextafter(other[0, 5], torch.tensor(9.0))
    head = Linear(torch.cat([row, other]), torch.tensor([0.0, -1e-5]))
    model = Network((30,), [("head", head, ("input",))])
    compiled = CompiledNetwork.compile(model)
    exact = float((row.to(F64) - other.to(F64)).norm())
    assert exact <= float(compiled.head.pair_norms[0, 1]) <= exact * (1 + 1e-6)
