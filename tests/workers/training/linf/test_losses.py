"""Each loss of the IBP family against its formula in float64, and at the ends of its options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.architectures.published import build
from models.network import Network
from tests.workers.training.bounds.graphs import generator
from tests.workers.training.linf.boxes import (
    EPSILON,
    affine,
    batch,
    clean_loss,
    config_of,
    cross_entropies,
    graph_of,
    loss_of,
    network_of,
    pixels,
    reference_boxes,
    reference_gaps,
)
from workers.training.bounds.box import BoxPass, largest_gaps, pixel_box, smallest_gaps
from workers.training.config import TrainingError
from workers.training.objectives import ScheduledWeights
from workers.training.objectives.linf.attack import attacked_pixels
from workers.training.objectives.linf.crown_ibp import fused_loss
from workers.training.objectives.linf.sabr import small_box
from workers.training.objectives.linf.taps import cut_of

METHODS = ["ibp", "crown-ibp", "sabr", "taps", "staps", "mtl-ibp", "cc-ibp", "exp-ibp"]
AT = ScheduledWeights.of(EPSILON, 0.0, 1.0)
ATTACK = {"attack_steps": 3, "attack_restarts": 2}


def interval_loss(network: Network, y: Tensor) -> Tensor:
    """IBP's, of each sample."""
    return cross_entropies(reference_gaps(network, *pixels(), y))


def attacked_gaps(network: Network, **options: object) -> Tensor:
    """At the points of the attack in the whole box."""
    x, y = batch()
    reach = pixel_box(x, EPSILON * float(options.pop("attack_scale", 1.0)))  # type: ignore[arg-type]
    points = attacked_pixels(graph_of(network), x, y, reach, AT, config_of("sabr", **options))
    logits = network(points)
    return logits - logits.gather(1, y[:, None])


@pytest.mark.parametrize("method", METHODS)
def test_the_clean_loss_counts_by_its_weight(method: str) -> None:
    """kappa CE(clean) + (1 - kappa) robust, for every method; with kappa = 1 it is all."""
    network = network_of()
    robust, mixed, clean = (
        loss_of(graph_of(network), method, kappa=kappa, **ATTACK) for kappa in (0.0, 0.3, 1.0)
    )
    torch.testing.assert_close(clean, clean_loss(network))
    torch.testing.assert_close(mixed, 0.3 * clean_loss(network) + 0.7 * robust)


def test_ibp_is_the_cross_entropy_of_the_worst_logits() -> None:
    network = network_of()
    _, y = batch()
    torch.testing.assert_close(loss_of(graph_of(network), "ibp"), interval_loss(network, y).mean())


def test_weights_and_the_growth_of_boxes_are_regularised() -> None:
    """Shi et al. 2021: while epsilon grows to twice what it is, half of both counts; then none."""
    network = network_of()
    plain = loss_of(graph_of(network), "ibp", epsilon=EPSILON / 2)
    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    by_l1 = loss_of(graph_of(network), "ibp", epsilon=EPSILON / 2, l1=0.01)
    torch.testing.assert_close(by_l1 - plain, 0.01 * sum(weight.abs().sum() for weight in weights))
    lower, upper = (ends.flatten(1) for ends in pixels(EPSILON / 2))
    boxes = reference_boxes(network, lower, upper)[:-1]
    expected = torch.zeros((), dtype=torch.float64)
    for low, high in boxes:
        expected += (0.9 - (upper - lower).mean() / (high - low).mean()).relu() / 0.9
        centre = (low + high) / 2
        squares = (centre - centre.mean()) ** 2
        for values in (centre, squares):
            active, inactive = values[low > 0].sum(), values[high < 0].sum().abs()
            ratio = (active / inactive).item()
            expected += max(0.0, 0.9 - min(ratio, 1 / ratio)) / 0.9
    growth = {"regularization": 0.7, "regularization_tolerance": 0.9}
    found = loss_of(graph_of(network), "ibp", epsilon=EPSILON / 2, **growth)
    assert expected.item() > 0.0
    torch.testing.assert_close(found - plain, 0.7 * 0.5 * expected / len(boxes))
    torch.testing.assert_close(
        loss_of(graph_of(network), "ibp", **growth), loss_of(graph_of(network), "ibp")
    )


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_losses_and_regularisers_are_the_same_with_a_batch_norm_folded(method: str) -> None:
    losses = []
    for folds in (True, False):
        graph = graph_of(network_of(batch_norm=True))
        assert graph.folded
        if not folds:
            graph.folded.clear()
            graph._before.clear()
        losses.append(loss_of(graph, method, epsilon=EPSILON / 2, regularization=0.7))
    torch.testing.assert_close(*losses)


def test_crown_ibp_bounds_the_worst_loss_and_is_ibp_where_beta_is_one() -> None:
    network = network_of()
    x, y = batch()
    for seed in range(3):
        drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).double()
        low, high = pixels()
        logits = network(low + drawn * (high - low))
        gaps = logits - logits.gather(1, y[:, None])
        for beta in (0.0, 0.5, 1.0):
            bounded = loss_of(graph_of(network), "crown-ibp", beta=beta)
            assert cross_entropies(gaps).mean().item() <= bounded.item()
    intervals = interval_loss(network, y).mean()
    torch.testing.assert_close(loss_of(graph_of(network), "crown-ibp", beta=1.0), intervals)
    relaxed = loss_of(graph_of(network), "crown-ibp")
    assert relaxed.item() != pytest.approx(intervals.item())


def test_the_fused_loss_is_the_chord_s_bound() -> None:
    """Lower rows, chord by chord: log(sum_j t_j + min over the lines below s . g)."""
    network = network_of()
    graph, (x, y) = graph_of(network), batch()
    passed = BoxPass(graph)
    features = passed.of(pixel_box(x, EPSILON))
    least, most = smallest_gaps(graph, features, y), largest_gaps(graph, features, y)
    found = fused_loss(graph, passed, least, most, y, 0.0)
    matrices = affine(network)
    boxes = reference_boxes(network, *(ends.flatten(1) for ends in pixels()))[:-1]
    low, high = (ends.flatten(1) for ends in pixels())
    for sample, label in enumerate(y.tolist()):
        slopes = torch.zeros(4, dtype=torch.float64)
        total = torch.ones((), dtype=torch.float64)
        for j in range(4):
            if j != label:
                a, b = least[sample, j], most[sample, j]
                slopes[j] = (b.exp() - a.exp()) / (b - a)
                total = total + a.exp() - slopes[j] * a
        # Upper line of s . (f - f_y), neuron by neuron from the back.
        matrix, bias = matrices[-1]
        row, constant = slopes @ (matrix - matrix[label]), slopes @ (bias - bias[label])
        for (weight, shift), (lower, upper) in zip(
            reversed(matrices[:-1]), reversed(boxes), strict=True
        ):
            ends = zip(lower[sample].tolist(), upper[sample].tolist(), strict=True)
            for neuron, (lo, up) in enumerate(ends):
                if lo < 0 < up and row[neuron] > 0:
                    constant = constant - row[neuron] * up * lo / (up - lo)
                    row[neuron] = row[neuron] * up / (up - lo)
                elif (lo < 0 < up and up <= -lo) or up <= 0:
                    row[neuron] = 0.0
            constant, row = constant + row @ shift, row @ weight
        highest = row.clamp_min(0) @ high[sample] + row.clamp_max(0) @ low[sample]
        torch.testing.assert_close(found[sample], (total + constant + highest).log())


def test_sabr_is_ibp_on_a_small_box_inside_the_large_one() -> None:
    network = network_of()
    graph, (x, y) = graph_of(network), batch()
    config = config_of("sabr", subselection_ratio=0.25, **ATTACK)
    found, (low, high) = small_box(graph, x, y, AT, config), pixels()
    torch.testing.assert_close(found.half, 0.25 * (high - low) / 2)
    assert bool((low - 1e-12 <= found.lower).all())
    assert bool((found.upper <= high + 1e-12).all())
    expected = cross_entropies(reference_gaps(network, found.lower, found.upper, y)).mean()
    loss = loss_of(graph, "sabr", subselection_ratio=0.25, **ATTACK)
    torch.testing.assert_close(loss, expected)
    shrunk = loss_of(graph, "sabr", subselection_ratio=0.25, relu_shrinkage=0.5, **ATTACK)
    assert shrunk.item() != pytest.approx(loss.item(), rel=1e-3)


def test_with_a_ratio_of_one_sabr_is_ibp_and_staps_is_taps() -> None:
    graph = graph_of(network_of())
    whole = loss_of(graph, "sabr", subselection_ratio=1.0, **ATTACK)
    torch.testing.assert_close(whole, loss_of(graph, "ibp"))
    whole = loss_of(graph, "staps", subselection_ratio=1.0, **ATTACK)
    torch.testing.assert_close(whole, loss_of(graph, "taps", **ATTACK))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_between_attack_and_bounds(alpha: float) -> None:
    """MTL-IBP weighs losses, CC-IBP gaps, Exp-IBP logarithms of losses; with alpha 0 all are the
    attack's loss, with alpha 1 all are IBP's."""
    network = network_of()
    graph, (_, y) = graph_of(network), batch()
    bounded = reference_gaps(network, *pixels(), y)
    gaps = attacked_gaps(network, attack_scale=1.5, **ATTACK)
    box, point = cross_entropies(bounded), cross_entropies(gaps)
    expected = {
        "mtl-ibp": alpha * box + (1 - alpha) * point,
        "cc-ibp": cross_entropies(alpha * bounded + (1 - alpha) * gaps),
        "exp-ibp": box**alpha * point ** (1 - alpha),
    }
    for method, losses in expected.items():
        loss = loss_of(graph, method, alpha=alpha, attack_scale=1.5, **ATTACK)
        torch.testing.assert_close(loss, losses.mean())


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_is_repeatable_from_seed_and_step(method: str, batch_norm: bool) -> None:
    """Other numbers are drawn in another step, by those methods that draw any."""
    losses = []
    for step in (3, 3, 4):
        graph = graph_of(network_of(batch_norm=batch_norm))
        with graph.by_batch():
            loss = loss_of(graph, method, step=step, subselection_ratio=0.5, **ATTACK)
        losses.append(loss.item())
    assert losses[0] == losses[1]
    assert (losses[0] == losses[2]) == (method in ("ibp", "crown-ibp"))


def test_an_attack_climbs_and_stays_in_its_box() -> None:
    network = network_of()
    x, y = batch()
    box = pixel_box(x, EPSILON)
    heights = []
    for steps, restarts in ((0, 1), (8, 1), (8, 4)):
        config = config_of("sabr", attack_steps=steps, attack_restarts=restarts)
        points = attacked_pixels(graph_of(network), x, y, box, AT, config)
        assert bool(((box.lower <= points) & (points <= box.upper)).all())
        assert not points.requires_grad
        heights.append(torch.nn.functional.cross_entropy(network(points), y, reduction="none"))
    assert bool((heights[1] > heights[0]).all())
    # More starts are never worse: the first of them is the same.
    assert bool((heights[2] >= heights[1] - 1e-12).all())


def test_taps_multiplies_attack_and_bounds_and_weighs_the_gradient_of_one() -> None:
    """With the whole network attacked the latent box is the pixels', and a class of its own is
    attacked in each search: the product is at most IBP's loss squared. The weight changes nothing
    but the gradient."""
    network = network_of()
    _, y = batch()
    options = {"attack_steps": 6, "attacked_activations": 2}
    one, four = (
        loss_of(graph_of(network), "taps", gradient_weight=weight, **options)
        for weight in (1.0, 4.0)
    )
    torch.testing.assert_close(one, four)
    box = interval_loss(network, y)
    point = cross_entropies(attacked_gaps(network, attack_steps=6))
    lowest, highest = (0.95 * box * point).mean(), (box * box).mean()
    assert lowest.item() <= one.item() <= highest.item()
    head = network.parameters()
    weight = list(head)[-2]
    first, second = (torch.autograd.grad(loss, weight)[0] for loss in (one, four))
    assert not torch.allclose(first, second)
    # d(a b) = b da + a db, and the weight is da's: three times b da is the difference.
    losses = loss_of(graph_of(network), "taps", gradient_weight=7.0, **options)
    (third,) = torch.autograd.grad(losses, weight)
    torch.testing.assert_close(third - second, second - first)


def test_the_network_is_cut_before_the_attacked_activations() -> None:
    graph = graph_of(network_of())
    assert [cut_of(graph, attacked) for attacked in (0, 1, 2, 9)] == [5, 2, 0, 0]


def test_a_network_that_cannot_be_cut_is_refused() -> None:
    rows = [
        {"kind": "flatten", "name": "pixels"},
        {"kind": "linear", "out": 36},
        {"kind": "relu"},
        {"kind": "linear", "out": 36},
        {"kind": "relu"},
        {"kind": "add", "from": "pixels"},
        {"kind": "linear", "out": 4},
    ]
    network = build({"input": [1, 6, 6], "layers": rows}, generator=generator(0)).double()
    with pytest.raises(TrainingError) as caught:
        loss_of(graph_of(network), "taps", attacked_activations=1)
    assert caught.value.code == "unsupported_architecture"
    assert caught.value.field == "recipe.options.attacked_activations"
