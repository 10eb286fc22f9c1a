"""What has to be proved of a box: goals, each reached by any one of its alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.properties.lowering import Box, LinearLimit
from workers.verification.properties.rows import Rows, rows_of, with_rows

__all__ = ["Alternative", "Goal", "goals_of"]


@dataclass(frozen=True)
class Alternative:
    """rows: all of them positive is a proof; compiled: the network with them as its margins."""

    rows: Rows
    compiled: CompiledNetwork

    def margins(self, outputs: Tensor) -> Tensor:
        """The least row at outputs [batch, outputs]: [batch] float64."""
        return self.rows.values(outputs).amin(1)


@dataclass(frozen=True)
class Goal:
    """cases: unsafe cases that no input of the box is in, once one alternative is proved; without
    alternatives it cannot be reached."""

    cases: tuple[tuple[LinearLimit, ...], ...]
    alternatives: tuple[Alternative, ...]

    def margins(self, outputs: Tensor) -> Tensor:
        """[batch, alternatives] float64 at outputs [batch, outputs]."""
        found = [alternative.margins(outputs) for alternative in self.alternatives]
        return torch.stack(found, 1) if found else torch.empty(len(outputs), 0)


def goals_of(box: Box, compiled: CompiledNetwork, outputs: int) -> list[Goal]:
    """The goals whose proofs together say that no input of the box has unsafe outputs.

    Cases of one limit are one goal: each limit must be broken everywhere, and one pass bounds all
    of them. Of a case of several limits it is enough that one of them is broken everywhere.
    """
    single = [case for case in box.unsafe if len(case) == 1]
    broken = {case[0] for case in single}
    several = [case for case in box.unsafe if len(case) > 1 and not broken & {*case}]
    goals = [Goal((case,), ()) for case in box.unsafe if not case]
    if single:
        goals.append(
            Goal(tuple(single), _alternatives([[c[0] for c in single]], compiled, outputs))
        )
    for case in several:
        goals.append(Goal((case,), _alternatives([[limit] for limit in case], compiled, outputs)))
    return goals


def _alternatives(
    sets: Sequence[Sequence[LinearLimit]], compiled: CompiledNetwork, outputs: int
) -> tuple[Alternative, ...]:
    rows = [made for limits in sets if (made := rows_of(limits, outputs)) is not None]
    return tuple(Alternative(made, with_rows(compiled, made)) for made in rows)
