"""The plain test beside the budgets of parity: are the deployed logits simply what ours are?

A proved budget grows with the depth of a network. On ten residual layers it is many times the
margin where ONNX Runtime is off by 4e-6, and would let a network pass that is another one. So
logits must also agree to ``TOLERANCE`` of the largest logit. Rounding may explain a larger
difference, where sums cancel or errors grow: then a float64 pass that is disturbed at random, by
as much as float32 may err at each layer, moves about as far. Where that may take a number across a
jump (Sign), passes are on either side of it.

This finds mistakes of an importer. It is no part of a proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.normalization import LocalResponse
from workers.verification.clock import Clock
from workers.verification.enclosure import Enclosure
from workers.verification.forward.propagation import forward_step, propagate
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import apply_layer, rules_of
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

__all__ = ["Forward", "forward_pass", "implausible"]

#: Differences below this share of the largest logit need no explanation.
TOLERANCE = 1e-3
#: Disturbed passes, and how many times their largest move a difference may be: they are few, and
#: real errors are not random. Where numbers may jump there are more.
DRAWS, ROOM, DRAWS_AT_JUMPS = 3, 30.0, 16

#: (step, inputs) -> the step's value.
Forward = Callable[[GraphStep, list[Tensor]], Tensor]


def forward_pass(
    compiled: CompiledNetwork, x: Tensor, clock: Clock, forward: Forward = forward_step
) -> tuple[Tensor, Tensor]:
    """The head's input [N, features], and the largest number on the way there [N].

    x [N, *shape]: float64. Raises OutOfTime.
    """
    last = {source: i for i, step in enumerate(compiled.steps) for source in step.sources}
    values: dict[int, Tensor] = {0: x}
    largest = x.new_zeros(len(x))
    final = x
    for index, step in enumerate(compiled.steps):
        clock.check()
        final = forward(step, [values[source] for source in step.sources])
        largest = torch.maximum(largest, final.abs().flatten(1).amax(1))
        values[index + 1] = final
        for source in set(step.sources):
            if last[source] == index:
                del values[source]
    return final.flatten(1), largest


def implausible(
    compiled: CompiledNetwork,
    x: Tensor,
    logits: Tensor,
    given: Tensor,
    largest: float,
    clock: Clock,
    *,
    underflow: bool = False,
) -> Tensor:
    """Rows [N] whose deployed logits ``given`` rounding does not explain.

    x [N, *shape], logits and given [N, classes]: float64; largest: the largest |logit| of all
    inputs compared together; underflow: nor what float32 loses below its normal numbers. Raises
    OutOfTime.
    """
    off = (given - logits).abs()
    # Written so that a NaN is implausible.
    # Nor do those that may be one number's underflow, however small the logits are: of a sample of
    # denormal numbers all of them may be.
    plain = TOLERANCE * largest + Rounding.sound(torch.float64).underflow
    found = ~(off <= plain).all(1)
    rows = found.nonzero().flatten()
    if not len(rows):
        return found
    moved = torch.zeros_like(logits[rows])
    sides = _sides(compiled, x[rows], clock)
    for draw in range(DRAWS_AT_JUMPS if sides else DRAWS):
        generator = torch.Generator().manual_seed(draw)
        disturbed = _disturbed(compiled, x[rows], generator, clock, sides, underflow=underflow)
        moved = torch.maximum(moved, (disturbed - logits[rows]).abs())
    # A disturbance that overflows explains everything.
    allowed = plain + ROOM * moved.amax(1, keepdim=True).nan_to_num(torch.inf)
    found[rows] = ~(off[rows] <= allowed).all(1)
    return found


def _sides(compiled: CompiledNetwork, x: Tensor, clock: Clock) -> dict[str, tuple[Tensor, Tensor]]:
    """The least and the largest values of the steps that jump at these inputs, where float32 may
    have either, by the step's name; and of those whose rounding is not in proportion to them."""
    jumps = [
        (index, step)
        for index, step in enumerate(compiled.steps)
        if rules_of(step.op).jumps or isinstance(step.op, LocalResponse)
    ]
    if not jumps:
        return {}
    values: list[Enclosure | None] = []
    with exact_arithmetic():
        propagate(
            compiled,
            Region(x.float(), torch.zeros(len(x), dtype=torch.float64), "linf", False),
            rounding=Rounding.sound(torch.float64),
            dtype=torch.float64,
            ball=False,
            refine=lambda index, values: None,
            values=values,
            clock=clock,
        )
    found = {}
    for index, step in jumps:
        steps = rules_of(step.op).jumps
        state = values[step.sources[0] if steps else index + 1]
        if state is not None and state.lower is not None and state.upper is not None:
            lower, upper = state.lower, state.upper
            if steps:
                lower, upper = (apply_layer(step.layer(Layer), end) for end in (lower, upper))
            if not torch.equal(lower, upper):
                found[step.name] = lower, upper
    return found


def _disturbed(
    compiled: CompiledNetwork,
    x: Tensor,
    generator: torch.Generator,
    clock: Clock,
    sides: Mapping[str, tuple[Tensor, Tensor]],
    *,
    underflow: bool,
) -> Tensor:
    """Logits of a pass in which every number is off by as much as float32 may err there."""
    rounding = Rounding.sound(torch.float64)
    tiny = rounding.underflow if underflow else 0.0

    def signs(like: Tensor) -> Tensor:
        drawn = torch.randint(0, 2, like.shape, generator=generator)
        return drawn.to(like.dtype).mul_(2.0).sub_(1.0)

    def forward(step: GraphStep, inputs: list[Tensor]) -> Tensor:
        value = forward_step(step, inputs)
        ends = sides.get(step.name)
        if ends is not None:
            return torch.where(signs(value) > 0, *ends)
        if rules_of(step.op).jumps:
            return value
        if isinstance(step.op, Affine):
            op = step.op
            size = op.absolute(inputs[0].abs()) + op.bias_magnitude
            lost = rounding.deployed_gamma(op.terms) * size + tiny * op.floor
            return value + lost * signs(value)
        return value + (rounding.single_operation * value.abs() + tiny) * signs(value)

    with exact_arithmetic():
        centre, _ = forward_pass(compiled, x, clock, forward)
        head = compiled.head
        logits = head.logits(centre)
        size = head.sizes(centre.abs())
        gamma = rounding.deployed_gamma(head.terms) if head.terms else 0.0
        return logits + (gamma * size + tiny * head.floor) * signs(logits)
