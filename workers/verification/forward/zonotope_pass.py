"""A zonotope through the whole network, beside ball and box: each tightens the other's boxes.

The walk of ball and box is ``ForwardPass``; before every elementwise layer its input's box is cut
with the zonotope's, and the layer's line is drawn over what is left. So no box is wider than
interval bounds have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.forward.margins import head_gammas
from workers.verification.forward.propagation import Enclosure, propagate
from workers.verification.forward.zonotope import INPUT_TERMS, Zonotope, of_region, row_norms
from workers.verification.forward.zonotope_steps import (
    NewTerms,
    affine,
    boxed,
    elementwise,
    in_pieces,
    linear,
)
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork, Head
from workers.verification.layers.registry import rules_of
from workers.verification.layers.rules import Box
from workers.verification.numerics import MANY, ROOM, raised
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["ZonotopePass", "zonotope_margins_at_head"]


@dataclass
class ZonotopePass:
    """Everything that one pass over a batch takes and keeps.

    slopes: by step, of neurons whose slope is free; boxes: by value, known to hold besides; terms:
    by step, which neurons get terms of their own (missing: the largest, ``room`` of each sample in
    all). Afterwards ``boxes`` and ``terms`` are those that were used.
    """

    compiled: CompiledNetwork
    region: Region
    rounding: Rounding
    dtype: torch.dtype
    room: int
    slopes: Mapping[int, Tensor] = field(default_factory=dict)
    boxes: dict[int, Box] = field(default_factory=dict)
    terms: dict[int, NewTerms] = field(default_factory=dict)
    clock: Clock = UNLIMITED
    _states: list[Zonotope | None] = field(default_factory=list, repr=False)
    _values: list[Enclosure | None] = field(default_factory=list, repr=False)

    def run(self) -> tuple[Enclosure, Zonotope]:
        """Ball and box, and the zonotope, before the head. Raises OutOfTime."""
        steps = self.compiled.steps
        self._states = [of_region(self.region, self.rounding, self.dtype)]
        last_use = {source: i for i, step in enumerate(steps) for source in step.sources}

        def advance(index: int) -> None:
            for made in range(len(self._states) - 1, index):
                self._states.append(self._step(made))
                for source in set(steps[made].sources):
                    if last_use[source] == made:
                        self._states[source] = None

        def refine(index: int, values: list[Enclosure | None]) -> None:
            advance(index)
            step = steps[index]
            if isinstance(step.op, Affine) or rules_of(step.op).linear is not None:
                return
            for source in dict.fromkeys(step.sources):
                self._cut(source, self._held(source))

        self._values = []
        enclosure = propagate(
            self.compiled,
            self.region,
            rounding=self.rounding,
            dtype=self.dtype,
            refine=refine,
            values=self._values,
            clock=self.clock,
        )
        advance(len(steps))
        return enclosure, self._held(len(steps))

    def _held(self, value: int) -> Zonotope:
        state = self._states[value]
        if state is None:
            raise RuntimeError(f"value {value} was dropped before its last use")
        return state

    def _step(self, index: int) -> Zonotope:
        step = self.compiled.steps[index]
        inputs = [self._held(source) for source in step.sources]
        if isinstance(step.op, Affine):
            return affine(step, inputs[0], self.rounding, self.clock)
        rules = rules_of(step.op)
        if rules.linear is not None:
            return linear(step, inputs, self.rounding, self.clock)
        chosen = self.terms.get(index)
        room = self._room() if chosen is None else None
        if rules.relax is None:
            self._cut(index + 1)
            result, chosen = boxed(
                step,
                index,
                self.boxes[index + 1],
                self.rounding,
                ball=inputs[0].ball,
                chosen=chosen,
                room=room,
            )
        else:
            result, chosen = elementwise(
                step,
                index,
                inputs[0],
                self.boxes[step.sources[0]],
                self.rounding,
                slopes=self.slopes.get(index),
                chosen=chosen,
                room=room,
            )
        self.terms[index] = chosen
        return result

    def _room(self) -> Tensor:
        """How many terms each sample may still begin, [batch]."""
        batch = self.region.x.shape[0]
        room = torch.full((batch,), self.room, device=self.region.x.device)
        for chosen in self.terms.values():
            room = room - chosen.used.sum(1)
        return room

    def _cut(self, value: int, state: Zonotope | None = None) -> None:
        """The box of a value: what ball and box, the zonotope and earlier passes say together.

        Where the zonotope says nothing (NaN), ball and box do.
        """
        enclosure = self._values[value]
        if enclosure is None or enclosure.lower is None or enclosure.upper is None:
            raise RuntimeError(f"value {value} has no box")
        known = [] if state is None else [state.box(self.rounding)]
        if value in self.boxes:
            known.append(self.boxes[value])
        for lower, upper in known:
            enclosure.lower = torch.fmax(enclosure.lower, lower)
            enclosure.upper = torch.fmin(enclosure.upper, upper)
        self.boxes[value] = enclosure.lower, enclosure.upper


def zonotope_margins_at_head(
    head: Head,
    state: Zonotope,
    labels: Tensor,
    rounding: Rounding,
    *,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] float64 on the deployed f_y - f_j; 0 in the label's column.

    (w_y - w_j) c + b_y - b_j - sum_m |(w_y - w_j) terms_m| - |w_y - w_j| slack, and the roundings
    of the deployed head and of this sum on |w| reach + |b|. NaN where nothing is known.
    Raises OutOfTime.
    """
    head = head.on(state.centre.device)
    weight = head.weight
    deployed, own = head_gammas(head, rounding)

    def pairs(logits: Tensor) -> Tensor:
        """f_y - f_j of [batch, ..., classes]."""
        index = labels.reshape(-1, *([1] * (logits.dim() - 1)))
        return logits.gather(-1, index.expand(*logits.shape[:-1], 1)) - logits

    centre = state.centre.flatten(1).to(torch.float64)
    margin = pairs(centre @ weight.T + head.bias)
    reach = state.reach().flatten(1).to(torch.float64)
    size = reach @ head.absolute + head.bias_magnitude
    size = size + size.gather(1, labels[:, None])
    lost = raised(size * (deployed + own) * ROOM, MANY) + head.min_lead(rounding)
    for group, rows in state.terms.items():
        images = in_pieces(
            lambda flat: flat.to(torch.float64) @ weight.T,
            [rows.flatten(2)],
            (weight.shape[0],),
            clock,
            weight.numel(),
        )
        moved = row_norms(pairs(images), ball=state.ball and group == INPUT_TERMS)
        lost = lost + raised(moved, MANY)
    differences = (weight[labels][:, None, :] - weight[None, :, :]).abs()
    slacks = state.slack.flatten(1).to(torch.float64)
    lost = lost + raised(torch.einsum("bf,bcf->bc", slacks, differences), MANY)
    return margin - raised(lost, MANY)
