"""The processes that train one network together, and what they tell each other.

Each rank computes a part of every batch. A loss is a mean over samples, so a rank's loss counts
with its share of the batch, and the sum of the ranks' gradients is the gradient of the whole batch.
Weights, optimiser, power-iteration vectors, running statistics and schedules are computed by every
rank from the same numbers in the same way. A run in one process is the case of one rank: then
nothing below communicates or changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["ALONE", "Ranks", "RanksLost"]


class RanksLost(RuntimeError):
    """Another rank has ended, hangs, or computes something else: this run cannot go on.

    What a checkpoint holds is not lost.
    """


@dataclass(frozen=True)
class Ranks:
    """Rank ``rank`` of ``size``; the default process group connects them (``group.joined``).

    Every method is called by all ranks in the same order. Raises RanksLost where one of them has
    not come for as long as the group's time limit says.
    """

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks for all."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """This rank's part of ``rows`` rows; two ranks' parts differ by one row at most."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def share(self, rows: int) -> float:
        """The part's share of ``rows`` rows."""
        part = self.part(rows)
        return (part.stop - part.start) / rows

    def total(self, x: Tensor) -> Tensor:
        """The sum over all ranks, any shape; its gradient is the sum of all ranks' gradients."""
        if self.alone:
            return x
        result: Tensor = _Total.apply(x)
        return result

    def statistics(self, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Mean and variance, [channels], of the batch of which x [batch, channels, ...] is a
        ``share``."""
        axes = [axis for axis in range(x.dim()) if axis != 1]
        if self.alone:
            var, mean = torch.var_mean(x, axes, correction=0)
            return mean, var
        mean = self.total(x.mean(axes) * share)
        offsets = x - mean.reshape(-1, *([1] * (x.dim() - 2)))
        return mean, self.total(offsets.square().mean(axes) * share)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over all ranks, in one message."""
        if self.alone:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        _together(dist.all_reduce, flat)
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def table(self, row: Tensor) -> Tensor:
        """Every rank's ``row``, one below the other: [ranks, *row]."""
        if self.alone:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.size)]
        _together(dist.all_gather, rows, row.contiguous())
        return torch.stack(rows)

    def decided(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The first rank's ``values``; ``device`` is what the ranks compute on."""
        if self.alone:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=device)
        _together(dist.broadcast, told, 0)
        return [float(value) for value in told.tolist()]

    def check_equal(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Raise RanksLost where the sum of a tensor is not the same number on all ranks."""
        if self.alone:
            return
        sums = [value.detach().to(device, torch.float64).sum() for value in tensors.values()]
        # As bits: a sum that is no number is equal to itself.
        table = self.table(torch.stack(sums)).view(torch.int64)
        differing = (table != table[0]).any(0).tolist()
        names = [name for name, differs in zip(tensors, differing, strict=True) if differs]
        if names:
            raise RanksLost(f"the ranks have come to different numbers, first in {names[0]}")


#: One process, the whole batch.
ALONE = Ranks()


class _Total(torch.autograd.Function):
    """Sum over the ranks. Each has a loss of its own, and the total depends on all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (gradient,) = gradients
        return _sum(gradient)


def _sum(x: Tensor) -> Tensor:
    result = x.clone(memory_format=torch.contiguous_format)
    _together(dist.all_reduce, result)
    return result


def _together(collective: Callable[..., object], *arguments: object) -> None:
    try:
        collective(*arguments)
    except torch.AcceleratorError:
        raise  # this rank's own device failed
    except RuntimeError as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:300]
        raise RanksLost(f"the other ranks do not answer: {reason}") from error
