"""Lookahead (Zhang, Lucas, Hinton, Ba 2019, arXiv:1907.08610, algorithm 1) around any optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Lookahead"]

#: How far the slow weights follow the fast ones (alpha).
SHARE = 0.5


class Lookahead:
    """Every ``every`` steps slow weights go half the way to the fast ones, and these to them."""

    def __init__(self, parameters: Sequence[Tensor], every: int) -> None:
        self.parameters = list(parameters)
        self.every = every
        self.steps = 0
        self.slow = [parameter.detach().clone() for parameter in self.parameters]

    def step(self) -> None:
        """After every step of the optimiser."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Now: also at the end of an epoch, so that slow weights are what is looked at and kept."""
        for slow, fast in zip(self.slow, self.parameters, strict=True):
            slow.lerp_(fast, SHARE)
            fast.copy_(slow)

    def state(self) -> dict[str, Tensor]:
        """What the rest of the run depends on."""
        slow = {f"lookahead.{index}": tensor for index, tensor in enumerate(self.slow)}
        return {**slow, "lookahead.steps": torch.tensor(self.steps)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave. Raises KeyError where it is not there."""
        self.steps = int(tensors["lookahead.steps"])
        self.slow = [tensors[f"lookahead.{index}"].clone() for index in range(len(self.slow))]
