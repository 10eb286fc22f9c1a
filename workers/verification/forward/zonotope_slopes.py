"""Slopes of a zonotope, learnt (COLT, Balunovic and Vechev 2020): one per unstable neuron.

The margins' bounds are ascended by projected Adam in all slopes at once; the boxes of later layers
follow the slopes of earlier ones. Nothing here is a proof: any slopes are valid, and what a
``ZonotopePass`` with them says is sound. So this runs in plain float32.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.forward.zonotope import INPUT_TERMS, Zonotope, of_region, row_norms
from workers.verification.forward.zonotope_pass import ZonotopePass, zonotope_margins_at_head
from workers.verification.forward.zonotope_steps import (
    NewTerms,
    affine,
    boxed,
    elementwise,
    linear,
)
from workers.verification.graph.affine import Affine
from workers.verification.layers.registry import rules_of
from workers.verification.layers.rules import Box
from workers.verification.rounding import Rounding

__all__ = ["LEARNING_RATE", "learned_slopes"]

#: COLT's step.
LEARNING_RATE = 0.1
#: A bound beyond this share of the largest logit is left alone: rounding takes less.
ENOUGH = 2.0**-12

IGNORED = Rounding.ignored()


def learned_slopes(
    done: ZonotopePass,
    labels: Tensor,
    open_pairs: Tensor,
    iterations: int,
    *,
    clock: Clock = UNLIMITED,
) -> dict[int, Tensor]:
    """Slopes by step, [batch, *shape] in the arithmetic of the pass, from those of least area.

    done: a pass that has run: its boxes hold, whatever the slopes are. open_pairs [batch, classes]
    bool: the margins that count. Each sample keeps the slopes of its own best step. Once the time
    is over, the best met so far. Raises OutOfTime before the first step.
    """
    some = open_pairs.any(0)
    wanted = None if bool(some.sum() * 2 > len(some)) else some
    narrow = torch.float32 if done.compiled.float32_safe else torch.float64
    walk = _Walk(done, narrow, clock)
    slopes = walk.start()
    if not slopes:
        return {}
    best = {index: slope.detach().clone() for index, slope in slopes.items()}
    batch = open_pairs.shape[0]
    highest = torch.full((batch,), -math.inf, dtype=torch.float64, device=labels.device)
    optimizer = torch.optim.Adam(list(slopes.values()), lr=LEARNING_RATE)
    with contextlib.suppress(OutOfTime):
        for _ in range(iterations + 1):
            with torch.enable_grad():
                margins, size = walk.margins(slopes, labels, wanted)
                counted = margins.masked_fill(~open_pairs, torch.inf)
                lowest = counted.detach().amin(1)
                better = lowest > highest
                highest = torch.where(better, lowest, highest)
                for index, slope in slopes.items():
                    shaped = better.reshape(-1, *([1] * (slope.dim() - 1)))
                    best[index] = torch.where(shaped, slope.detach(), best[index])
                wanting = open_pairs & (highest <= ENOUGH * size)[:, None]
                if not bool(wanting.any()):
                    break
                # Cross-entropy of the worst logits, of what is still open.
                losses = torch.logsumexp(-counted.masked_fill(~wanting, torch.inf), dim=1)
                loss = torch.nn.functional.softplus(losses[wanting.any(1)]).sum()
                if not loss.requires_grad:
                    # Behind all of them stand layers that begin anew from their boxes.
                    return {}
                if not bool(torch.isfinite(loss)):
                    break
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            optimizer.step()
            with torch.no_grad():
                for index, slope in slopes.items():
                    slope.clamp_(walk.min_slopes[index], 1.0)
    return {index: slope.to(done.dtype) for index, slope in best.items()}


@dataclass
class _Walk:
    """The network's zonotope as a function of the slopes, without rounding."""

    done: ZonotopePass
    dtype: torch.dtype
    clock: Clock
    min_slopes: dict[int, float] = field(default_factory=dict)
    #: Boxes that hold, and the values before the first slope.
    boxes: dict[int, Box] = field(default_factory=dict)
    fixed: dict[int, Zonotope] = field(default_factory=dict)

    def start(self) -> dict[int, Tensor]:
        """The chords' slopes, by step, of the neurons that have a term."""
        done, slopes = self.done, {}
        for value, (lower, upper) in done.boxes.items():
            self.boxes[value] = lower.to(self.dtype), upper.to(self.dtype)
        steps = done.compiled.steps
        for index, terms in done.terms.items():
            relax = rules_of(steps[index].op).relax
            if relax is None or not bool(terms.used.any()):
                continue
            lines = relax(steps[index].op, *self.boxes[steps[index].sources[0]], "cap", IGNORED)
            if bool(lines.free.any()):
                slopes[index] = lines.lower_slope.clone().requires_grad_(True)
                self.min_slopes[index] = lines.min_slope
        first = min(slopes, default=0)
        states: dict[int, Zonotope] = {0: of_region(done.region, IGNORED, self.dtype)}
        for index in range(first):
            states[index + 1] = self.step(index, states, {})
        later = {source for step in steps[first:] for source in step.sources}
        self.fixed = {value: state for value, state in states.items() if value in later}
        return slopes

    def margins(
        self, slopes: dict[int, Tensor], labels: Tensor, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(margins [batch, classes] of the wanted ones, largest magnitude of a logit [batch]),
        float64."""
        states, first = dict(self.fixed), min(slopes)
        steps = self.done.compiled.steps
        for index in range(first, len(steps)):
            states[index + 1] = self.step(index, states, slopes)
        last = states[len(steps)]
        head = self.done.compiled.head
        margins = zonotope_margins_at_head(
            head, last, labels, IGNORED, wanted=wanted, clock=self.clock
        )
        centre = last.centre.detach().flatten(1).to(torch.float64)
        on = head.on(centre.device)
        return margins, on.logits(centre).abs().amax(1)

    def step(self, index: int, states: dict[int, Zonotope], slopes: dict[int, Tensor]) -> Zonotope:
        """One step."""
        step = self.done.compiled.steps[index]
        inputs = [states[source] for source in step.sources]
        if isinstance(step.op, Affine):
            return affine(step, inputs[0], IGNORED, self.clock)
        rules = rules_of(step.op)
        if rules.linear is not None:
            return linear(step, inputs, IGNORED, self.clock)
        chosen = self.done.terms[index]
        if rules.relax is None:
            box = self.boxes[index + 1]
            return boxed(step, index, box, IGNORED, ball=inputs[0].ball, chosen=chosen)[0]
        box = _cut(self.boxes[step.sources[0]], inputs[0], chosen)
        return elementwise(
            step, index, inputs[0], box, IGNORED, slopes=slopes.get(index), chosen=chosen
        )[0]


def _cut(box: Box, state: Zonotope, chosen: NewTerms) -> Box:
    """The box, cut with the zonotope's where a neuron has a term: of the others it is enough."""
    shape = state.centre.shape
    half = chosen.values(state.slack)
    for group, rows in state.terms.items():
        flat = rows.flatten(2)
        at = flat.gather(2, chosen.place[:, None, :].expand(-1, flat.shape[1], -1))
        half = half + row_norms(at, ball=state.ball and group == INPUT_TERMS)
    lower, upper = (end.flatten(1) for end in box)
    centre = state.centre.flatten(1).gather(1, chosen.place)
    low = torch.maximum(lower.gather(1, chosen.place), centre - half)
    high = torch.minimum(upper.gather(1, chosen.place), centre + half)
    lower = lower.scatter(1, chosen.place, low).reshape(shape)
    upper = upper.scatter(1, chosen.place, torch.maximum(low, high)).reshape(shape)
    return lower, upper
