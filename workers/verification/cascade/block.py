"""The state of one block of samples while bounds and attack work on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.verification.results import POOL

__all__ = ["Block", "Tries"]


@dataclass
class Tries:
    """Of one bound, per sample: the largest epsilon proved and the smallest where it failed, with
    the margins there in units of those at the centre, [batch] each."""

    proved: Tensor
    left: Tensor
    failed: Tensor
    lack: Tensor

    @classmethod
    def none(cls, batch: int) -> Tries:
        """None yet."""
        zero = torch.zeros(batch, dtype=torch.float64)
        return cls(zero, zero + torch.nan, zero + torch.inf, zero + torch.nan)

    def add(self, rows: Tensor, epsilon: Tensor, proved: Tensor, margin: Tensor) -> None:
        """One more try of each of these rows."""
        better = proved & (epsilon > self.proved[rows])
        self.proved[rows[better]], self.left[rows[better]] = epsilon[better], margin[better]
        worse = ~proved & (epsilon < self.failed[rows])
        self.failed[rows[worse]], self.lack[rows[worse]] = epsilon[worse], margin[worse]


class Block:
    """The state of one block of samples while bounds and attack work on it."""

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        indices: NDArray[np.int64],
        margin: Tensor,
        correct: Tensor,
        epsilons: list[float],
        *,
        work: float = math.inf,
    ) -> None:
        count, width = x.shape[0], len(epsilons)
        self.x, self.labels, self.indices = x, labels, indices
        self.margin, self.correct = margin, correct
        self.epsilons = epsilons
        #: Largest proved and smallest not-proved epsilon per sample.
        self.proved = torch.zeros(count, dtype=torch.float64)
        self.failed = torch.full((count,), torch.inf, dtype=torch.float64)
        #: The last bound's least margin over the margin at the centre, where it failed.
        self.gap = torch.zeros(count, dtype=torch.float64)
        #: The last bound's least margin over the margin at the centre, where it proved as well.
        self.left = torch.full((count,), torch.nan, dtype=torch.float64)
        #: Plain forward passes that bounds may still cost the samples of each pool together.
        self.work = [work * min(POOL, count - start) for start in range(0, count, POOL)]
        #: Passes that the search of the radius has cost each sample, and its verdicts by whom.
        self.searched = torch.zeros(count, dtype=torch.float64)
        self.spent: dict[str, Tensor] = {}
        #: Tries of that search whose passes were counted.
        self.hunted = torch.zeros(count, dtype=torch.float64)
        #: What the dearest attempt of each bound on each sample has cost (0: none).
        self.last: dict[str, Tensor] = {}
        self.by = [""] * count
        self.decided_by = [[""] * width for _ in range(count)]
        #: Who found the counterexample, per sample and asked epsilon.
        self.broken_by = [[""] * width for _ in range(count)]
        self.falsified = torch.zeros(count, width, dtype=torch.bool)
        self.counterexamples: dict[tuple[int, int], Tensor] = {}
        #: What each bound's verdicts have shown of each sample: where its radius must lie.
        self.tries: dict[str, Tries] = {}
        #: What each bound keeps for each sample from one attempt to the next.
        self.states: dict[str, list[dict[str, Any]]] = {}
        #: Whether no search of the radius is to come, per sample.
        self.closed = torch.ones(count, dtype=torch.bool)

    def certified(self) -> Tensor:
        """[batch, epsilons] bool: within the largest proved epsilon."""
        return torch.tensor(self.epsilons, dtype=torch.float64)[None, :] <= self.proved[:, None]

    def prove(self, rows: Tensor, epsilon: Tensor, name: str) -> None:
        """``name`` proved these rows up to these epsilons."""
        for row, value in zip(rows.tolist(), epsilon.tolist(), strict=True):
            if value > float(self.proved[row]):
                self.proved[row] = value
                self.by[row] = name
                for position, asked in enumerate(self.epsilons):
                    if asked <= value and not self.decided_by[row][position]:
                        self.decided_by[row][position] = name

    def take_back(self, row: int, epsilon: float) -> None:
        """What was proved of the sample holds at asked epsilons below this one only."""
        smaller = [asked for asked in self.epsilons if asked < epsilon]
        self.proved[row] = max([e for e in smaller if e <= float(self.proved[row])], default=0.0)
        for position, asked in enumerate(self.epsilons):
            if asked > float(self.proved[row]):
                self.decided_by[row][position] = ""
        if not float(self.proved[row]):
            self.by[row] = ""

    def tries_of(self, name: str) -> Tries:
        """What the verdicts of the bound of this name have shown, to be changed in place."""
        return self.tries.setdefault(name, Tries.none(len(self.x)))

    def spend(self, name: str, rows: Tensor, passes: Tensor | float) -> None:
        """Verdicts of ``name`` on these rows have cost so many passes."""
        nothing = torch.zeros(len(self.x), dtype=torch.float64)
        self.spent.setdefault(name, nothing)[rows] += passes

    def states_of(self, name: str, rows: Tensor) -> list[dict[str, Any]]:
        """What the bound of this name keeps for these rows, to be changed in place."""
        states = self.states.setdefault(name, [{} for _ in range(len(self.x))])
        return [states[row] for row in rows.tolist()]

    def afford(self, rows: Tensor, epsilon: Tensor, passes: float) -> Tensor:
        """[rows] bool: rows whose pool pays so many passes, nearest to deciding first.

        Nearest: the least that a bound lacked, where one was tried; else (and between equals) the
        largest margin per epsilon.
        """
        order = torch.argsort(self.margin[rows] / epsilon, descending=True, stable=True)
        gap = self.gap[rows].nan_to_num(nan=-torch.inf)
        order = order[torch.argsort(gap[order], descending=True, stable=True)]
        paid = torch.zeros(rows.numel(), dtype=torch.bool)
        for place in order.tolist():
            pool = int(rows[place]) // POOL
            if self.work[pool] >= passes:
                self.work[pool] -= passes
                paid[place] = True
        return paid

    def settle(self, rows: Tensor, passes: Tensor) -> None:
        """Give back to their pools what rows have paid and not spent, [rows]; take what they have
        spent beyond it (less than 0)."""
        for row, unspent in zip(rows.tolist(), passes.tolist(), strict=True):
            self.work[row // POOL] += unspent

    def open(self, position: int) -> Tensor:
        """[batch] bool: correct, neither proved nor falsified at this asked epsilon."""
        undecided = self.proved < self.epsilons[position]
        return self.correct & undecided & ~self.falsified[:, position]

    def decided(self) -> Tensor:
        """[batch] bool: proved, falsified or misclassified at every asked epsilon."""
        return ~self.correct | (self.certified() | self.falsified).all(1)

    def ceiling(self) -> Tensor:
        """Smallest epsilon per sample at which an attack succeeded, [batch] float64 (inf: none)."""
        asked = torch.tensor(self.epsilons, dtype=torch.float64)
        return torch.where(self.falsified, asked[None, :], torch.inf).amin(1)

    def least_asked(self, epsilon: float) -> int | None:
        """Position of the smallest asked epsilon that is not below this one; None: all are."""
        reached = [position for position, asked in enumerate(self.epsilons) if asked >= epsilon]
        return min(reached, key=lambda position: self.epsilons[position], default=None)

    def falsify(self, row: int, position: int, point: Tensor, name: str) -> None:
        """``point``, found by ``name``, breaks the sample within the asked epsilon, hence within
        every larger one."""
        self.counterexamples[row, position] = point
        for other, asked in enumerate(self.epsilons):
            if asked >= self.epsilons[position]:
                self.falsified[row, other] = True
                self.broken_by[row][other] = self.broken_by[row][other] or name

    def verdicts(self, row: int) -> tuple[str, list[str]]:
        """(method, decided_by) of one sample, as ``SampleResults`` has them."""
        if not bool(self.correct[row]):
            return "misclassified", ["misclassified"] * len(self.epsilons)
        broken = self.broken_by[row]
        decided = [
            name or broken[position] or "undecided"
            for position, name in enumerate(self.decided_by[row])
        ]
        by_size = sorted(range(len(self.epsilons)), key=lambda position: self.epsilons[position])
        certified = self.certified()[row].tolist()
        proved = [position for position in by_size if certified[position]]
        if proved:
            return decided[proved[-1]], decided
        return next((name for p in by_size if (name := broken[p])), "undecided"), decided
