"""Boxes in training: they hold what they should and are the verifier's; shrinking and statistics of
a batch change what they say they change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.architectures.published import build
from models.layers.base import Layer
from models.layers.kinds import BatchNorm
from tests.workers.training.bounds.graphs import generator
from tests.workers.training.linf.boxes import (
    CONV,
    EPSILON,
    NORM,
    RELU,
    batch,
    config_of,
    graph_of,
    network_of,
    pixels,
    reference_boxes,
    reference_gaps,
)
from workers.training.bounds.box import (
    Box,
    BoxPass,
    Interval,
    largest_gaps,
    pixel_box,
    smallest_gaps,
)
from workers.training.bounds.last_layer import pair_differences
from workers.training.bounds.relaxation import least_values
from workers.training.objectives.linf.relaxed import relaxed_bound
from workers.training.objectives.linf.taps import linked
from workers.training.training_graph import TrainingGraph
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding


@given(seed=st.integers(0, 1000), epsilon=st.floats(0.0, 1.5), batch_norm=st.booleans())
@settings(max_examples=15)
@torch.no_grad()
def test_boxes_and_relaxations_hold_every_point(
    seed: int, epsilon: float, batch_norm: bool
) -> None:
    network = network_of(batch_norm=batch_norm, seed=seed)
    graph, (x, y) = graph_of(network), batch()
    passed = BoxPass(graph)
    features = passed.of(pixel_box(x, epsilon))
    most, least = largest_gaps(graph, features, y), smallest_gaps(graph, features, y)
    worst = relaxed_bound(graph, x, y, epsilon, config_of("sabr")).worst
    worst = worst - worst.gather(1, y[:, None])
    assert bool((worst <= most + 1e-9).all())
    for point in range(20):
        drawn = torch.rand(x.shape, generator=generator(point), dtype=torch.float64)
        moved = (x + (2 * drawn - 1).sign() * epsilon * (drawn if point % 2 else 1)).clamp(0, 1)
        values = graph.values(moved)
        for number, box in passed.boxes.items():
            assert bool((box.lower - 1e-9 <= values[number]).all())
            assert bool((values[number] <= box.upper + 1e-9).all())
        logits = network(moved)
        gaps = logits - logits.gather(1, y[:, None])
        assert bool((least - 1e-9 <= gaps).all())
        assert bool((gaps <= most + 1e-9).all())
        assert bool((gaps <= worst + 1e-9).all())


@pytest.mark.parametrize("batch_norm", [False, True])
@torch.no_grad()
def test_boxes_are_those_of_verification_but_for_rounding(batch_norm: bool) -> None:
    network = network_of(batch_norm=batch_norm)
    graph, (x, _) = graph_of(network), batch()
    ours = BoxPass(graph).of(pixel_box(x, EPSILON))
    radii = torch.full((len(x),), EPSILON, dtype=torch.float64)
    theirs = propagate(
        CompiledNetwork.compile(network),
        Region(x.float(), radii, "linf", True),
        rounding=Rounding.ignored(),
        dtype=torch.float64,
        ball=False,
    )
    assert theirs.lower is not None
    assert theirs.upper is not None
    assert torch.allclose(ours.lower, theirs.lower, atol=1e-6)
    assert torch.allclose(ours.upper, theirs.upper, atol=1e-6)


def test_boxes_are_those_of_matrices_with_signs_apart() -> None:
    network = network_of()
    x, y = batch()
    passed = BoxPass(graph_of(network))
    features = passed.of(pixel_box(x, EPSILON))
    lower, upper = pixels()
    expected = reference_boxes(network, lower.flatten(1), upper.flatten(1))
    before = [passed.boxes[index].lower.flatten(1) for index in (1, 4)]
    for ours, (theirs, _) in zip([*before, features.lower], expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    found = largest_gaps(passed.graph, features, y)
    torch.testing.assert_close(found, reference_gaps(network, lower, upper, y))


def test_a_batch_norm_behind_a_convolution_is_folded_into_it_with_its_gradients() -> None:
    """By the batch's statistics in a step: the same boxes, and the same gradients of the clean
    samples, of weights, scales and shifts."""
    network = network_of(batch_norm=True)
    graph, (x, _) = graph_of(network), batch()
    assert graph.folded == {0: 1}
    parameters = list(network.parameters())[:-2]

    def gradients(*, folds: bool) -> tuple[Interval, list[Tensor]]:
        graph.refresh()
        with graph.by_batch():
            graph.features(x)
            passed = BoxPass(graph)
            if folds:
                box = passed.of(pixel_box(x, EPSILON))
                assert set(passed.boxes) == {0, *range(2, len(graph.steps) + 1)}
            else:
                box = by_steps(graph, pixel_box(x, EPSILON))
        height = (box.lower.square().sum() - 3 * box.upper).sum()
        return box, list(torch.autograd.grad(height, parameters))

    (box, found), (other, expected) = gradients(folds=True), gradients(folds=False)
    torch.testing.assert_close(box.lower, other.lower)
    torch.testing.assert_close(box.upper, other.upper)
    torch.testing.assert_close(found, expected)


def by_steps(graph: TrainingGraph, box: Box) -> Box:
    """A chain's box, step by step and by both ends."""
    for step in graph.steps:
        op = graph.map_at(step, box.lower)
        if op is None:
            box = Box(step.layer(Layer)(box.lower), step.layer(Layer)(box.upper))
        else:
            middle, half = op.interval(box.lower, box.upper)
            box = Box(middle - half, middle + half)
    return box


def test_a_convolution_that_others_read_too_keeps_its_box() -> None:
    """Its batch norm's result is one of two that are added."""
    rows = [
        *({**CONV, "name": "a"}, NORM, {"kind": "add", "from": "a"}, RELU),
        *({"kind": "flatten"}, {"kind": "linear", "out": 4}),
    ]
    network = build({"input": [1, 6, 6], "layers": rows}, generator=generator()).double()
    graph, (x, _) = graph_of(network), batch()
    assert graph.folded == {}
    passed = BoxPass(graph)
    passed.of(pixel_box(x, EPSILON))
    assert set(passed.boxes) == set(range(len(graph.steps) + 1))


def test_in_a_step_boxes_want_the_clean_pass_first() -> None:
    graph, (x, _) = graph_of(network_of(batch_norm=True)), batch()
    with graph.by_batch(), pytest.raises(AssertionError, match="clean pass comes first"):
        BoxPass(graph).of(pixel_box(x, EPSILON))


def test_one_backward_pass_bounds_several_rows_as_it_bounds_each() -> None:
    network = network_of(batch_norm=True)
    graph, (x, y) = graph_of(network), batch()
    passed = BoxPass(graph)
    passed.of(pixel_box(x, EPSILON))
    rows = pair_differences(graph.head_weight, y)
    together = least_values(graph, passed.boxes, rows)
    for row in range(rows.shape[1]):
        alone = least_values(graph, passed.boxes, rows[:, row : row + 1])
        torch.testing.assert_close(together[:, row], alone[:, 0])


def test_shrunk_boxes_lie_in_the_others_and_touch_unstable_neurons_alone() -> None:
    graph, (x, _) = graph_of(network_of()), batch()
    whole, shrunk = BoxPass(graph), BoxPass(graph, shrinkage=0.5)
    whole.of(pixel_box(x, EPSILON))
    shrunk.of(pixel_box(x, EPSILON))
    before, after = whole.boxes[1], shrunk.boxes[2]
    unstable = (before.lower < 0) & (before.upper > 0)
    factor = torch.where(unstable, 0.5, 1.0)
    torch.testing.assert_close(after.upper, factor * whole.boxes[2].upper)
    torch.testing.assert_close(after.lower, whole.boxes[2].lower)
    assert bool(unstable.any())
    assert bool((~unstable & (before.lower > 0)).any())


@torch.no_grad()
def test_in_a_step_everything_sees_the_statistics_of_the_clean_batch() -> None:
    """Of the batch, once, and nothing of it outside the step: the layer's own values stay, until
    the running ones are written."""
    network = network_of(batch_norm=True)
    graph, (x, _) = graph_of(network), batch()
    outside = BoxPass(graph).of(pixel_box(x, 0.0)).middle
    torch.testing.assert_close(outside, graph.features(x))
    with graph.by_batch():
        clean = graph.features(x)
        far = graph.features(1.0 - x)
        torch.testing.assert_close(graph.features(x), clean)
        torch.testing.assert_close(BoxPass(graph).of(pixel_box(x, 0.0)).middle, clean)
    with graph.by_batch():
        assert not torch.allclose(graph.features(1.0 - x), far)
    assert not torch.allclose(clean, outside)
    graph.forget()
    torch.testing.assert_close(BoxPass(graph).of(pixel_box(x, 0.0)).middle, outside)
    layers = [layer for layer in network.modules() if isinstance(layer, BatchNorm)]
    assert all(bool((layer.mean == 0.1).all()) for layer in layers)


def test_a_linked_point_moves_with_the_end_that_it_is_near() -> None:
    """The share of an end falls from 1 to 0 over the near half of the box."""
    lower = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    upper = torch.ones(1, 5, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]], dtype=torch.float64)
    found = linked(points, Box(lower, upper), 0.5)
    torch.testing.assert_close(found.detach(), points)
    down, up = torch.autograd.grad(found.sum(), (lower, upper))
    torch.testing.assert_close(up, torch.tensor([[0.0, 0.0, 0.0, 0.5, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(down, torch.tensor([[1.0, 0.5, 0, 0, 0]], dtype=torch.float64))
