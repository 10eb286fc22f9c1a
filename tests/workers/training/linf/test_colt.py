"""COLT's training: the latent set, its points and its estimated widths, stages, what is frozen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.architectures.published import build
from models.network import Network
from tests.workers.training.runs import CPU, config_of, images
from tests.workers.verification.certification import certify
from workers.training.bounds.box import Box
from workers.training.bounds.latent import (
    Lines,
    Widths,
    activations_of,
    draw_cauchy,
    latent_points,
    term_shapes,
)
from workers.training.config import TrainingConfig, TrainingError
from workers.training.data import seeded
from workers.training.loop import train
from workers.training.objectives.linf.colt import LatentSets, Stage, colt, estimated_bound
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.trainer import Trainer
from workers.training.training_graph import TrainingGraph
from workers.verification.answers import label_leads
from workers.verification.results import SampleResults

TINY: dict[str, object] = {
    "input": [1, 6, 6],
    "layers": [
        {"kind": "normalize", "mean": [0.4], "std": [0.5]},
        {"kind": "conv2d", "out": 3, "kernel": 3, "stride": 2, "padding": 1},
        {"kind": "relu"},
        {"kind": "conv2d", "out": 4, "kernel": 3, "padding": 1},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "linear", "out": 8},
        {"kind": "relu"},
        {"kind": "linear", "out": 10},
    ],
}


def trained(architecture: dict[str, object]) -> Network:
    network = build(architecture, generator=seeded(0, 1, 0))
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def graph_of() -> TrainingGraph:
    return TrainingGraph(trained(TINY), power_steps=1, generator=seeded(0, 2, 0))


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 6, 6, generator=generator), torch.arange(count) % 10


def boxed(x: Tensor, epsilon: float) -> Box:
    return Box((x - epsilon).clamp_min(0.0), (x + epsilon).clamp_max(1.0))


def walked(graph: TrainingGraph, box: Box, projections: int) -> tuple[Widths, list[Lines]]:
    draw = lambda number, shape: draw_cauchy(seeded(7, number, 0), box.lower, shape)  # noqa: E731
    widths = Widths(graph, box, draw, projections)
    lines = []
    for place in activations_of(graph):
        lines.append(widths.until(place))
        widths.through(lines[-1])
    return widths, lines


def exact_terms(
    graph: TrainingGraph, box: Box, lines: list[Lines], last: int
) -> tuple[Tensor, Tensor]:
    """(centre, all terms [terms, *shape]) of one sample: the points are affine in their terms."""
    total = sum(torch.Size(shape).numel() for shape in term_shapes(graph, lines))
    one = Box(box.lower[:1], box.upper[:1])
    some = [replace(line, slope=line.slope[:1], middle=line.middle[:1]) for line in lines]
    centre = latent_points(graph, one, some, torch.zeros(1, total), last)
    ends = latent_points(
        graph,
        Box(one.lower.expand(total, -1, -1, -1), one.upper.expand(total, -1, -1, -1)),
        some,
        torch.eye(total),
        last,
    )
    return centre[0], ends - centre


@torch.no_grad()
def test_with_many_projections_the_widths_are_those_of_the_terms() -> None:
    """Exact before the second mixing map, estimated behind it."""
    graph, (x, _) = graph_of(), batch(2)
    box = boxed(x, 0.1)
    _, lines = walked(graph, box, 4000)
    places = activations_of(graph)
    for number, place in enumerate(places):
        centre, terms = exact_terms(graph, box, lines[:number], place - 1)
        width = terms.abs().sum(0)
        found = 0.5 * (lines[number].upper - lines[number].lower)[0]
        assert torch.allclose(
            0.5 * (lines[number].upper + lines[number].lower)[0], centre, atol=1e-5
        )
        assert torch.allclose(found, width, rtol=0.15 if number else 1e-4, atol=1e-5)


def test_estimates_reach_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With numbers that make every set a point the estimate believes all; a certificate does not
    ask it."""
    graph, config = graph_of(), stage_config(epsilon=0.3)
    x, _ = batch(3)
    network = graph.network.deployed().eval()

    def certificates() -> list[SampleResults]:
        return [
            certify(
                network,
                x.numpy(),
                ("1/100", "1/20", "1/3"),
                norm="linf",
                method=name,
                radius=False,
                attack=None,
            )
            for name in ("zonotope", "colt")
        ]

    before = certificates()
    lying = lambda generator, like, shape: torch.zeros(shape).to(like)  # noqa: E731
    monkeypatch.setitem(estimated_bound.__globals__, "draw_cauchy", lying)
    with torch.no_grad():
        labels = graph.logits(graph.features(x)).argmax(1)
        claimed = label_leads(estimated_bound(graph, x, labels, 1 / 3, config).worst, labels)
    for first, second in zip(before, certificates(), strict=True):
        assert np.array_equal(first.certified, second.certified)
        assert first.certified[:, 0].any()
        assert int(first.certified[:, 2].sum()) < int(claimed.sum())


@torch.no_grad()
def test_the_latent_set_holds_the_image_of_the_box_where_widths_are_exact() -> None:
    """For every input there are terms of the first ReLU that give its value."""
    graph, (x, _) = graph_of(), batch(3)
    box = boxed(x, 0.1)
    _, lines = walked(graph, box, 10)
    place = activations_of(graph)[0]
    for seed in range(5):
        share = torch.rand(x.shape, generator=seeded(seed, 3, 0)) * 2 - 1
        inputs = box.middle + box.half * share
        value = inputs
        for step in graph.steps[: place + 1]:
            value = graph.run(step, value)
        total = lines[0].middle[0].numel()
        pixels = torch.cat([share.flatten(1), torch.zeros(3, total)], 1)
        without = latent_points(graph, box, lines[:1], pixels, place)
        # |relu(z) - slope z - middle| <= middle: the term that it takes is in [-1, 1].
        assert bool(((value - without).abs() <= lines[0].middle + 1e-5).all())


def stage_config(**changes: object) -> TrainingConfig:
    options = {"attack_steps": 3, "projections": 8, "l1": 1e-4, "stability": 0.01}
    return config_of("colt", architecture=TINY, norm="linf", options=options, **changes)


@pytest.mark.parametrize(("progress", "frozen"), [(0.2, 0), (0.5, 3), (0.9, 5)])
def test_what_lies_before_the_adversary_gets_no_gradient(progress: float, frozen: int) -> None:
    graph, config = graph_of(), stage_config()
    x, y = batch(4)
    at = replace(ScheduledWeights.of(0.05, 0.0, 0.0, step=3), progress=progress)
    loss, found = colt(graph, x, y, at, config)
    loss.backward()
    for place, node in enumerate(graph.network.nodes):
        for parameter in graph.network.layer(node.name).parameters():
            assert (parameter.grad is None) == (place < frozen), node.name
    assert found.logits.shape == found.worst.shape == (4, 10)


def test_the_attack_raises_the_loss_is_repeatable_and_stays_in_its_set() -> None:
    graph, config = graph_of(), stage_config()
    x, y = batch(6)
    for progress in (0.34, 0.9):
        at = replace(ScheduledWeights.of(0.1, 0.0, 0.0, step=5), progress=progress)
        first, second = (colt(graph, x, y, at, config)[1].worst for _ in range(2))
        assert torch.equal(first, second)
        other = colt(graph, x, y, replace(at, step=6), config)[1].worst
        assert not torch.equal(first, other)
        stage = Stage.at(graph, config, progress)
        sets = LatentSets(graph, y, boxed(x, 0.1), at, config, stage)
        points = sets.attacked(stage.attacked, 0)
        shapes = term_shapes(graph, sets.lines)
        total = sum(torch.Size(shape).numel() for shape in shapes)
        last = stage.places[stage.attacked]
        middle = latent_points(graph, sets.box, sets.lines, torch.zeros(6, total), last)
        losses = [
            torch.nn.functional.cross_entropy(sets.logits(p, last + 1), y).detach()
            for p in (middle, points)
        ]
        assert bool(losses[1] > losses[0])


def test_the_stages_begin_with_an_optimiser_that_remembers_nothing() -> None:
    config = stage_config(optimizer="sgd", learning_rate=0.01, epochs=3)
    trainer = Trainer(config, trained(TINY))
    assert trainer.stages == 3
    x, y = batch(4)
    x = (x * 255).to(torch.uint8).float() / 255
    first = [p.clone() for p in trainer.parameters]
    moved = []
    for step in range(9):
        trainer.train_on(x, y, step / 9, step)
        moved.append(
            [not torch.equal(a, b) for a, b in zip(first, trainer.parameters, strict=True)]
        )
        first = [p.clone() for p in trainer.parameters]
    # Weight and bias of four layers; those that are frozen do not even drift.
    assert all(all(row) for row in moved[1:3])
    assert all(row == [False] * 2 + [True] * 6 for row in moved[3:6])
    assert all(row == [False] * 4 + [True] * 4 for row in moved[6:9])


def test_progress_says_the_stage() -> None:
    told: list[str] = []
    config = config_of("colt", norm="linf", epochs=3, batch_size=10)
    train(config, images(40), device=CPU, progress=lambda done, total, text: told.append(text))
    assert any(text.startswith("stage 1 of 3, epoch 1 of 3") for text in told)
    assert any(text.startswith("stage 3 of 3, epoch 3 of 3") for text in told)


def dense(*rows: dict[str, object]) -> dict[str, object]:
    flatten, last = {"kind": "flatten"}, {"kind": "linear", "out": 10}
    return {"input": [1, 6, 6], "layers": [flatten, *rows, last]}


LINEAR, RELU = {"kind": "linear", "out": 8}, {"kind": "relu"}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        (dense(), {}),
        (dense(LINEAR, {"kind": "batch-norm"}, RELU), {}),
        (dense(LINEAR, {"kind": "maxmin"}), {}),
        (dense(LINEAR, RELU), {"latent_layers": 2}),
    ],
)
def test_what_colt_does_not_train_is_refused_before_it_begins(
    architecture: dict[str, object], options: dict[str, object]
) -> None:
    network = trained(architecture)
    config = replace(stage_config(), architecture=architecture, options=options)
    with pytest.raises(TrainingError) as caught:
        Trainer(config, network)
    assert caught.value.code == "unsupported_architecture"
    assert caught.value.field
