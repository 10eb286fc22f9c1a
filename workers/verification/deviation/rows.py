"""Rows on the deviation of a value, carried back to the roundings that it is made of.

What a deviation is, and why the result bounds it: ``deviation.walk``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workers.verification.backward.adjoint import adjoint
from workers.verification.backward.linear_form import LinearForm
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.layers.registry import rules_of
from workers.verification.layers.rules import Box
from workers.verification.numerics import (
    ROOM,
    euclidean_norm,
    lost_in_coefficients,
    lost_in_sums,
    min_normal,
    product_magnitude,
    raised,
    rounded_up,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["DeviationRows", "Passage"]


@dataclass(frozen=True)
class Passage:
    """How rows pass one step: ``paid`` [batch, *shape] is what the deviation of the result may have
    beside what its inputs' deviations make of it by the step's map: W of an affine step, ``slopes``
    of an elementwise one, or shares of one that sorts pairs, the layer itself where it is linear.
    ends: that map is 0."""

    paid: Tensor
    slopes: Tensor | None = None
    ends: bool = False


@dataclass
class DeviationRows:
    """Bounds on rows . (z' - z), from the passages of the steps, and ``far`` and ``lengths`` of the
    values so far.

    dtype: of the coefficients. It also is the state that layers' backward rules ask: what a layer
    rounds stands in its passage, so for them no rounding is accounted for.
    """

    compiled: CompiledNetwork
    region: Region
    dtype: torch.dtype
    clock: Clock = UNLIMITED
    far: list[Tensor] = field(default_factory=list)
    lengths: list[Tensor] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    made: dict[int, Any] = field(default_factory=dict)
    windows: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    rounding: Rounding = field(default_factory=Rounding.ignored)
    _shares: dict[tuple[int, float], Tensor] = field(default_factory=dict)

    def hold(self, far: Tensor, length: Tensor) -> None:
        """How far the next value may be off: in each number [batch, *shape], and in norm [batch].

        The input's is told so; those of results come with their steps (``add``)."""
        self.far.append(far)
        self.lengths.append(length)

    def add(self, passage: Passage, far: Tensor, length: Tensor) -> None:
        """The next step: how rows pass it, and how far its result may be off, float64."""
        paid = rounded_up(passage.paid, self.dtype) + min_normal(self.dtype)
        slopes = None if passage.slopes is None else passage.slopes.to(self.dtype)
        self.passages.append(Passage(raised(paid, 3, self.dtype), slopes, passage.ends))
        self.hold(raised(far, 1), length)

    def most(self, value: int, rows: LinearForm) -> Tensor:
        """Upper bounds [rows] float64 on |rows . (z' - z)| of a value. Raises OutOfTime.

        Wherever one value is all that a row is about, it may end: |c . (z' - z)| is at most |c|_2
        times ``lengths``, and the least of what was paid so far and this counts.
        """
        steps = self.compiled.steps
        pending = {value: rows}
        lost = torch.zeros(len(rows.coefficients), dtype=torch.float64)
        lost = lost.to(rows.coefficients.device)
        least = torch.full_like(lost, torch.inf)
        for index in range(value - 1, -1, -1):
            carried = pending.pop(index + 1, None)
            if carried is None:
                continue
            self.clock.check()
            if not pending:
                length = carried.of_samples(self.lengths[index + 1])
                least = torch.fmin(least, lost + euclidean_norm(carried.coefficients) * length)
            passage, step = self.passages[index], steps[index]
            lost = lost + product_magnitude(carried.coefficients, carried.pick(passage.paid))
            lost = lost + carried.of_samples(self._underflow(step.sources))
            if passage.ends:
                continue
            for source, part in zip(step.sources, self._through(index, carried), strict=True):
                if source == 0:
                    continue  # the input is the same for both
                known = pending.get(source)
                if known is not None:
                    part = known.plus(part)
                    lost = lost + self.rounded(source, part)
                pending[source] = part
        # Overflow, and 0 times infinity, say nothing.
        return raised(torch.fmin(least, lost).nan_to_num(torch.inf, torch.inf))

    def _through(self, index: int, rows: LinearForm) -> list[LinearForm]:
        step, slopes = self.compiled.steps[index], self.passages[index].slopes
        if isinstance(step.op, Affine):
            return [adjoint(step.op, rows)]
        differences = rules_of(step.op).differences
        if slopes is not None and differences is not None:
            return differences.back(step.op, rows.pick(slopes), rows)
        if slopes is not None:
            return [rows.with_coefficients(rows.coefficients * rows.pick(slopes))]
        backward = rules_of(step.op).backward
        if backward is None:
            raise TypeError(f"rows end at {step.name}")
        return backward(self, index, step, rows)[0]

    def _underflow(self, sources: tuple[int, ...]) -> Tensor:
        tiny = lost_in_coefficients(self.dtype)
        sizes = [self.far[source].flatten(1).sum(1) for source in dict.fromkeys(sources)]
        return torch.stack(sizes).sum(0) * (tiny * ROOM) + lost_in_sums(self.dtype)

    def _share(self, value: int) -> Tensor:
        return self.share_of(value, 4 * unit_roundoff(self.dtype))

    # What layers' backward rules and ``unit_forms`` ask.

    def error(self, index: int) -> Tensor:
        """What a unit row of an affine step's result pays, [batch, *shape]."""
        return self.passages[index].paid

    def share_of(self, value: int, share: float) -> Tensor:
        """This share of how far a value may be off, [batch, *shape]."""
        if (value, share) not in self._shares:
            part = rounded_up(self.far[value] * (share * ROOM), self.dtype)
            self._shares[value, share] = part + min_normal(self.dtype)
        return self._shares[value, share]

    def rounded(self, value: int, rows: LinearForm) -> Tensor:
        """What two roundings of each coefficient may change, [rows]."""
        return product_magnitude(rows.coefficients, rows.pick(self._share(value)))

    def box(self, value: int) -> Box:
        """Of a deviation, [batch, *shape] each."""
        return -self.far[value], self.far[value]

    def shape_of(self, value: int) -> tuple[int, ...]:
        """Shape of a value, without the batch."""
        return self.compiled.input_shape if value == 0 else self.compiled.steps[value - 1].shape
