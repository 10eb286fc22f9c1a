"""The interface of a training method: a loss, and the estimate that its curve shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bound, Bounded
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["Loss", "Objective", "Stages", "one_stage"]

#: (network, x [batch, *shape], y [batch], schedules' values, run) -> (loss, what was bounded).
Loss = Callable[
    [TrainingGraph, Tensor, Tensor, ScheduledWeights, TrainingConfig], tuple[Tensor, Bounded]
]


#: (network, run) -> stages of the run.
Stages = Callable[[TrainingGraph, TrainingConfig], int]


def one_stage(graph: TrainingGraph, config: TrainingConfig) -> int:
    """The run is one."""
    return 1


@dataclass(frozen=True)
class Objective:
    """One method. ``loss``: what a step minimises; a random number in it is drawn from
    ``at.uniform(config, x)`` or ``at.generator(config)``, so that a resumed run draws the same.
    It is a mean over the batch: several devices have a part of it each. ``bound``: the estimate of
    worst logits on validation samples. ``stages``: how many equal parts the run has, each of which
    begins with an optimiser that remembers nothing; it raises TrainingError for a network that the
    method does not train.
    """

    loss: Loss
    bound: Bound
    stages: Stages = one_stage

    @property
    def any_network(self) -> bool:
        """Whether it trains every network: a method in stages looks at the network first."""
        return self.stages is one_stage
