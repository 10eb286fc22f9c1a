"""Where in its schedules a step stands."""

from __future__ import annotations

from dataclasses import dataclass

from workers.training.run import Run

__all__ = ["Weighed"]


@dataclass(frozen=True)
class Weighed:
    """epsilon in pixel units; kappa weighs clean loss, trades robust divergence."""

    epsilon: float
    kappa: float
    trades: float

    @classmethod
    def at(cls, run: Run, share: float) -> Weighed:
        """The schedules' values after ``share`` of the run."""
        return cls(
            run.epsilon * run.epsilon_schedule.at(share),
            run.kappa_schedule.at(share),
            run.trades_schedule.at(share),
        )
