"""The values of the schedules at one training step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.data import seeded

__all__ = ["ScheduledWeights"]

#: From here on a generator's purpose is an objective's own; those before it are the loop's.
_OBJECTIVES = 16


@dataclass(frozen=True)
class ScheduledWeights:
    """epsilon in pixel units; kappa is the weight of the clean loss, trades of the divergence.

    ``clean`` and ``robust``: kappa is 1 or 0, so that one of both losses is all; ``no_ball``:
    epsilon is 0. The code path of a step depends on these three alone, so that a step is compiled
    once for each of their combinations, and the values may be tensors (``on``). ``step``: its
    number in the run, for ``generator`` alone. ``progress`` (0 to 1) of the run: of methods in
    stages, which are not compiled. ``first``, ``rows``: the loss is given the rows from
    ``first`` on of a batch of ``rows`` (None: all of it), for ``uniform`` alone.
    """

    epsilon: float | Tensor
    kappa: float | Tensor
    trades: float | Tensor
    clean: bool
    robust: bool
    no_ball: bool
    step: int = 0
    first: int = 0
    rows: int | None = None
    progress: float = 0.0

    @classmethod
    def of(cls, epsilon: float, kappa: float, trades: float, step: int = 0) -> ScheduledWeights:
        """These values."""
        return cls(epsilon, kappa, trades, kappa == 1.0, kappa == 0.0, epsilon == 0.0, step)

    @classmethod
    def at(cls, config: TrainingConfig, progress: float, step: int) -> ScheduledWeights:
        """The schedules' values at ``progress`` (0 to 1) of the run, in the step of this number."""
        values = cls.of(
            config.epsilon * config.epsilon_schedule.at(progress),
            config.kappa_schedule.at(progress),
            config.trades_schedule.at(progress),
            step,
        )
        return replace(values, progress=progress)

    def generator(self, config: TrainingConfig, purpose: int = 0) -> torch.Generator:
        """Random numbers, on the CPU, that follow from the run's seed and the step's number: the
        start of an attack, say. Each ``purpose`` of a loss has its own.

        Such a loss is not to be compiled (``compiled=False`` in the method's row): the number of
        the step would be compiled in.
        """
        return seeded(config.seed, _OBJECTIVES + purpose, self.step)

    def within(self, first: int, rows: int) -> ScheduledWeights:
        """The same for a rank that has the rows from ``first`` on of a batch of ``rows``."""
        return replace(self, first=first, rows=rows)

    def uniform(self, config: TrainingConfig, x: Tensor, purpose: int = 0) -> Tensor:
        """Numbers in [0, 1) of the shape and device of x [b, *shape], from ``generator``.

        A sample gets the same ones whichever rank has it.
        """
        rows = len(x) if self.rows is None else self.rows
        drawn = torch.rand((rows, *x.shape[1:]), generator=self.generator(config, purpose))
        return drawn[self.first : self.first + len(x)].to(x.device)

    def on(self, device: torch.device) -> ScheduledWeights:
        """The values as float32 tensors on a device: numbers would be compiled in."""
        values = torch.tensor([self.epsilon, self.kappa, self.trades], dtype=torch.float32)
        epsilon, kappa, trades = values.to(device, non_blocking=True).unbind()
        return replace(self, epsilon=epsilon, kappa=kappa, trades=trades)

    @property
    def phase(self) -> tuple[bool, bool, bool]:
        """What a step does."""
        return self.clean, self.robust, self.no_ball
