"""What has to be proved of a box: goals, each reached by any one of its alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.properties.lowering import Box, LinearLimit
from workers.verification.properties.rows import Rows, rows_of

__all__ = ["Goal", "goals_of"]

#: Rows that are bounded together, at most: some tables have the square of their number.
TOGETHER = 256


@dataclass(frozen=True)
class Goal:
    """cases: unsafe cases that no input of the box is in, once all rows of one of the alternatives
    are proved to be positive; without alternatives it cannot be reached."""

    cases: tuple[tuple[LinearLimit, ...], ...]
    alternatives: tuple[Rows, ...]

    def margins(self, outputs: Tensor) -> Tensor:
        """[batch, alternatives] float64 at outputs [batch, outputs]."""
        found = [rows.values(outputs).amin(1) for rows in self.alternatives]
        return torch.stack(found, 1) if found else torch.empty(len(outputs), 0)


def goals_of(box: Box, outputs: int) -> list[Goal]:
    """The goals whose proofs together say that no input of the box has unsafe outputs.

    Cases of one limit are one goal: each limit must be broken everywhere, and one pass bounds all
    of them. Of a case of several limits it is enough that one of them is broken everywhere.
    """
    single = [case for case in box.unsafe if len(case) == 1]
    broken = {case[0] for case in single}
    several = [case for case in box.unsafe if len(case) > 1 and not broken & {*case}]
    goals = [Goal((case,), ()) for case in box.unsafe if not case]
    for start in range(0, len(single), TOGETHER):
        some = single[start : start + TOGETHER]
        goals.append(Goal(tuple(some), _rows([[case[0] for case in some]], outputs)))
    for case in several:
        goals.append(Goal((case,), _rows([[limit] for limit in case], outputs)))
    return goals


def _rows(sets: Sequence[Sequence[LinearLimit]], outputs: int) -> tuple[Rows, ...]:
    return tuple(made for limits in sets if (made := rows_of(limits, outputs)) is not None)
