"""Training of LipConvnets: the losses' terms are what their papers say, estimates of certificates
are near what is proved, and what is trained is certified from its file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.one_lipschitz import SkewConv2d
from tests.workers.training.runs import CPU, config_of, images, radii_of_network_and_file
from workers.training.data import pixels
from workers.training.loop import train
from workers.training.objectives import OBJECTIVES
from workers.training.objectives.lipschitz.soc import logit_annealing
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.trainer import Trainer, build_network
from workers.verification.bounds.crc import SmoothHead, boundary_distances
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.rounding import Rounding

AT = ScheduledWeights.of(0.3, 0.0, 1.0, 7)


def trainer_of(method: str, **options: object) -> Trainer:
    config = config_of(method, options=options)
    return Trainer(config, build_network(config))


def loss_of(trainer: Trainer, x: Tensor, y: Tensor) -> Tensor:
    trainer.graph.refresh()
    method = trainer.config.method
    return OBJECTIVES[method].loss(trainer.graph, x, y, AT, trainer.config)[0]


def labelled(trainer: Trainer, count: int = 12) -> tuple[Tensor, Tensor]:
    """Images and, but for every third one, the network's own answers."""
    x = pixels(images(count).x)
    with torch.no_grad():
        y = trainer.graph.logits(trainer.graph.features(x)).argmax(1)
    y[::3] = (y[::3] + 1) % 10
    return x, y


def test_what_gamma_takes_from_the_loss_is_the_mean_certified_radius() -> None:
    plain, regular = (trainer_of("soc", gamma=gamma) for gamma in (0.0, 0.5))
    x, y = labelled(plain)
    weight = plain.graph.head_weight.detach()
    logits = plain.graph.logits(plain.graph.features(x)).detach()
    distances = torch.cdist(weight.double(), weight.double())[y].clamp_min(1e-6)
    margins = logits.gather(1, y[:, None]) - logits
    # Layers of norm 1 behind pixels over their standard deviation.
    radii = 0.2507 * (margins / distances).scatter(1, y[:, None], torch.inf).amin(1)
    assert bool((radii > 0).any())
    assert bool((radii < 0).any())
    taken = (loss_of(plain, x, y) - loss_of(regular, x, y)).detach()
    assert float(taken) == pytest.approx(0.5 * float(radii.relu().mean()), rel=1e-3)
    assert float(loss_of(plain, x, y).detach()) == pytest.approx(
        float(F.cross_entropy(logits, y)), rel=1e-5
    )


def test_logit_annealing_pulls_no_more_where_the_margin_is_large() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0], [30.0, 0.0]], requires_grad=True)
    y = torch.zeros(3, dtype=torch.long)
    (gradient,) = torch.autograd.grad(logit_annealing(logits, y), logits)
    pulls = gradient.norm(dim=1)
    assert float(pulls[0]) > float(pulls[1]) > 0.0
    assert float(pulls[2]) < 1e-6 * float(pulls[0])
    # Without offset, exponent and temperature of 1 it is cross-entropy.
    p = torch.softmax((logits - torch.tensor([2.0, 0.0])) / 0.75, dim=1)[:, 0]
    expected = (0.75 * (1 - p) ** 5 * -p.log()).mean()
    assert torch.allclose(logit_annealing(logits, y), expected)


def test_emma_in_soc_is_emma() -> None:
    """Without certificate regularisation, on the same network."""
    soc = trainer_of("soc", gamma=0.0, shift="emma")
    emma = replace(soc.config, method="emma", options={})
    x, y = labelled(soc)
    soc.graph.refresh()
    expected, _ = OBJECTIVES["emma"].loss(soc.graph, x, y, AT, emma)
    assert float(loss_of(soc, x, y).detach()) == pytest.approx(float(expected.detach()), rel=1e-3)


def test_curvature_estimates_are_near_the_proved_ones_and_below() -> None:
    """Of the head alone: what training estimates for a pair, and what certifies."""
    trainer = trainer_of("soc-crc", curvature=1.0)
    x, y = labelled(trainer)
    without = trainer_of("soc-crc")
    estimate = float((loss_of(trainer, x, y) - loss_of(without, x, y)).detach())
    smooth = SmoothHead.of(CompiledNetwork.compile(trainer.network.deployed()))
    with torch.no_grad():
        logits = trainer.graph.logits(trainer.graph.features(x))
    others = logits.scatter(1, y[:, None], -torch.inf).topk(9, dim=1).indices
    proved = [
        max(smooth.curvature(label, other), smooth.curvature(other, label))
        for label, row in zip(y.tolist(), others.tolist(), strict=True)
        for other in row
    ]
    assert 0.5 * float(np.mean(proved)) < estimate <= float(np.mean(proved)) * 1.001


def test_the_closed_form_in_training_is_near_the_distance_that_is_certified() -> None:
    plain, regular = (trainer_of("soc-crc", gamma=gamma) for gamma in (0.0, 1.0))
    x, y = labelled(plain)
    mean = float((loss_of(plain, x, y) - loss_of(regular, x, y)).detach())
    graph = plain.graph
    with torch.no_grad():
        values = graph.values(x)
        features = values[graph.steps[-2].sources[0]].double()
    smooth = SmoothHead.of(CompiledNetwork.compile(plain.network.deployed()))
    distances = boundary_distances(smooth, features, y, Rounding.sound(torch.float64))
    certified = float(distances.clamp_min(0.0).mean()) * 0.2507
    assert 0.8 * certified < mean < 1.01 * certified


def test_networks_without_a_softplus_head_have_no_curvature() -> None:
    for method in ("soc", "soc-crc"):
        config = config_of(method, architecture="mnist-small", options={"gamma": 0.0})
        trainer = Trainer(config, build_network(config))
        x, y = labelled(trainer, 6)
        with torch.no_grad():
            logits = trainer.graph.logits(trainer.graph.features(x))
        loss = float(loss_of(trainer, x, y).detach())
        assert loss == pytest.approx(float(F.cross_entropy(logits, y)))


@pytest.mark.parametrize("method", ["soc", "soc-crc"])
def test_what_is_trained_is_certified_from_its_file(method: str) -> None:
    config = config_of(
        method,
        epochs=10,
        optimizer="sgd-normalized",
        learning_rate=0.1,
        weight_decay=5e-4,
        clip_norm=1.0,
        augmentation="none",
    )
    network, history = train(config, images(80), device=CPU)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["validation_accuracy"] >= 0.5
    certified_with = "crc" if method == "soc-crc" else "lipschitz"
    radii_of_network_and_file(network, pixels(images(10).x).numpy(), certified_with)


def test_weight_decay_is_for_weights_that_are_normalised_alone() -> None:
    config = config_of("soc-crc", optimizer="sgd-normalized", learning_rate=0.1, weight_decay=0.5)
    network = build_network(config)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trainer = Trainer(config, network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    skew = {node.name for node in network.nodes if isinstance(network.layer(node.name), SkewConv2d)}
    for name, parameter in network.named_parameters():
        _, layer, part = name.split(".")
        decays = layer in skew and part == "weight"
        expected = before[name] * (0.95 if decays else 1.0)
        assert torch.allclose(parameter.detach(), expected), name
