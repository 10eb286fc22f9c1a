"""ReLU on a box that is held as its middle and half its width, in few passes over memory.

With a middle m and half a width r, ReLU's ends are max(m + r, 0) and max(m - r, 0). Half their
difference is min(h, r) with h = max(m + r, 0) / 2, and their mean is 2 h - min(h, r): four
elementwise operations, and five for both gradients, where autograd needs six and eleven. A step of
IBP is bound by them wherever its tensors are larger than the cache. For training alone: nothing is
rounded outwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["rectified"]


def rectified(middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half the width, [batch, ...], of ReLU's image of [middle - half, middle + half].

    half >= 0. The gradients are those of ``torch.relu`` at both ends, none at 0; they have no
    gradients themselves.
    """
    if torch.compiler.is_compiling():
        # A compiler fuses the plain formula by itself.
        lower, upper = torch.relu(middle - half), torch.relu(middle + half)
        return (upper + lower) * 0.5, (upper - lower) * 0.5
    result: tuple[Tensor, Tensor] = _Rectified.apply(middle, half)
    return result


class _Rectified(torch.autograd.Function):
    """What it keeps for its gradients are its results, which the next layer keeps anyway."""

    @staticmethod
    def forward(ctx: Any, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        upper = torch.lerp(middle, half, 0.5).relu_()
        reach = torch.minimum(upper, half)
        centre = torch.lerp(reach, upper, 2.0, out=upper)
        ctx.save_for_backward(centre, reach)
        return centre, reach

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Where the lower end is above 0 (the centre beyond the reach) both gradients pass, where
        the upper end alone is (both are equal) each gets their mean, elsewhere none passes."""
        centre, reach = ctx.saved_tensors
        mean = torch.lerp(middle, half, 0.5)
        torch.ops.aten.threshold_backward.grad_input(mean, centre, 0, grad_input=mean)
        # 1 or 0, as numbers of the same type.
        active = torch.gt(centre, reach, out=torch.empty_like(centre))
        of_middle = torch.lerp(mean, middle, active, out=active)
        return of_middle, torch.lerp(of_middle, mean, 2.0, out=mean)
