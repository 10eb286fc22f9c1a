"""Training of a one-hidden-layer softplus head by its curvature (CRC; Singla and Feizi 2022,
arXiv:2211.08453; 2020, arXiv:2006.00731).

f_j(h) = z_y - z_j has a Hessian between -m I and M I, so that within r of h it falls by at most
|grad f_j| r + m r^2 / 2. In training m and M come from a few power steps, which are LOWER
estimates, and only the nearest classes are looked at; what is certified is every class, with
curvatures that are proved (``workers.verification.bounds.crc``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.activations import Softplus
from models.layers.affine import Linear
from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, global_ball, l2_radius
from workers.training.objectives.lipschitz.soc import LOSSES
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "curvature_ball", "soc_crc"]

#: The nearest other classes that are looked at.
COMPETITORS = 9
#: Power steps of a pair's curvature in a training step, each from a new direction, and for the
#: estimate on validation samples.
POWER_STEPS, VALIDATION_STEPS = 2, 20
#: Purpose of the random numbers.
DIRECTION = 0
_TINY = 1e-12


@dataclass(frozen=True)
class _Pairs:
    """Boundaries between the label and its nearest classes.

    logits [batch, classes]; other [batch, k]: the classes; margin, steep [batch, k]: z_y - z_j and
    |grad f_j|; falling, rising [batch, k]: m and M; reach: the Lipschitz constant before the head.
    """

    logits: Tensor
    other: Tensor
    margin: Tensor
    steep: Tensor
    falling: Tensor
    rising: Tensor
    reach: Tensor

    def bounded(self, radius: float | Tensor) -> Bounded:
        """Upper estimates of the nearest classes' logits within ``radius`` of the pixels."""
        move = self.reach * radius
        rise = self.steep * move + 0.5 * self.falling * move.square()
        return Bounded(self.logits, self.logits.scatter_add(1, self.other, rise))

    def radii(self) -> Tensor:
        """The closed form (sqrt(g^2 + 2 m f) - g) / m of the distance, without its cancellation, in
        pixels: [batch], 0 where the label does not lead."""
        margin = self.margin.relu()
        root = (self.steep.square() + 2.0 * self.falling * margin + _TINY).sqrt()
        distance: Tensor = (2.0 * margin / (self.steep + root)).amin(1)
        return distance / self.reach


def _pairs(
    graph: TrainingGraph, x: Tensor, y: Tensor, generator: torch.Generator, steps: int
) -> _Pairs | None:
    """The curvatures by ``steps`` power steps from a random direction; None where the network does
    not end in dense, softplus, dense."""
    if len(graph.steps) < 2:
        return None
    dense, activation = graph.steps[-2:]
    layer, smooth = dense.op, activation.op
    in_a_row = activation.sources == (len(graph.steps) - 1,)
    if not (in_a_row and isinstance(layer, Linear) and isinstance(smooth, Softplus)):
        return None
    values = graph.values(x)
    first, head = graph.weights[dense.name][0], graph.head_weight
    logits = graph.logits(values[-1].to(x.dtype))
    others = logits.detach().scatter(1, y[:, None], -torch.inf)
    other = others.topk(min(COMPETITORS, logits.shape[1] - 1), dim=1).indices
    slopes = torch.sigmoid(smooth.beta * values[-2].to(x.dtype))
    gradients = ((head[y][:, None] - head[other]) * slopes[:, None]) @ first
    start = torch.randn(first.shape[1], generator=generator).to(first)
    # Pairs of classes that the batch holds several times are computed once.
    once, places = torch.unique(y[:, None] * len(head) + other, return_inverse=True)
    a = head[once // len(head)] - head[once % len(head)]
    quarter = 0.25 * smooth.beta
    falling, rising = (
        quarter * _largest(first, weights, start, steps)[places]
        for weights in ((-a).relu(), a.relu())
    )
    return _Pairs(
        logits,
        other,
        logits.gather(1, y[:, None]) - logits.gather(1, other),
        (gradients.square().sum(2) + _TINY).sqrt(),
        falling,
        rising,
        graph.lipschitz(dense.sources[0]),
    )


def _largest(first: Tensor, weights: Tensor, start: Tensor, steps: int) -> Tensor:
    """Estimates of the largest eigenvalues of W1^T diag(weights) W1, weights [pairs, hidden] >= 0,
    with a gradient through the last product: [pairs]."""
    with torch.no_grad():
        vector = start.expand(len(weights), -1)
        for _ in range(steps):
            image = (F.normalize(vector, dim=1) @ first.T) * weights
            vector = image @ first
        vector = F.normalize(vector, dim=1)
    result: Tensor = ((vector @ first.T).square() * weights).sum(1)
    return result


def curvature_ball(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """f_j + |grad| r + m r^2 / 2 for the nearest classes; without such a head ``global_ball``."""
    if reference is None:
        reference = graph.logits(graph.features(x)).argmax(1)
    generator = ScheduledWeights.of(0.0, 0.0, 0.0).generator(config, DIRECTION)
    pairs = _pairs(graph, x, reference, generator, VALIDATION_STEPS)
    if pairs is None:
        return global_ball(graph, x, reference, epsilon, config)
    return pairs.bounded(l2_radius(epsilon, x, config))


def soc_crc(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """CE + curvature mean max(m, M) - gamma mean R, over the nearest classes.

    R is the closed form. Without a head of dense, softplus, dense there is no curvature: then this
    is cross-entropy.
    """
    options = config.options
    loss_of = LOSSES[options.get("loss", "cross-entropy")]
    pairs = _pairs(graph, x, y, at.generator(config, DIRECTION), POWER_STEPS)
    if pairs is None:
        found = global_ball(graph, x, y, at.epsilon, config)
        return loss_of(found.logits, y), found
    found = pairs.bounded(l2_radius(at.epsilon, x, config))
    loss = loss_of(found.logits, y)
    curvature, gamma = float(options.get("curvature", 0.0)), float(options.get("gamma", 0.0))
    if curvature > 0.0:
        loss = loss + curvature * torch.maximum(pairs.falling, pairs.rising).mean()
    if gamma > 0.0:
        loss = loss - gamma * pairs.radii().mean()
    return loss, found


OBJECTIVES = {"soc-crc": Objective(soc_crc, curvature_ball)}
