"""CAP's dual in training: the verifier's own bound where nothing is projected, an estimate of it
where something is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.layers.kinds import ReLU
from models.network import Network
from tests.workers.training.bounds.graphs import generator
from tests.workers.training.linf.boxes import (
    batch,
    config_of,
    graph_of,
    network_of,
    residual_of,
)
from workers.training.bounds.box import Box
from workers.training.bounds.latent import (
    Lines,
    Widths,
    activations_of,
    draw_cauchy,
    draw_normal,
)
from workers.training.config import TrainingError
from workers.training.objectives import OBJECTIVES, ScheduledWeights
from workers.training.objectives.linf.cap import dual_gaps
from workers.verification.bounds.crown import final_forms, refined_pass
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

REACH = {"linf": 0.03, "l2": 0.2}


def samples() -> tuple[Tensor, Tensor]:
    """Pixels that float32 holds, and labels."""
    x, y = batch()
    return x.float().double(), y


def gaps_of(network: Network, norm: str, projections: int, epsilon: float | None = None) -> Tensor:
    x, y = samples()
    config = replace(config_of("cap"), norm=norm)
    at = ScheduledWeights.of(0.0, 0.0, 1.0)
    reach = REACH[norm] if epsilon is None else epsilon
    return dual_gaps(graph_of(network), x, y, reach, at, config, projections)


#: A chain, and one with branches that are added again.
NETWORKS = [network_of, residual_of]


def zonotope_gaps(network: Network, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Largest f_j - f_y, [batch, classes], of the zonotope with a row for every error term: of one
    sample after the other, by nothing but the layers themselves."""
    reach, found = REACH[norm], []
    for pixels, label in zip(x, y, strict=True):
        low, high = pixels - reach, pixels + reach
        if norm == "linf":
            low, high = low.clamp(0, 1), high.clamp(0, 1)
        count = pixels.numel()
        rows = torch.zeros(1, count, count, dtype=torch.float64)
        rows[0] = torch.diag(((high - low) / 2).flatten())
        # Of each value: its centre and the images of all terms so far, those of the pixels first.
        values = {"input": ((low + high) / 2, rows[0].unflatten(1, pixels.shape))}
        for node in network.nodes:
            layer, sources = network.layer(node.name), [values[name] for name in node.inputs]
            most = max(len(images) for _, images in sources)
            centres = [centre for centre, _ in sources]
            images = [
                torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
                for _, part in sources
            ]
            if isinstance(layer, ReLU):
                size = images[0].abs().sum(0)
                if norm == "l2":
                    size = images[0][:count].norm(dim=0) + images[0][count:].abs().sum(0)
                lines = Lines.over(centres[0], size)
                fresh = torch.diag(lines.middle.flatten()).unflatten(1, size.shape)
                image = torch.cat([lines.slope * images[0], fresh])
                values[node.name] = (lines.slope * centres[0] + lines.middle, image)
                continue
            nothing = layer(*[torch.zeros_like(centre)[None] for centre in centres])
            centre = layer(*[centre[None] for centre in centres])[0]
            values[node.name] = (centre, layer(*images) - nothing)
        centre, image = values[network.nodes[-1].name]
        parts = image - image[:, label, None]
        size = parts.abs().sum(0)
        if norm == "l2":
            size = parts[:count].norm(dim=0) + parts[count:].abs().sum(0)
        found.append(centre - centre[label] + size)
    return torch.stack(found)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("made", NETWORKS)
@torch.no_grad()
def test_without_projections_it_is_the_zonotope_of_all_terms(
    made: Callable[..., Network], norm: str, seed: int
) -> None:
    network = made(seed=seed)
    expected = zonotope_gaps(network, *samples(), norm)
    torch.testing.assert_close(gaps_of(network, norm, 0), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_without_projections_it_is_the_verifiers_cap_bound(norm: str, seed: int) -> None:
    network = network_of(seed=seed)
    found = -gaps_of(network, norm, 0)
    x, y = samples()
    reach = torch.full((len(x),), REACH[norm], dtype=torch.float64)
    # l2 is not cut with [0, 1] in the papers' training.
    region = Region(x, reach, norm, norm == "linf")
    arithmetic = (Rounding.ignored(), torch.float64)
    compiled = CompiledNetwork.compile(network)
    with torch.no_grad():
        backward, boxes = refined_pass(compiled, region, y, *arithmetic, "cap")
        verified = final_forms(backward, y, boxes)
    others = torch.ones_like(found, dtype=torch.bool).scatter(1, y[:, None], False)
    # Elsewhere boxes alone decide, and no row of the dual is looked at.
    by_rows = others & (verified > boxes)
    assert by_rows.sum() > 5
    torch.testing.assert_close(found[by_rows], verified[by_rows], atol=1e-6, rtol=1e-6)
    assert bool((found <= verified + 1e-6)[others & (boxes <= 0)].all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("made", NETWORKS)
def test_no_allowed_input_is_beyond_the_exact_dual(made: Callable[..., Network], norm: str) -> None:
    network, (x, y) = made(), samples()
    epsilon = 4 * REACH[norm]
    gaps = gaps_of(network, norm, 0, epsilon).detach()
    for seed in range(20):
        step = torch.randn(x.shape, generator=generator(seed), dtype=torch.float64)
        if norm == "linf":
            moved = (x + epsilon * step.sign()).clamp(0, 1)
        else:
            moved = x + epsilon * step / step.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        logits = network(moved)
        assert bool((logits - logits.gather(1, y[:, None]) <= gaps + 1e-9).all())


@pytest.mark.parametrize("ball", [False, True])
@pytest.mark.parametrize("made", NETWORKS)
def test_many_projections_come_near_the_exact_widths(
    made: Callable[..., Network], ball: bool
) -> None:
    """Before the last ReLU: the pixels' set is mixed twice there, and the first ReLU's once; of
    branches the terms of one set meet again."""
    graph, (x, _) = graph_of(made()), samples()
    reach = REACH["l2"] if ball else REACH["linf"]
    box = Box(x - reach, x + reach)
    drawn = generator(3)

    def draw(number: int, shape: tuple[int, ...]) -> Tensor:
        return (draw_normal if ball and number == 0 else draw_cauchy)(drawn, x, shape)

    found, exact_lines = [], dict[int, Lines]()
    with torch.no_grad():
        for exact in (math.inf, 0.0):
            widths = Widths(graph, box, draw, 3000, exact=exact, ball=ball)
            *before, last = activations_of(graph, sums=True)
            for index in before:
                # Those of the exact walk: else the boxes before them would differ too.
                lines = widths.until(index)
                exact_lines.setdefault(index, lines)
                widths.through(exact_lines[index])
            found.append(widths.until(last))
    sizes = [lines.upper - lines.lower for lines in found]
    ratios = sizes[1] / sizes[0]
    assert ratios.mean().item() == pytest.approx(1.0, abs=0.04)
    assert (ratios - 1.0).abs().max().item() < 0.2


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("projections", [0, 4])
@pytest.mark.parametrize("made", NETWORKS)
def test_a_samples_gaps_are_those_that_it_has_alone(
    made: Callable[..., Network], norm: str, projections: int
) -> None:
    """Devices that share a batch compute what one does."""
    graph, (x, y) = graph_of(made()), samples()
    config, at = replace(config_of("cap"), norm=norm), ScheduledWeights.of(0.0, 0.0, 1.0, 3)
    whole, first, rest = (
        dual_gaps(graph, x[rows], y[rows], REACH[norm], at, config, projections)
        for rows in (slice(None), slice(3), slice(3, None))
    )
    torch.testing.assert_close(torch.cat([first, rest]), whole)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("made", NETWORKS)
def test_gradients_are_finite(made: Callable[..., Network], norm: str, epsilon: float) -> None:
    network = made()
    with torch.no_grad():
        # A neuron that nothing leads to, and one that nothing reads.
        weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
        weights[0][0] = 0.0
        weights[-1][:, 0] = 0.0
    config = replace(config_of("cap", projections=3), norm=norm)
    at = ScheduledWeights.of(epsilon, 0.0, 1.0, 5)
    loss, bounded = OBJECTIVES["cap"].loss(graph_of(network), *samples(), at, config)
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert bool(torch.isfinite(bounded.worst).all())


def test_other_networks_are_refused_before_the_run() -> None:
    graph = graph_of(network_of(batch_norm=True))
    with pytest.raises(TrainingError, match="CAP trains networks"):
        OBJECTIVES["cap"].stages(graph, config_of("cap"))
