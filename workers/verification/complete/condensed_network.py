"""One sample's condensed network: what branch and bound works on, and how it is made.

Units (neurons that are not stable), their lines, and the margins still to be proved, as linear
functions of input and units (``backward.condensation``). Everything is float64 and holds for the
deployed network; the search reads float32 copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.layers.kinds import ReLU, Reshape
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.condensation import (
    CondensedRows,
    Units,
    condense,
    units_of,
)
from workers.verification.backward.intermediate_bounds import (
    plain_bound,
    rows_at_once,
    unit_forms,
    widest,
)
from workers.verification.backward.linear_form import LinearForm
from workers.verification.bounds.crown import head_rounding
from workers.verification.layers.registry import rules_of
from workers.verification.norms.per_sample import costliest
from workers.verification.rounding import Rounding

__all__ = ["CondensedNetwork", "Lines", "TooManyUnits"]

#: Bytes of the condensed network, in both arithmetics.
MOST_BYTES = 2**32


class TooManyUnits(Exception):
    """Too many neurons are unstable for a condensed network."""


@dataclass(frozen=True)
class Lines:
    """Lines around the activation of every unit, [units] each:

    lower_slope z + lower_intercept <= a <= upper_slope z + upper_intercept; free: where the lower
    slope may be any value in [least_slope, 1]; splits: where the unit is a ReLU.
    """

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor
    least_slope: Tensor
    free: Tensor
    splits: Tensor

    def to(self, dtype: torch.dtype) -> Lines:
        """The same numbers in another arithmetic."""
        return Lines(
            self.lower_slope.to(dtype),
            self.lower_intercept.to(dtype),
            self.upper_slope.to(dtype),
            self.upper_intercept.to(dtype),
            self.least_slope.to(dtype),
            self.free,
            self.splits,
        )


@dataclass(frozen=True)
class CondensedNetwork:
    """inputs: numbers of the input; blocks: the units of each step, in order, as slices;

    units: each as a function of input and units before; lower, upper [units]: of its value before
    the activation; reach [inputs + units]: at least the magnitude of every input and of every
    unit's value after it; objectives: functions to be proved positive; classes [objectives]: the
    class whose margin each is.
    """

    inputs: int
    blocks: tuple[slice, ...]
    units: CondensedRows
    lines: Lines
    lower: Tensor
    upper: Tensor
    reach: Tensor
    objectives: CondensedRows
    classes: Tensor

    @property
    def count(self) -> int:
        """Of the units."""
        return len(self.lower)

    @property
    def multiplications(self) -> int:
        """Of one row on its way back to the input."""
        sizes = ((block.stop - block.start, block.start) for block in self.blocks)
        return sum(own * (self.inputs + before) for own, before in sizes)

    def within(self, lower: Tensor, upper: Tensor, rounding: Rounding) -> CondensedNetwork:
        """The same network over narrower boxes [units] of the units that may be split: these are
        ReLUs, whatever layer they belong to. Those that are stable in them are split no more."""
        relax = rules_of(ReLU()).relax
        assert relax is not None
        old, splits = self.lines, self.lines.splits
        low = torch.where(splits, torch.fmax(lower, self.lower), self.lower)
        high = torch.where(splits, torch.fmin(upper, self.upper), self.upper)
        new = relax(ReLU(), low, high, "crown", rounding)
        reach = self.reach.clone()
        after = torch.where(splits, high.clamp_min(0.0), reach[self.inputs :])
        reach[self.inputs :] = torch.fmin(reach[self.inputs :], after)
        return replace(
            self,
            lower=low,
            upper=high,
            reach=reach,
            lines=Lines(
                torch.where(splits, new.lower_slope, old.lower_slope),
                old.lower_intercept.masked_fill(splits, 0.0),
                torch.where(splits, new.upper_slope, old.upper_slope),
                torch.where(splits, new.upper_intercept, old.upper_intercept),
                old.least_slope.masked_fill(splits, 0.0),
                torch.where(splits, new.free, old.free),
                splits & new.free,
            ),
        )

    @classmethod
    def of(cls, backward: BackwardPass, label: int, classes: Tensor) -> CondensedNetwork:
        """From the boxes of a pass over one sample; objectives: the label's margins over
        ``classes``. Raises TooManyUnits, OutOfTime."""
        units = _needed(backward, units_of(backward), label, classes)
        device = backward.region.x.device
        columns = sum(held.places.numel() for held in units)
        wide = torch.Size(backward.compiled.input_shape).numel() + columns
        if 12 * columns * wide > MOST_BYTES:
            raise TooManyUnits(f"{columns} of its neurons are unstable")
        parts, lower, upper, reach = [], [], [], [_magnitude(*backward.box(0))]
        lines: list[list[Tensor]] = []
        for held in units:
            step = backward.compiled.steps[held.step]
            # Of a layer without lines the unit is its result, held in its box.
            source = step.sources[0] if held.lines else held.step + 1
            low, high = (end.flatten()[held.places].double() for end in backward.box(source))
            lower.append(low)
            upper.append(high)
            reach.append(_magnitude(*backward.box(held.step + 1))[held.places])
            lines.append(_lines_of(backward, held, low, high))
            width = rows_at_once(
                widest(backward.compiled), costliest(backward.compiled), device, plain_bound
            )
            if held.places.numel():
                for places in held.places.split(width):
                    parts.append(_unit_rows(backward, units, held, places, wide))
        numbers = [torch.cat(held) for held in zip(*lines, strict=True)] if lines else []
        if not numbers:
            none = torch.zeros(0, dtype=torch.float64, device=device)
            numbers = [none] * 5 + [none.bool()] * 2
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        return cls(
            inputs=wide - columns,
            blocks=tuple(held.columns for held in units if held.places.numel()),
            units=_joined(parts, wide, device),
            lines=Lines(*numbers),
            lower=torch.cat([*lower, empty]),
            upper=torch.cat([*upper, empty]),
            reach=torch.cat(reach),
            objectives=_objectives(backward, units, label, classes),
            classes=classes,
        )


def _needed(backward: BackwardPass, units: list[Units], label: int, classes: Tensor) -> list[Units]:
    """The units without those of outputs that no objective reads, where outputs are units."""
    steps, last = backward.compiled.steps, len(backward.compiled.steps) - 1
    while last > 0 and isinstance(steps[last].op, Reshape):
        last = steps[last].sources[0] - 1
    if backward.compiled.head.dense is not None or not units or units[-1].step != last:
        return units
    *others, end = units
    read = torch.cat([classes, classes.new_tensor([label])])
    places = end.places[torch.isin(end.places, read)]
    start = end.columns.start
    return [*others, replace(end, places=places, columns=slice(start, start + len(places)))]


def _unit_rows(
    backward: BackwardPass, units: list[Units], held: Units, places: Tensor, wide: int
) -> CondensedRows:
    """The values before the activation of units at these places."""
    if not held.lines:
        none = torch.zeros(len(places), wide, dtype=torch.float64, device=places.device)
        return CondensedRows(none, none[:, 0], none[:, 0])
    source = backward.compiled.steps[held.step].sources[0]
    shape = backward.shape_of(source)
    if source == 0:
        ones = torch.eye(torch.Size(shape).numel(), dtype=backward.dtype, device=places.device)
        rows = LinearForm(ones[places].reshape(-1, *shape), shape, None)
        return condense(backward, units, 0, rows)
    backward.windows.clear()
    index = torch.unravel_index(places, shape)
    value, rows, constant, slack = unit_forms(backward, source, (torch.zeros_like(places), *index))
    found = condense(backward, units, value, rows)
    return CondensedRows(found.weight, found.constant + constant, found.error + slack)


def _objectives(
    backward: BackwardPass, units: list[Units], label: int, classes: Tensor
) -> CondensedRows:
    compiled, value = backward.compiled, len(backward.compiled.steps)
    state = backward.values[value]
    if state is None:
        raise ValueError("the last value is not kept")
    head = compiled.head.on(classes.device)
    shape = tuple(state.centre.shape[1:])
    slack = head_rounding(backward, state)[0]
    parts = []
    for some in classes.split(
        rows_at_once(widest(compiled), costliest(compiled), classes.device, plain_bound)
    ):
        weight = head.differences(torch.full_like(some, label), some).to(backward.dtype)
        rows = LinearForm(weight.reshape(-1, *shape), shape, None)
        found = condense(backward, units, value, rows)
        bias = head.bias[label] - head.bias[some]
        error = found.error + slack[label] + slack[some]
        parts.append(CondensedRows(found.weight, found.constant + bias, error))
    return _joined(parts, parts[0].weight.shape[1], classes.device)


def _lines_of(backward: BackwardPass, held: Units, low: Tensor, high: Tensor) -> list[Tensor]:
    """The fields of ``Lines``, in order."""
    nothing = torch.zeros_like(low)
    if not held.lines:
        false = nothing.bool()
        return [nothing, low, nothing, high, nothing, false, false]
    lines = backward.relaxation(held.step)

    def picked(number: Tensor) -> Tensor:
        return number.flatten()[held.places]

    shift = lines.lower_intercept
    return [
        picked(lines.lower_slope).double(),
        nothing if shift is None else picked(shift).double(),
        picked(lines.upper_slope).double(),
        picked(lines.upper_intercept).double(),
        torch.full_like(low, lines.min_slope),
        picked(lines.free),
        torch.full_like(nothing, held.splits).bool(),
    ]


def _magnitude(lower: Tensor, upper: Tensor) -> Tensor:
    return torch.maximum(lower.abs(), upper.abs()).flatten().double()


def _joined(parts: list[CondensedRows], wide: int, device: torch.device) -> CondensedRows:
    none = torch.zeros(0, dtype=torch.float64, device=device)
    return CondensedRows(
        torch.cat([part.weight for part in parts] + [none.new_zeros(0, wide)]),
        torch.cat([part.constant for part in parts] + [none]),
        torch.cat([part.error for part in parts] + [none]),
    )
