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

from workers.verification.block_sizes import ROW_BYTES
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

#: Classes that are always taken together.
FEW_CLASSES = 16


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
    wanted: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] float64 on the deployed f_y - f_j; 0 in the label's column.

    wanted [classes] bool: the classes that are asked for; of the others -inf is said.

    (w_y - w_j) c + b_y - b_j - sum_m |(w_y - w_j) terms_m| - |w_y - w_j| slack, and the roundings
    of the deployed head and of this sum on |w| reach + |b|. NaN where nothing is known.
    Raises OutOfTime.
    """
    head = head.on(state.centre.device)
    deployed, own = head_gammas(head, rounding)
    logits = head.logits(state.centre.flatten(1).to(torch.float64))
    size = head.sizes(state.reach().flatten(1).to(torch.float64))
    size = size + size.gather(1, labels[:, None])
    lost = raised(size * (deployed + own) * ROOM, MANY) + head.min_lead(rounding)
    for group, rows in state.terms.items():
        ball = state.ball and group == INPUT_TERMS
        moved = _moved(head, rows.flatten(2), labels, wanted, ball=ball, clock=clock)
        lost = lost + raised(moved, MANY)
    slacks = state.slack.flatten(1).to(torch.float64)
    lost = lost + raised(_slack_between(head, slacks, labels), MANY)
    return logits.gather(1, labels[:, None]) - logits - raised(lost, MANY)


def _moved(
    head: Head, rows: Tensor, labels: Tensor, wanted: Tensor | None, *, ball: bool, clock: Clock
) -> Tensor:
    """How far terms [batch, terms, features] move f_y - f_j together, [batch, classes] float64.

    Blocks of classes, for thousands of them. wanted [classes] bool: of the others infinite.
    """
    batch, count, _ = rows.shape
    each = max(1, ROW_BYTES[rows.device.type] // (8 * max(1, batch * count)))
    if wanted is None and head.classes <= max(each, FEW_CLASSES):
        each = head.classes

    def images(chosen: slice | Tensor) -> Tensor:
        if head.dense is None:
            return rows[..., chosen].to(torch.float64)
        weight = head.dense[chosen]
        return in_pieces(
            lambda flat: flat.to(torch.float64) @ weight.T,
            [rows],
            (len(weight),),
            clock,
            weight.numel(),
        )

    index = labels[:, None, None].expand(-1, count, 1)
    if wanted is None and each == head.classes:
        whole = images(slice(0, head.classes))
        return row_norms(whole.gather(2, index) - whole, ball=ball)
    if head.dense is None:
        own = rows.gather(2, index).to(torch.float64)
    else:
        own = rows.to(torch.float64) @ head.dense[labels][:, :, None]
    if wanted is None:
        blocks = [row_norms(own - images(part), ball=ball) for part in head.parts(each)]
        return torch.cat(blocks, dim=1)
    places = wanted.nonzero().flatten()
    blocks = [row_norms(own - images(part), ball=ball) for part in places.split(each)]
    result = own.new_full((batch, head.classes), torch.inf)
    return result.index_copy(1, places, torch.cat(blocks, dim=1)) if blocks else result


def _slack_between(head: Head, slacks: Tensor, labels: Tensor) -> Tensor:
    """|w_y - w_j| slack, [batch, classes], for slacks [batch, features] >= 0."""
    if head.dense is None:
        return (slacks + slacks.gather(1, labels[:, None])).scatter(1, labels[:, None], 0.0)
    own = head.dense[labels][:, None, :]
    room = ROW_BYTES[slacks.device.type] // (8 * max(1, own.numel()))
    blocks = [
        torch.einsum("bf,bcf->bc", slacks, (own - head.dense[None, part]).abs())
        for part in head.parts(max(room, FEW_CLASSES))
    ]
    return torch.cat(blocks, dim=1)
