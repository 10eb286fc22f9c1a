"""Counterexamples from the points that attain a bound, sharpened by gradient steps.

A claim, as of every bound: it counts after the deployed network has answered wrongly on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.verification.attacks.pgd import descend
from workers.verification.clock import Clock
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.numerics import rounded_down, rounded_up
from workers.verification.region import Region

__all__ = ["Counterexamples"]


class Counterexamples:
    """The network in float64, and the worst of the points tried on it.

    region: of one sample; label: its own.
    """

    def __init__(self, compiled: CompiledNetwork, region: Region, label: int, clock: Clock) -> None:
        self.compiled, self.region, self.label, self.clock = compiled, region, label, clock
        self.point: Tensor | None = None

    def logits(self, points: Tensor) -> Tensor:
        """[n, classes] float64 of points [n, *shape]."""
        values = [points.to(torch.float64)]
        for step in self.compiled.steps:
            values.append(forward_step(step, [values[source] for source in step.sources]))
        head = self.compiled.head.on(points.device)
        return head.logits(values[-1].flatten(1))

    def margins(self, points: Tensor) -> Tensor:
        """The label's least margin over the other classes, less what it must lead by, [n]."""
        logits = self.logits(points)
        others = logits.clone()
        others[:, self.label] = -torch.inf
        return logits[:, self.label] - others.amax(1) - self.compiled.head.gap

    def found(self, points: Tensor, steps: int) -> bool:
        """Whether one of the points [n, inputs], drawn into the region, or one that gradient steps
        lead to from it, is answered wrongly; it is kept as ``point`` [*shape] float32."""
        count, shape = len(points), self.region.x.shape[1:]
        x = self.region.x.expand(count, *shape)
        near = descend(
            self.logits,
            points.to(x.dtype).reshape(count, *shape),
            x,
            torch.full((count,), self.label, device=x.device),
            self.region.epsilon.expand(count),
            norm=self.region.norm,
            clip=self.region.clip,
            steps=steps,
            clock=self.clock,
        )
        if self.region.sides is not None:
            # Inward, so that the float32 point is between them.
            low, high = self.region.sides
            near = torch.minimum(near, rounded_down(high, near.dtype))
            near = torch.maximum(near, rounded_up(low, near.dtype))
        margins = self.margins(near)
        least = int(margins.nan_to_num(torch.inf).argmin())
        if not float(margins[least]) <= 0.0:
            return False
        self.point = near[least]
        return True
