"""One execution of a network whose every error is as large as allowed and goes the worst way."""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.joins import Add
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.rounding import U32, Rounding, gamma

__all__ = ["worst_execution"]

ROUNDING = Rounding.sound(torch.float64)


def worst_execution(
    compiled: CompiledNetwork, x: Tensor, label: int, other: int
) -> tuple[float, float]:
    """(the margin's move where every error is as large as allowed and goes the worst way, b).

    b: the sum over all steps of |derivative| times the error there, at x [1, *shape].
    """
    head = compiled.head

    def run(errors: list[Tensor] | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        values, sizes, moved = [x.double()], [], []
        for index, step in enumerate(compiled.steps):
            inputs = [values[source] for source in step.sources]
            value = forward_step(step, inputs)
            size = torch.zeros_like(value)
            if isinstance(step.op, Affine):
                at = inputs[0].detach()
                size = step.op.output_rounding(at.abs(), step.op.linear(at).abs(), ROUNDING)
            elif isinstance(step.op, Add):
                size = U32 * value.detach().abs()
            error = torch.zeros_like(value) if errors is None else errors[index] * size
            sizes.append(size)
            moved.append(error.requires_grad_())
            values.append(value + error)
        last = values[-1].flatten(1)
        logits = last @ head.weight.T + head.bias
        size = last.detach().abs() @ head.absolute + head.bias_magnitude
        size = gamma(head.terms, U32) * size[0]
        lost = size[label] + size[other]
        return logits[0, label] - logits[0, other], [*sizes, lost], moved

    with torch.enable_grad():
        margin, sizes, errors = run(None)
        slopes = torch.autograd.grad(margin, errors)
    moved, last, _ = run([slope.sign() for slope in slopes])
    found = float((moved - margin).detach().abs() + last[-1])
    parts = [(g.abs() * d).sum() for g, d in zip(slopes, sizes[:-1], strict=True)]
    return found, float(torch.stack([*parts, sizes[-1]]).sum())
