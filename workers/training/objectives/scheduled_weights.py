"""Where in its schedules a step stands."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.training.config import TrainingConfig

__all__ = ["ScheduledWeights"]


@dataclass(frozen=True)
class ScheduledWeights:
    """epsilon in pixel units; kappa weighs clean loss, trades robust divergence.

    ``clean`` and ``robust``: kappa is 1 or 0, so that one of both losses is all; ``no_ball``:
    epsilon is 0. What a step does hangs on these three alone, so that a compiled step is compiled
    once for each of their combinations, and the values may be tensors (``on``).
    """

    epsilon: float | Tensor
    kappa: float | Tensor
    trades: float | Tensor
    clean: bool
    robust: bool
    no_ball: bool

    @classmethod
    def of(cls, epsilon: float, kappa: float, trades: float) -> ScheduledWeights:
        """These values."""
        return cls(epsilon, kappa, trades, kappa == 1.0, kappa == 0.0, epsilon == 0.0)

    @classmethod
    def at(cls, config: TrainingConfig, share: float) -> ScheduledWeights:
        """The schedules' values after ``share`` of the run."""
        return cls.of(
            config.epsilon * config.epsilon_schedule.at(share),
            config.kappa_schedule.at(share),
            config.trades_schedule.at(share),
        )

    def on(self, device: torch.device) -> ScheduledWeights:
        """The values as float32 tensors on a device: numbers would be compiled in."""
        values = torch.tensor([self.epsilon, self.kappa, self.trades], dtype=torch.float32)
        epsilon, kappa, trades = values.to(device, non_blocking=True).unbind()
        return replace(self, epsilon=epsilon, kappa=kappa, trades=trades)

    @property
    def phase(self) -> tuple[bool, bool, bool]:
        """What a step does."""
        return self.clean, self.robust, self.no_ball
