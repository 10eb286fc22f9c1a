"""Certified radius per sample: a bracket over epsilon, with any bound as the predicate.

What a bound says at one epsilon costs as much as a verdict, so few are asked for: the margins of
the tries before, as far as they were told, say where the next one is worth most.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Lost", "radius_rounded_down", "search_radius"]

#: Tries below the smallest known failure before a sample is left with no radius.
TRIES_FROM_NOTHING = 20
#: While nothing has failed, the next epsilon is at most so many times the last one proved, and
#: while nothing is proved, at least this share of the smallest one that failed.
LEAP, DROP = 4.0, 0.25
#: While nothing has failed, margins are followed so far: bounds bend beyond what is known of them.
#: After one try alone nearly to the end, as its root allows for that.
CAUTION, CAUTION_ALONE = 0.65, 0.7
#: Where ends are far apart, the next epsilon lies so far between their logarithms.
BEYOND = 0.6
#: Where nothing is known of margins: the next epsilon above one that is proved.
AHEAD = 1.5
#: No try is nearer to the one proved than this share of the bracket.
NEAR = 0.125
#: What is proved is next to nothing below this share of the first guess: then that guess is tried.
TINY = 2.0**-10
#: After two tries that left more of the bracket it is halved.
SLOW = 0.6


def radius_rounded_down(radius: Tensor) -> Tensor:
    """Radii with 21 significant bits, rounded down: last bits may depend on the batch."""
    return _significant(radius, 21)


def _significant(value: Tensor, bits: int) -> Tensor:
    mantissa, exponent = torch.frexp(value)
    short = torch.ldexp(torch.floor(mantissa * 2.0**bits) / 2.0**bits, exponent)
    return torch.where(torch.isfinite(value), short, value)


def _next(value: Tensor, bits: int) -> Tensor:
    """The smallest number above ``value`` > 0 that has so many significant bits; of 0 it is 0."""
    mantissa, exponent = torch.frexp(value)
    above = torch.ldexp((torch.floor(mantissa * 2.0**bits) + 1.0) / 2.0**bits, exponent)
    return torch.where(value > 0, above, 0.0)


class Lost:
    """What of the margin at the centre a bound loses up to an epsilon: a guess at its radius.

    The share lost per epsilon, (1 - margin) / epsilon, grows slowly and nearly in proportion to
    epsilon: a straight line through two tries. It only decides what is tried.
    """

    def __init__(self, batch: int) -> None:
        #: Of the last two tries: epsilon, and share lost per epsilon (NaN: none yet).
        self.epsilon = torch.full((batch, 2), torch.nan, dtype=torch.float64)
        self.rate = self.epsilon.clone()

    def learn(self, rows: Tensor, epsilon: Tensor, margin: Tensor) -> None:
        """margin [rows]: at this epsilon, in units of the margin at the centre."""
        usable = torch.isfinite(margin) & (epsilon > 0)
        rows, epsilon, margin = rows[usable], epsilon[usable], margin[usable]
        self.epsilon[rows, 0], self.rate[rows, 0] = self.epsilon[rows, 1], self.rate[rows, 1]
        self.epsilon[rows, 1], self.rate[rows, 1] = epsilon, (1.0 - margin) / epsilon

    def caution(self, rows: Tensor) -> Tensor:
        """Which share of the way to ``root`` to go while nothing has failed, [rows]."""
        return torch.where(torch.isnan(self.rate[rows, 0]), CAUTION_ALONE, CAUTION)

    def root(self, rows: Tensor) -> Tensor:
        """Where about nothing is left, [rows]; infinite where nothing is lost, NaN: not known."""
        first, last = self.rate[rows].unbind(1)
        gap = self.epsilon[rows, 1] - self.epsilon[rows, 0]
        growth = ((last - first) / gap).nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
        # epsilon (start + growth epsilon) = 1.
        start = (last - growth * self.epsilon[rows, 1]).clamp_min(0.0)
        found = 2.0 / (start + (start.square() + 4.0 * growth).sqrt())
        # One try: the loss grows in proportion to epsilon towards it, and to its square beyond, as
        # bounds that bend seldom do worse.
        alone = torch.isnan(first)
        loss = (last * self.epsilon[rows, 1]).clamp_min(0.0)
        only = self.epsilon[rows, 1] / torch.where(loss > 1.0, loss, loss.sqrt())
        # Between a try that proved and one that failed the margin bends down: its root is beyond
        # that of the chord.
        ends = self.epsilon[rows]
        left = 1.0 - self.rate[rows] * ends
        chord = ends[:, 0] + gap * left[:, 0] / (left[:, 0] - left[:, 1])
        between = left.prod(1) < 0
        found = torch.where(between, torch.maximum(found, chord), found)
        found = torch.where(alone, only, found)
        return torch.where(last <= 0, torch.inf, found)


def search_radius(
    proves: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    proved: Tensor,
    failed: Tensor,
    start: Tensor,
    cap: float,
    *,
    width: float,
    tries: int = 2000,
    lost: Lost | None = None,
    allowed: Callable[[Tensor], Tensor] | None = None,
    known: Callable[[Tensor], Tensor] | None = None,
    gain: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Largest epsilon [batch] float64 at which ``proves`` succeeded; infinite beyond ``cap``.

    proves(rows, epsilon [rows]) -> ([rows] bool, [rows] float64 margins in units of those at the
    centre, NaN where they are not known); proved [batch]: already proved epsilons (0: none);
    failed [batch]: already failed ones (inf: none); start [batch]: first guess where nothing is
    known; width: what is tried are numbers of as many bits as this share has, and the bracket ends
    when none of them is left inside; tries: of a sample at most; lost: what is known of margins
    already; allowed(rows) -> [rows] bool: those for which another try may be paid, asked before
    every try; known(rows) -> [rows] float64: what is proved of them after a try, which one that
    failed may have raised; gain: no try where margins promise less than this share of what is
    proved.

    Every success is a proof of its own, so nothing depends on monotony or on margins. Where a bound
    is monotone the result is the largest of those numbers at which it succeeds, whatever the
    margins said on the way: they differ from one arithmetic to another. ``stop`` is asked before
    every try.
    """
    low, high = proved.clone(), failed.clone()
    lost = Lost(len(low)) if lost is None else lost
    tried = torch.zeros_like(low)
    #: How many tries in a row have left more than ``SLOW`` of the bracket.
    slow = torch.zeros_like(low)
    everything = torch.arange(len(low))
    bits = 1 - round(math.log2(width))
    while True:
        wide = _next(low, bits) < high
        no_root = (low <= 0) & (tried >= TRIES_FROM_NOTHING)
        going = (low < cap) & (wide | torch.isinf(high)) & ~no_root & (tried < tries)
        if gain:
            going = going & ~(lost.root(everything) < (1.0 + gain) * low)
        rows = going.nonzero().flatten()
        if allowed is not None:
            rows = rows[allowed(rows)]
        if not rows.numel() or stop():
            break
        lower, upper = low[rows], high[rows]
        root, caution = lost.root(rows), lost.caution(rows)
        guess = _guess(
            lower, upper, root, start[rows], slow[rows] > 1, width, cap, bits, caution=caution
        )
        success, margin = proves(rows, guess)
        lost.learn(rows, guess, margin)
        low[rows] = torch.where(success, guess, lower)
        if known is not None:
            low[rows] = torch.maximum(low[rows], known(rows))
        high[rows] = torch.where(success, upper, guess)
        left = (high[rows] - low[rows]) > SLOW * (upper - lower)
        slow[rows] = torch.where(left & torch.isfinite(upper), slow[rows] + 1, 0.0)
        tried[rows] += 1
    return torch.where(low >= cap, torch.full_like(low, math.inf), low)


def _guess(
    low: Tensor,
    high: Tensor,
    root: Tensor,
    start: Tensor,
    slow: Tensor,
    width: float,
    cap: float,
    bits: int,
    *,
    caution: Tensor,
) -> Tensor:
    """The epsilon of ``bits`` bits to try between ``low`` (proved) and ``high`` (failed).

    All [rows].
    """
    known, opened = low > 0, torch.isinf(high)
    # Without a root: ahead, halved (far apart: in logarithms, nearer to the end that failed: what
    # is proved comes from a looser bound), or far down.
    far = high > LEAP * low
    middle = torch.where(far, low ** (1.0 - BEYOND) * high**BEYOND, (low + high) / 2)
    plain = torch.where(known, middle, high * DROP)
    plain = torch.where(opened, torch.where(known, AHEAD * low, start), plain)
    # A little below the root, so that it is more likely proved; at the ends, just inside them.
    guess = root * (1 - width / 4)
    guess = torch.where(opened & known, low + caution * (guess - low), guess)
    first = torch.where(known, low, start)
    leap = torch.where(torch.isinf(root), cap, LEAP * first)
    above = torch.where(opened, leap, high * (1 - 0.75 * width))
    step = torch.where(opened, max(4 * width, 0.125), 0.75 * width) * low
    step = torch.where(opened, step, torch.maximum(step, (high - low) * NEAR))
    below = torch.where(known, low + step, torch.where(opened, 0.0, high * DROP))
    guess = torch.maximum(torch.minimum(guess, above), below)
    # Ends that hardly move are not approached from one side for ever; a root below what is proved
    # is none.
    lost = torch.isnan(root) | (root < low * (1 - width)) | (slow & known)
    guess = torch.where(lost, plain, guess)
    # From next to nothing no step in proportion to it arrives.
    guess = torch.where(opened & (low < TINY * start), start, guess)
    short = torch.maximum(_significant(guess, bits), _next(low, bits))
    # ``guess`` is below the end that failed, but the next short number may not be.
    short = torch.where(short < high, short, _next(low, bits))
    return torch.where(guess >= cap, cap, short).clamp_max(cap)
