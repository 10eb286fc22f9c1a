"""Training methods: each one a loss of (network, batch, schedules), in a file of its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import (
    Bound,
    Bounded,
    ball_and_box,
    global_ball,
    local_ball_and_box,
    whole_network,
)
from workers.training.objectives.lipschitz.bcp import bcp
from workers.training.objectives.lipschitz.emma import emma
from workers.training.objectives.lipschitz.gloro import gloro, gloro_trades
from workers.training.objectives.lipschitz.lmt import lmt
from workers.training.objectives.lipschitz.local_lip import local_lip_b, local_lip_g
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["BOUNDS", "OBJECTIVES", "Bounded", "Objective", "ScheduledWeights"]

#: (network, x [batch, *shape], y [batch], schedules' values, run) -> (loss, what was bounded).
Objective = Callable[
    [TrainingGraph, Tensor, Tensor, ScheduledWeights, TrainingConfig], tuple[Tensor, Bounded]
]

#: Methods by the name POST /train takes: a new one is one file and one row.
OBJECTIVES: dict[str, Objective] = {
    "standard": standard,
    "lmt": lmt,
    "gloro": gloro,
    "gloro-trades": gloro_trades,
    "bcp": bcp,
    "local-lip-b": local_lip_b,
    "local-lip-g": local_lip_g,
    "emma": emma,
}

#: The estimate that a method's own progress is measured with.
BOUNDS: dict[str, Bound] = {
    "standard": global_ball,
    "lmt": whole_network,
    "gloro": global_ball,
    "gloro-trades": global_ball,
    "bcp": ball_and_box,
    "local-lip-b": local_ball_and_box,
    "local-lip-g": local_ball_and_box,
    "emma": global_ball,
}
