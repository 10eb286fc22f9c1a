"""Rules that several families share: layers that are exact in float32, and those that round once.

Exact are layers that only choose among numbers and constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import ROOT_OF_SQUARES, Ball, LinearPart, plain_value
from workers.verification.rounding import Rounding

__all__ = ["EXACT", "EXACT_JOIN", "MOVES", "ONE_ROUNDING", "monotone", "moved"]


def _still(step: GraphStep, centre_norm: Tensor, rounding: Rounding) -> tuple[float, float]:
    return 1.0, 0.0


#: Exact in float32 and 1-Lipschitz.
EXACT = Ball(_still, reads_norm=False)
#: The same for several inputs that are kept side by side or compared.
EXACT_JOIN = replace(EXACT, join=ROOT_OF_SQUARES)


def _rounded_once(step: GraphStep, centre_norm: Tensor, rounding: Rounding) -> tuple[float, Tensor]:
    once = rounding.single_operation
    size = torch.Size(step.shape).numel() ** 0.5
    return 1.0 + once, once * centre_norm + 4 * rounding.underflow * size


#: 1-Lipschitz in each input, with one rounding of the result.
ONE_ROUNDING = Ball(_rounded_once)


def moved(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Forward rule of moves (reshape, slice, constant padding): the same numbers elsewhere."""
    (state,) = inputs
    layer = step.layer(Layer)
    return Enclosure(
        layer(state.centre),
        state.radius,
        None if state.lower is None else layer(state.lower),
        None if state.upper is None else layer(state.upper),
        state.valid,
        state.round,
    )


def _moves(layer: Layer, *changes: Tensor) -> Tensor:
    """Numbers that are moved: what the layer puts there itself does not change."""
    still: Tensor = layer(*(torch.zeros_like(change[:1]) for change in changes))
    result: Tensor = layer(*changes)
    return result - still if bool(still.any()) else result


#: Of layers that only move numbers, and put constants beside them.
MOVES = LinearPart(_moves)


def monotone(
    ball: Ball, value: Callable[..., Tensor] = plain_value
) -> Callable[[GraphStep, list[Enclosure], Rounding], Enclosure]:
    """Forward rule of a layer that is exact in float32 and monotone in every input.

    Its box goes through the layer itself.
    """

    def forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
        layer = step.op
        lower = [state.lower for state in inputs if state.lower is not None]
        upper = [state.upper for state in inputs if state.upper is not None]
        boxed = len(lower) == len(inputs)
        joined = ball.join.radius([state.radius for state in inputs])
        result = Enclosure(
            value(layer, *(state.centre for state in inputs)),
            ball.grown(step, joined, joined, rounding),
            value(layer, *lower) if boxed else None,
            value(layer, *upper) if boxed else None,
            torch.stack([state.valid for state in inputs]).all(0),
        )
        return box_to_ball(result)

    return forward
