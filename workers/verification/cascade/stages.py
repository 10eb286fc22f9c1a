"""The stages of the cascade on one block of samples, within the time and work allowed."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import torch
from torch import Tensor

from workers.verification.bounds.arithmetics import RadiusBound
from workers.verification.cascade.attack_stage import ATTACK, attack_block, attack_passes
from workers.verification.cascade.block import Block
from workers.verification.cascade.progress import epsilon_text
from workers.verification.cascade.radius import Lost, search_radius
from workers.verification.cascade.shard import Shard
from workers.verification.clock import OutOfTime
from workers.verification.protocol import Bound, Budget
from workers.verification.region import Region, largest_distance
from workers.verification.results import POOL, AttackSettings
from workers.verification.rounding import Rounding, exact_arithmetic

__all__ = ["certify_block"]

#: A radius is searched until its bracket is this narrow: by a method alone; in a cascade by the
#: cheap bounds, and by an expensive one.
EXACT, FINE, COARSE = 2.0**-10, 2.0**-7, 2.0**-4
#: In a cascade, each sample is tried at so many epsilons at most: by the cheap bounds, by these
#: before an expensive one goes on, and by that one, whose search costs no more than the verdicts of
#: the samples of a pool.
CHEAP_TRIES, LATER_TRIES, EXPENSIVE_TRIES = 2, 3, 8
#: In a cascade: no try that promises less than this share of what is proved, by the cheap bounds
#: and by an expensive one.
CHEAP_GAIN, GAIN = 0.03, 0.1
#: What a pass of the verdicts is worth in counted ones: of the attack, in whose small batches each
#: takes longer, and of bounds whose counts are guesses, from above. What one of the attack is worth
#: in guessed ones.
ATTACK_SHARE, GUESSED_SHARE, ATTACK_GUESSED = 2.0, 0.4, 4.0
#: Of what verdicts have cost, what the search may, of bounds whose passes are counted and of those
#: whose cost is a guess: cheap bounds and small batches take the rest.
SPENDABLE, GUESSED_SPENDABLE = 0.75, 1.0
#: A try is taken to cost so many times as much as the dearest so far: what fails takes longer; more
#: after a first try, which may have ended at its boxes. One of a bound whose cost is a guess, so
#: many times that: it is made in float64 too, and at smaller epsilons.
DEARER, LATER_DEARER, GUESSED_DEARER = 1.5, 2.0, 1.6
#: One sample in so many says what float32 takes of its radius in closed form.
TOLD = 8
#: What a try that is counted costs beside its passes: it is made with few others.
TRY_PASSES = 400.0


def certify_block(shard: Shard, block: Block, bounds: list[Bound], *, start: int) -> None:
    """Run the cascade on one block, which begins with the shard's sample ``start``: cheap bounds,
    then the attack, then the expensive bounds, then the audit."""
    shard.start = start
    block.closed.fill_(not shard.request.radius)
    # The attack comes as soon as the next bound would cost more than it; where there is none, the
    # search of the radius is bounded at the same place.
    price = attack_passes(shard.request.attack or AttackSettings())
    cheap = [bound for bound in bounds if bound.expected_passes <= price]
    expensive = [bound for bound in bounds if bound.expected_passes > price]
    cascading = len(bounds) > 1
    later = torch.zeros(len(block.x), dtype=torch.bool)
    with shard.timed("bound"):
        for bound in cheap:
            _apply(shard, bound, block, cascading=cascading)
        if cascading:
            # Of no use where an expensive bound proves an epsilon that these ones do not.
            later = ~block.certified().all(1)
            _search(shard, cheap, block, FINE, CHEAP_TRIES, ~later, gain=CHEAP_GAIN)
        else:
            _search(shard, cheap, block, EXACT)
    if shard.request.radius:
        block.closed.copy_(block.decided())
    with shard.timed("attack"):
        attack_block(shard, block, audit=False)
    with shard.timed("bound"):
        for bound in expensive:
            _apply(shard, bound, block, cascading=cascading)
        # Where the cheap bounds have settled everything asked, their radius is left as it is.
        names = {bound.name for bound in expensive}
        unsettled = torch.tensor([by in names or not by for by in block.by])
        unsettled |= block.proved < min(block.epsilons)
        if cascading:
            _search(shard, cheap, block, FINE, LATER_TRIES, later, gain=CHEAP_GAIN)
            _search(
                shard,
                expensive[:1],
                block,
                COARSE,
                EXPENSIVE_TRIES,
                unsettled,
                gain=GAIN,
                thrifty=True,
            )
        else:
            _search(shard, expensive, block, EXACT)
    block.closed.fill_(True)
    block.states.clear()
    with shard.timed("attack"):
        attack_block(shard, block, audit=True)


def _cap(shard: Shard, block: Block) -> float:
    return largest_distance(tuple(block.x.shape[1:]), shard.request.norm, shard.request.clip)


def _apply(shard: Shard, bound: Bound, block: Block, *, cascading: bool) -> None:
    """``bound`` on every asked epsilon that is still open, smallest first."""
    if not shard.fits(bound):
        rows = block.correct.nonzero().flatten()
        shard.gave_up(bound, rows, torch.zeros_like(rows, dtype=torch.bool))
        return
    if isinstance(bound, RadiusBound):
        _apply_closed_form(shard, bound, block)
        return
    block.failed.fill_(torch.inf)
    for position in np.argsort(block.epsilons, kind="stable").tolist():
        epsilon = block.epsilons[position]
        # A bound that failed at a smaller epsilon fails here too.
        wanted = block.open(position) & (block.failed > epsilon)
        if bound.within is not None and cascading:
            wanted &= block.gap > -bound.within
        rows = wanted.nonzero().flatten()
        tried = torch.full((rows.numel(),), epsilon, dtype=torch.float64)
        what = f"{bound.name} at {epsilon_text(shard.request.epsilons[position])}"
        proved, asked = shard.attempt(bound, block, rows, tried, what)
        block.failed[asked[~proved]] = epsilon


def _apply_closed_form(shard: Shard, bound: RadiusBound, block: Block) -> None:
    """``bound`` on every correct sample: one radius answers every epsilon. Costs no work."""
    rows = block.correct.nonzero().flatten()
    shard.say(block, bound.name, rows)
    if not rows.numel() or shard.spent():
        return
    asked = torch.tensor(block.epsilons, dtype=torch.float64)
    nothing = torch.zeros(rows.numel(), dtype=torch.float64)
    region = Region(block.x[rows], nothing, shard.request.norm, shard.request.clip)
    # Where the radius itself is asked for, the tightest arithmetic alone.
    budget = Budget(block.margin[rows], shard.clock, tightest=shard.request.radius)
    radius = bound.radii(shard.problem, region, block.labels[rows], asked, budget)
    radius = torch.where(radius >= _cap(shard, block), torch.inf, radius)
    block.prove(rows, radius, bound.name)
    if bool((radius < max(block.epsilons)).any()):
        shard.spent()
    if shard.request.radius and shard.problem.sound:
        _note_lost(shard, bound, block, rows, radius)


def _note_lost(
    shard: Shard, bound: RadiusBound, block: Block, rows: Tensor, radius: Tensor
) -> None:
    """Note of every ``TOLD``-th sample of the data which share of the radius that exact arithmetic
    would have is lost to float32, in hundredths."""
    told = torch.from_numpy(block.indices)[rows] % TOLD == 0
    told = (told & torch.isfinite(radius)).nonzero().flatten()
    if not told.numel() or shard.spent():
        return
    exact = Rounding.real(torch.float64)
    with exact_arithmetic(), contextlib.suppress(OutOfTime):
        real = bound.radius(
            shard.problem.compiled,
            block.x[rows[told]].to(shard.problem.device),
            block.labels[rows[told]].to(shard.problem.device),
            norm=shard.request.norm,
            rounding=exact,
            dtype=torch.float64,
            clock=shard.clock,
        ).cpu()
        lost = 1.0 - radius[told].clamp_min(0.0) / real
        for place, share in zip(told.tolist(), lost.tolist(), strict=True):
            if math.isfinite(share):
                said = {"index": int(block.indices[int(rows[place])]), "by": bound.name}
                kept = shard.notes.setdefault("lost_to_float32", [])
                kept.append(said | {"share": math.floor(100.0 * max(share, 0.0)) / 100.0})


def _search(
    shard: Shard,
    bounds: list[Bound],
    block: Block,
    width: float,
    tries: int = 100,
    chosen: Tensor | None = None,
    *,
    gain: float = 0.0,
    thrifty: bool = False,
) -> None:
    """Raise the proved radius of every correct (and chosen) sample with the tightest bounds.

    gain: as of ``search_radius``; thrifty: no try by which it would cost more than the verdicts of
    the pool's samples.
    """
    dominated = {name for bound in bounds for name in bound.dominates}
    searching = [
        bound
        for bound in bounds
        if not isinstance(bound, RadiusBound) and bound.name not in dominated and shard.fits(bound)
    ]
    wanted = block.correct if chosen is None else block.correct & chosen
    rows = wanted.nonzero().flatten()
    if not shard.request.radius or not searching or not rows.numel():
        return
    cap = _cap(shard, block)
    start = torch.full((rows.numel(),), min(min(block.epsilons), cap), dtype=torch.float64)

    def proves(chosen: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        proved = torch.zeros(chosen.numel(), dtype=torch.bool)
        margin = torch.full((chosen.numel(),), torch.nan, dtype=torch.float64)
        block.closed[rows] = True
        block.closed[rows[chosen]] = False
        for bound in searching:
            still = (~proved).nonzero().flatten()
            asked, at = rows[chosen[still]], epsilon[still]
            what = f"radius by {bound.name}"
            found, asked = shard.attempt(bound, block, asked, at, what, tightest=True)
            position = torch.searchsorted(rows[chosen], asked)
            proved[position[found]] = True
            margin[position] = torch.fmax(margin[position], block.left[asked])
        return proved, margin

    def allowed(chosen: Tensor) -> Tensor:
        return _affordable(block, searching, rows[chosen])

    failed, lost = _known(block, rows, searching)
    radius = search_radius(
        proves,
        block.proved[rows].clone(),
        failed,
        start,
        cap,
        width=width,
        tries=tries,
        lost=lost,
        allowed=allowed if thrifty else None,
        gain=gain,
        known=lambda chosen: block.proved[rows[chosen]],
        stop=shard.spent,
    )
    # Beyond the cap every input is proved.
    for row in rows[torch.isinf(radius)].tolist():
        block.prove(torch.tensor([row]), torch.tensor([math.inf]), block.by[row])


def _affordable(block: Block, bounds: list[Bound], rows: Tensor) -> Tensor:
    """[rows] bool: rows whose pool may pay another try of these bounds, so that its search
    costs no more than its verdicts: those first whose search has cost the least, the cheapest first
    of these."""
    own = {bound.name for bound in bounds}
    # In the unit of these bounds: counted passes, or guessed ones.
    counted = any(bound.metered for bound in bounds)
    attack, other = (ATTACK_SHARE, GUESSED_SHARE) if counted else (ATTACK_GUESSED, 1.0)
    spendable = SPENDABLE if counted else GUESSED_SPENDABLE
    left = -block.searched * (1.0 if counted else GUESSED_DEARER) - TRY_PASSES * block.hunted
    for name, passes in block.spent.items():
        worth = attack if name == ATTACK else other
        left = left + spendable * passes * (1.0 if name in own else worth)
    price = torch.zeros(len(rows), dtype=torch.float64)
    for bound in bounds:
        most = bound.price(tightest=True)
        last = block.last.get(bound.name, torch.zeros_like(left))[rows]
        dearer = torch.where(block.hunted[rows] > 0, LATER_DEARER, DEARER)
        guessed = GUESSED_DEARER * most
        counted_price = torch.where(last > 0, dearer * last, most) + TRY_PASSES
        price += counted_price if bound.metered else guessed
    allowed = torch.zeros(len(rows), dtype=torch.bool)
    for pool in (rows // POOL).unique().tolist():
        money = float(left[pool * POOL : (pool + 1) * POOL].sum())
        mine = (rows // POOL == pool).nonzero().flatten()
        mine = mine[torch.argsort(price[mine], stable=True)]
        mine = mine[torch.argsort(block.searched[rows[mine]], stable=True)]
        allowed[mine] = price[mine].cumsum(0) <= money
    return allowed


def _known(block: Block, rows: Tensor, bounds: list[Bound]) -> tuple[Tensor, Lost]:
    """(failed [rows], margins lost): what the verdicts of these bounds and the attack have shown.

    Where one of several bounds was not tried, it may prove what the others did not.
    """
    lost = Lost(len(rows))
    reach = torch.zeros(len(rows), dtype=torch.float64)
    for bound in bounds:
        tries = block.tries_of(bound.name)
        lost.learn(torch.arange(len(rows)), tries.proved[rows], tries.left[rows])
        lost.learn(torch.arange(len(rows)), tries.failed[rows], tries.lack[rows])
        reach = torch.maximum(reach, tries.failed[rows])
    return torch.minimum(reach, block.ceiling()[rows]), lost
