"""Certified radius per sample: batched bracketing over epsilon with any bound as the predicate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["radius_rounded_down", "search_radius"]

#: Halvings below the smallest known failure before a sample is left with no radius.
HALVINGS = 20


def radius_rounded_down(radius: Tensor) -> Tensor:
    """Radii with 21 significant bits, rounded down: last bits may depend on the batch."""
    mantissa, exponent = torch.frexp(radius)
    return torch.where(
        torch.isfinite(radius), torch.ldexp(torch.floor(mantissa * 2**21) / 2**21, exponent), radius
    )


def search_radius(
    proves: Callable[[Tensor, Tensor], Tensor],
    proved: Tensor,
    failed: Tensor,
    start: Tensor,
    cap: float,
    *,
    width: float,
    stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Largest epsilon [batch] float64 at which ``proves`` succeeded; infinite beyond ``cap``.

    proves(rows, epsilon [rows]) -> [rows] bool; proved [batch]: already proved epsilons (0: none);
    failed [batch]: already failed ones (inf: none); start [batch]: first guess where nothing is
    known; width: the bracket ends when its ends differ by less than this share. Every success is a
    proof of its own, so nothing depends on monotony. The epsilons tried depend on the sample alone,
    not on the batch. ``stop`` is asked before every try.
    """
    low, high = proved.clone(), failed.clone()
    tried = torch.zeros_like(low)
    while True:
        unbounded = low >= cap
        wide = (high - low) > width * high
        no_root = (low <= 0) & (tried >= HALVINGS)
        rows = (~unbounded & (wide | torch.isinf(high)) & ~no_root).nonzero().flatten()
        if not rows.numel() or stop():
            break
        lower, upper = low[rows], high[rows]
        guess = torch.where(
            torch.isinf(upper),
            torch.where(lower > 0, 2 * lower, start[rows]),
            torch.where(lower > 0, (lower + upper) / 2, upper / 4),
        )
        guess = guess.clamp_max(cap)
        success = proves(rows, guess)
        low[rows] = torch.where(success, guess, lower)
        high[rows] = torch.where(success, upper, guess)
        tried[rows] += 1
        if bool((tried > 2000).any()):
            break
    return torch.where(low >= cap, torch.full_like(low, math.inf), low)
