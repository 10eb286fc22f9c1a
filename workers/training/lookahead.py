"""Lookahead (Zhang, Lucas, Hinton, Ba 2019, arXiv:1907.08610, algorithm 1) around any optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Lookahead"]

#: How far the slow weights follow the fast ones (alpha).
SHARE = 0.5


class Lookahead:
    """Slow weights beside those that the optimiser trains (the fast ones).

    Every ``every`` steps the slow weights move half way to the fast ones; then the
    fast ones are set to the slow ones.
    """

    def __init__(self, parameters: Sequence[Tensor], every: int) -> None:
        self.parameters = list(parameters)
        self.every = every
        self.steps = 0
        self.slow = [parameter.detach().clone() for parameter in self.parameters]

    def step(self) -> None:
        """Count a step of the optimiser; call it after each."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Move now. At the end of an epoch too, so that the slow weights are validated and kept."""
        for slow, fast in zip(self.slow, self.parameters, strict=True):
            slow.lerp_(fast, SHARE)
            fast.copy_(slow)

    def state(self) -> dict[str, Tensor]:
        """The tensors that the rest of the run depends on."""
        slow = {f"lookahead.{index}": tensor for index, tensor in enumerate(self.slow)}
        return {**slow, "lookahead.steps": torch.tensor(self.steps)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` returned. Raises KeyError where it is missing."""
        self.steps = int(tensors["lookahead.steps"])
        self.slow = [tensors[f"lookahead.{index}"].clone() for index in range(len(self.slow))]
