"""Folds written with comparisons (HouseHolder of deel-torchlip and orthogonium)."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from models.errors import ModelError
from models.layers.one_lipschitz import InexactPairs
from models.network import Network
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from models.onnx.session import open_session
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of
from tests.models.onnx.operators.curved.folds import (
    FLIPPED,
    angles,
    combinations,
    exact_fold,
    masked,
    with_where,
)

node = helper.make_node


def kinds(network: Network) -> list[str]:
    return [network.layer(row.name).kind for row in network.nodes]


FOLD = ["slice", "slice", "multiply", "multiply", "add", "relu", "multiply", "multiply"]
FOLD += ["concat", "add", "inexact-pairs"]
FORMS = {
    "products": masked(),
    "products, turned": masked(turned=True),
    "products, the tie elsewhere": masked("Less", "GreaterOrEqual"),
    **{f"Where {name}": with_where(name) for name in FLIPPED},
}


@pytest.mark.parametrize("shape", [(6,), (4, 3, 2)])
@pytest.mark.parametrize("form", FORMS)
def test_a_fold_is_one_activation_however_it_is_written(form: str, shape: tuple[int, ...]) -> None:
    theta = torch.linspace(-7.0, 7.0, shape[0] // 2)
    for scale in (1.0, 1e-20, 1e20):
        data = flattened(FORMS[form], shape, angles(theta, shape), opset=18)
        network = assert_agrees(data, samples=50, scale=scale)
        assert kinds(network)[: len(FOLD)] == FOLD


def test_a_reflection_on_the_other_side_is_a_fold_too() -> None:
    """What is kept where n . p is above 0 is a fold by -n."""
    shape = (4,)
    nodes = [*combinations(), node("Greater", ["sel", "zero"], ["at"])]
    nodes += [node("Where", ["at", half, f"{half}2"], [f"{half}y"]) for half in "ab"]
    nodes.append(node("Concat", ["ay", "by"], ["y"], axis=1))
    network = assert_agrees(flattened(nodes, shape, angles([0.4, 2.5], shape), opset=18), samples=9)
    assert kinds(network)[: len(FOLD)] == FOLD


def jump(**changed: Any) -> str:
    shape = (4,)
    constants = angles([0.4, 2.5], shape) | {
        name: np.asarray(value, np.float32) for name, value in changed.items()
    }
    with pytest.raises(ModelError) as refused:
        import_onnx_bytes(flattened(masked(), shape, constants, opset=18))
    assert refused.value.code == "unsupported_operator"
    return str(refused.value)


def test_what_jumps_is_refused_by_name() -> None:
    """Other angles in A than in n, a switching line elsewhere, both sides or none at the line."""
    assert "may jump" in jump(C=np.cos([[0.5, 2.5]]))
    assert "may jump" in jump(s=np.sin([[0.21, 1.25]]))
    assert "may jump" in jump(zero=0.1)
    for kept, bent in (("Less", "Greater"), ("LessOrEqual", "GreaterOrEqual")):
        data = flattened(masked(kept, bent), (4,), angles([0.4, 2.5], (4,)), opset=18)
        with pytest.raises(ModelError, match="may jump"):
            import_onnx_bytes(data)
    # One half alone, or both in the other order, is no fold of the plane.
    for ending in (
        [node("Relu", ["ay"], ["y"])],
        [node("Concat", ["by", "ay"], ["y"], axis=1)],
        [node("Concat", ["ay", "b"], ["y"], axis=1)],
        [node("Add", ["ay", "by"], ["y"])],
    ):
        nodes = [*masked()[:-1], *ending]
        with pytest.raises(ModelError, match=r"jump|comparison"):
            import_onnx_bytes(flattened(nodes, (4,), angles([0.4, 2.5], (4,)), opset=18))
    whole = graph_of(masked()[:-1], (4,), angles([0.4, 2.5], (4,)), opset=18, output="ay")
    with pytest.raises(ModelError, match="jump"):
        import_onnx_bytes(whole.SerializeToString())


def test_sines_that_the_file_computes_cost_a_little_more() -> None:
    """torch's script exporter leaves Sin and Cos of the angles in the file."""
    shape, theta = (6, 2, 2), torch.tensor([0.3, 1.6, -2.0])
    known = angles(theta, shape)
    shaped = theta.reshape(1, 3, 1, 1).numpy()
    waves = [
        node(operator, [source], [name])
        for name, operator, source in (
            *(("s", "Sin", "half"), ("c", "Cos", "half")),
            *(("S", "Sin", "theta"), ("C", "Cos", "theta")),
        )
    ]
    constants = {"half": np.float32(0.5) * shaped, "theta": shaped, "zero": np.float32(0)}
    data = flattened([*waves, *masked()], shape, constants, opset=18)
    computed = assert_agrees(data, samples=20)
    stored = assert_agrees(flattened(masked(), shape, known, opset=18), samples=20)
    more, less = (share_of(network) for network in (computed, stored))
    assert (more > less).all()
    assert (more < 1e-5).all()
    # Anything else that reads such a product is refused: it has no such room.
    for tail in (
        [node("Mul", ["x", "S"], ["y"])],
        [node("Mul", ["x", "S"], ["z"]), node("Relu", ["z"], ["y"])],
        [node("Mul", ["x", "S"], ["z"]), node("Add", ["z", "x"], ["y"])],
        [node("Mul", ["S", "S"], ["T"]), node("Mul", ["x", "T"], ["y"])],
        [node("Add", ["x", "S"], ["y"])],
    ):
        graph = flattened([waves[2], *tail], (3, 2, 2), constants, opset=18)
        with pytest.raises(ModelError) as refused:
            import_onnx_bytes(graph)
        assert refused.value.code == "unsupported_operator", tail


@pytest.mark.parametrize(
    "tail",
    [
        [node("Mul", ["x", "S"], ["z"]), node("Greater", ["z", "zero"], ["b"]),
         node("Cast", ["b"], ["n"], to=TensorProto.FLOAT), node("Add", ["n", "x"], ["y"])],
        [node("Mul", ["x", "S"], ["z"]), node("Less", ["z", "zero"], ["b"]),
         node("Cast", ["b"], ["n"], to=TensorProto.FLOAT), node("Neg", ["n"], ["y"])],
        [node("Greater", ["x", "zero"], ["b"]), node("Where", ["b", "T", "zero"], ["y"])],
        [node("Greater", ["x", "zero"], ["b"]), node("Where", ["b", "x", "O"], ["y"])],
        [node("Shape", ["x"], ["n"]), node("Expand", ["S", "n"], ["R"]),
         node("Mul", ["x", "R"], ["y"])],
        [node("Shape", ["x"], ["n"]), node("Expand", ["zero", "n"], ["Z"]),
         node("Add", ["Z", "S"], ["R"]), node("Mul", ["x", "R"], ["y"])],
        [node("Cast", ["N"], ["n"], to=TensorProto.INT64), node("Reshape", ["x", "n"], ["y"])],
        [node("MatMul", ["Q", "one"], ["R"]), node("Add", ["x", "R"], ["y"])],
    ],
    ids=lambda tail: " ".join(row.op_type for row in tail),
)  # fmt: skip
def test_nothing_forgets_that_a_constant_is_another_one_elsewhere(tail: list[Any]) -> None:
    """Steps, numbers between which a comparison chooses, rows of a batch, and whole numbers."""
    theta = np.array([0.3, 1.6, -2.0], np.float32).reshape(1, 3, 1, 1)
    zero, two, row = np.float32(0), np.float32(2), np.zeros((1, 3), np.float32)
    constants = {"theta": theta, "two": two, "zero": zero, "row": row, "kept": np.zeros(4)}
    constants = {**constants, "one": np.eye(3, 2)}
    constants = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    waves = [("theta", "S"), ("two", "T"), ("zero", "O"), ("row", "Q"), ("kept", "N")]
    nodes = [*(node("Sin", [source], [name]) for source, name in waves), *tail]
    with pytest.raises(ModelError) as refused:
        import_onnx_bytes(flattened(nodes, (3, 2, 2), constants, opset=18))
    assert refused.value.code in ("unsupported_operator", "batch_dependent"), refused.value


def test_machines_differ_in_sines_by_less_than_what_is_allowed() -> None:
    from models.onnx.constant_rules import _WAVES

    theta = np.linspace(-100, 100, 200_001, dtype=np.float32)
    for operator, exact in (("Sin", np.sin), ("Cos", np.cos)):
        model = graph_of([node(operator, ["x"], ["y"])], (len(theta),), opset=18)
        (found,) = OnnxRuntimeModel(model.SerializeToString(), (len(theta),))(theta[None])
        assert np.abs(found - exact(theta.astype(np.float64))).max() < _WAVES / 4


def share_of(network: Network) -> np.ndarray[Any, Any]:
    (layer,) = (layer for layer in network.layers.values() if isinstance(layer, InexactPairs))
    return layer.share.numpy().reshape(-1)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=examples(10), deadline=None)
def test_no_input_near_the_switching_line_is_off_by_more_than_the_share(seed: int) -> None:
    """The worst of points at and beside the line, to which float32 neighbours are added, and of
    the steps of a climb from them."""
    worst = worst_error(seed)
    assert worst.max() <= 1.0


def test_the_share_is_no_more_than_a_few_times_what_is_found() -> None:
    assert worst_error(0, pairs=400).max() > 0.25


def worst_error(seed: int, pairs: int = 40, rows: int = 400) -> np.ndarray[Any, Any]:
    """Largest error over what is allowed of each pair."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-2 * math.pi, 2 * math.pi, pairs)
    shape, constants = (2 * pairs,), angles(theta, (2 * pairs,))
    model = graph_of(masked(), shape, constants, opset=18)
    network = import_onnx_bytes(flattened(masked(), shape, constants, opset=18))
    share, run = share_of(network), OnnxRuntimeModel(model.SerializeToString(), shape)
    normal = np.stack([constants["s"].reshape(-1), -constants["c"].reshape(-1)], -1)
    along = np.stack([-normal[:, 1], normal[:, 0]], -1).astype(np.float64)
    lengths = 2.0 ** rng.uniform(-3, 3, (rows, pairs, 1)) * rng.choice([-1, 1], (rows, pairs, 1))
    off = rng.choice([0.0, 1e-8, 1e-7, 1e-6, 1.0], (rows, pairs, 1))
    off = off * rng.standard_normal((rows, pairs, 1))
    points = (lengths * (along + off * normal)).astype(np.float32)

    def errors(p: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        flat = np.concatenate([p[..., 0], p[..., 1]], axis=1)
        given = np.stack(np.split(run(flat), 2, axis=1), -1)
        far = np.linalg.norm(given - exact_fold(p, normal), axis=-1)
        reached = np.linalg.norm(exact_fold(p, normal), axis=-1)
        found: np.ndarray[Any, Any] = far / (share * reached)
        return found

    best = errors(points)
    for _ in range(15):
        moved = points + np.spacing(points) * rng.integers(-3, 4, points.shape)
        moved = moved.astype(np.float32)
        found = errors(moved)
        points = np.where((found > best)[..., None], moved, points)
        best = np.maximum(best, found)
    return best


class TwoFolds(nn.Module):
    """HouseHolder_Order_2 of orthogonium 0.0.4, of one pair."""

    def __init__(self, *theta: float) -> None:
        super().__init__()
        self.theta = torch.tensor(theta)

    def forward(self, p: Tensor) -> Tensor:
        turn, (theta0, theta1, theta2) = 2 * math.pi, torch.clamp(self.theta, 0.0, 2 * math.pi)
        x, y = p.split(1, 1)
        angle = (torch.atan2(y, x) - 0.5 * theta0) % turn
        theta3, theta4 = turn - theta1, turn - theta2
        ends = [0.5 * theta1, 0.5 * (theta1 + theta2)]
        ends += [0.5 * (theta1 + theta2 + theta3), 0.5 * (theta1 + theta2 + theta3 + theta4)]
        result, start = torch.zeros_like(p), torch.zeros(())
        for index, (end, by) in enumerate(
            zip(ends, (None, theta0 + theta1, theta2, theta0), strict=True)
        ):
            part = p
            if by is not None:
                cosine, sine = torch.cos(by), torch.sin(by)
                sign = 1.0 if index == 2 else -1.0
                turned = sign * (y * cosine - x * sine)
                part = torch.cat([x * cosine + y * sine, turned], 1)
            result = result + part * torch.logical_and(angle >= start, angle < end)
            start = end
        return result / math.sqrt(2)


def test_two_folds_by_angles_jump_to_0_and_are_refused() -> None:
    """The last sector ends at the float32 number next to 2 pi, to which angles a little below 0 are
    rounded: no sector holds them, and the result is 0 in the place of something as long."""
    module, stream = TwoFolds(0.3, 1.1, 0.6), io.BytesIO()
    axes = {"x": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.ones(2, 2),), stream, dynamo=False, input_names=["x"], dynamic_axes=axes
        )
    angle = 0.15 - np.geomspace(1e-9, 1e-6, 4000)
    lengths = np.random.default_rng(0).uniform(0.5, 2.0, (4000, 1))
    points = (lengths * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)
    (given,) = open_session(stream.getvalue()).run(None, {"x": points})
    found = np.linalg.norm(given, axis=1)
    assert (found == 0.0).any()
    assert found.max() > 0.7
    with pytest.raises(ModelError, match="And") as refused:
        import_onnx_bytes(stream.getvalue())
    assert "HouseHolder" in refused.value.hint
