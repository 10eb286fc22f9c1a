"""Local-Lip's per-sample norms as a training surrogate (Huang et al. 2021, section 3).

Per sample, |diag(s) W diag(m)| takes the place of |W|: m is 0 where no input can change over the
box, s holds anchored slopes, both without gradient. The papers'
code keeps one power vector per image, layer and data set (22.7 GB on CIFAR); here every sample
starts at the layer's own running vector and takes one step, with a gradient through the last
product only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.activations import AtLeast, AtMost, ReLUTheta
from models.layers.kinds import ReLU
from workers.training.bounds.ball_and_box import TrainingPass
from workers.training.trained_maps import WeightedMap
from workers.training.training_graph import TrainingGraph
from workers.verification.enclosure import Enclosure
from workers.verification.forward.propagation import AffineMap
from workers.verification.graph.graph_step import GraphStep

__all__ = ["LocalTrainingPass", "clamp_slopes"]

_TINY = 1e-12


class LocalTrainingPass(TrainingPass):
    """One pass with local norms. ``sparsity``: Local-Lip's sparsity loss, a scalar with gradient,
    which is small where most units are constant over their box; not counted
    where ``sparsity_margin`` is None."""

    def __init__(self, graph: TrainingGraph, *, sparsity_margin: float | None = 0.1) -> None:
        super().__init__(graph)
        self.margin = sparsity_margin
        self.sparsity = graph.head_weight.new_zeros(())
        self._pending: dict[str, tuple[GraphStep, AffineMap, Enclosure]] = {}
        readers: dict[int, list[GraphStep]] = {}
        for step in graph.steps:
            for source in step.sources:
                readers.setdefault(source, []).append(step)
        # A step that one sloped activation reads alone: its norm waits for the slopes.
        self._awaits = {
            graph.steps[value - 1].name: steps[0].name
            for value, steps in readers.items()
            if value > 0 and len(steps) == 1 and isinstance(steps[0].op, ReLU | ReLUTheta)
        }

    def affine(self, index: int, step: GraphStep, op: AffineMap, state: Enclosure) -> Enclosure:
        result = super().affine(index, step, op, state)
        if step.name in self._awaits:
            self._pending[self._awaits[step.name]] = (step, op, state)
            return result
        return self._tightened(step, op, state, result, None)

    def layer(self, index: int, step: GraphStep, inputs: list[Enclosure]) -> Enclosure:
        result, before = super().layer(index, step, inputs), inputs[0]
        self._count(step, before)
        pending = self._pending.pop(step.name, None)
        return (
            result
            if pending is None
            else self._tightened(*pending, result, clamp_slopes(before, result))
        )

    def _tightened(
        self,
        step: GraphStep,
        op: AffineMap,
        state: Enclosure,
        result: Enclosure,
        slopes: Tensor | None,
    ) -> Enclosure:
        """The result with the radius that the norm of diag(slopes) W diag(m) allows."""
        vector = self.graph.vectors.get(step.name)
        if vector is None or not isinstance(op, WeightedMap):
            return result
        assert state.lower is not None
        assert state.upper is not None
        with torch.no_grad():
            mask = None if state.round else (state.upper - state.lower).sign_().clamp_min_(0.0)
        if mask is None and slopes is None:
            return result
        norm = _norm(op, vector, mask, slopes).expand(len(state.centre))
        result.radius = torch.minimum(result.radius, norm.to(torch.float64) * state.radius)
        return result

    def _count(self, step: GraphStep, before: Enclosure) -> None:
        """Add the layer's part of the sparsity loss."""
        layer = step.op
        if before.lower is None or before.upper is None or self.margin is None:
            return
        if isinstance(layer, ReLU | ReLUTheta):
            self.sparsity = self.sparsity + before.upper.relu().mean()
        if isinstance(layer, ReLUTheta):
            self.sparsity = self.sparsity + self.margin * (layer.theta - before.lower).relu().mean()
        if isinstance(layer, AtMost):
            reach = (layer.value - before.lower).relu()
            self.sparsity = self.sparsity + _half(reach, first=True).mean()
        if isinstance(layer, AtLeast):
            reach = (before.upper - layer.value).relu()
            self.sparsity = self.sparsity + _half(reach, first=False).mean()


def _norm(op: WeightedMap, start: Tensor, mask: Tensor | None, slopes: Tensor | None) -> Tensor:
    """Estimate of |diag(slopes) W diag(mask)| for every sample (or one for all), [batch or 1]."""
    with torch.no_grad():
        image = op.linear(start if mask is None else start * mask)
        image = image if slopes is None else image * slopes * slopes
        found = op.adjoint(image)
        found = found if mask is None else found.mul_(mask)
        length = torch.linalg.vector_norm(found.flatten(1), dim=1).clamp_min(_TINY)
        found = found.div_(length.reshape(-1, *([1] * (found.dim() - 1))))
    last = op.linear(found)
    last = last if slopes is None else last * slopes
    return torch.linalg.vector_norm(last.flatten(1), dim=1)


@torch.no_grad()
def clamp_slopes(before: Enclosure, after: Enclosure) -> Tensor:
    """Anchored slopes of clamp(t, low, high), here from what ``monotone`` computed anyway.

    With a the centre and phi the clamp, (phi(u) - phi(l)) / (phi(u) - phi(l) + |a - phi(a)|) is 1
    where a is not clamped, u / (u - a) below and (high - l) / (a - l) above: the slopes of
    ``workers.verification.layers.relu`` but for rounding, and 0 where the box is a point.
    """
    assert after.lower is not None
    assert after.upper is not None
    width = after.upper - after.lower
    beyond = (before.centre - after.centre).abs_().add_(width).clamp_min_(_TINY)
    return width.div_(beyond)


def _half(x: Tensor, *, first: bool) -> Tensor:
    """The half of the channels that a clamped MaxMin's threshold acts on."""
    halves = x.chunk(2, dim=1)
    return halves[0] if first else halves[1]
