"""The attack on what no bound has proved yet, and the audit of what is certified."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from workers.verification.attacks.pgd import attack, audit_selection
from workers.verification.cascade.block import Block
from workers.verification.cascade.progress import epsilon_text
from workers.verification.cascade.shard import Shard
from workers.verification.clock import rows_per_piece
from workers.verification.norms.per_sample import forward_cost
from workers.verification.region import largest_distance
from workers.verification.results import AttackSettings

__all__ = ["ATTACK", "attack_block", "attack_passes"]

#: In ``Block.spent``.
ATTACK = "attack"
#: An audited sample is attacked at this share of the epsilon that it is certified for.
AUDIT_SHARE = 0.999


def attack_passes(settings: AttackSettings | None) -> float:
    """Plain forward passes that the attack takes per sample and epsilon (inf: there is none).

    A step goes through the network and back.
    """
    return math.inf if settings is None else 3.0 * settings.steps * max(1, settings.restarts)


def attack_block(shard: Shard, block: Block, *, audit: bool) -> None:
    """PGD on what is open, or (``audit``) on a random share of what is certified.

    Counterexamples are written into the block. Raises SoundnessViolation where one lies in a
    soundly certified ball.
    """
    settings, problem, request = shard.request.attack, shard.problem, shard.request
    if settings is None:
        return
    together = rows_per_piece(3 * forward_cost(problem.compiled), problem.device)
    farthest = 4 * largest_distance(tuple(block.x.shape[1:]), request.norm, request.clip or True)
    limit = torch.full((len(block.x),), farthest, dtype=torch.float64)
    if not request.clip:
        limit *= block.x.flatten(1).abs().amax(1).clamp_min(1.0)
    for position in np.argsort(block.epsilons, kind="stable").tolist():
        epsilon = block.epsilons[position]
        if audit:
            drawn = audit_selection(
                block.indices, share=settings.audit, seed=settings.seed, position=position
            )
            chosen = block.correct & block.certified()[:, position] & torch.from_numpy(drawn)
        else:
            chosen = block.open(position)
        rows = chosen.nonzero().flatten()
        if not rows.numel():
            continue
        # Huge balls are attacked where inputs live.
        reach = limit.clamp_max(AUDIT_SHARE * epsilon if audit else epsilon)
        what = "audit" if audit else "attack"
        what = f"{what} at {epsilon_text(request.epsilons[position])}"
        for part in rows.split(together):
            shard.say(block, what, rows)
            if shard.spent():
                return
            _attack_rows(shard, settings, block, part, position, reach[part], audit=audit)
            if not audit:
                block.spend(ATTACK, part, attack_passes(settings))


def _attack_rows(
    shard: Shard,
    settings: AttackSettings,
    block: Block,
    rows: Tensor,
    position: int,
    reach: Tensor,
    *,
    audit: bool,
) -> None:
    request, epsilon = shard.request, block.epsilons[position]
    # On a GPU: the same counterexamples every time.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        found, points = attack(
            shard.network,
            shard.deployed,
            block.x[rows],
            block.labels[rows],
            block.indices[rows.numpy()],
            reach,
            norm=request.norm,
            clip=request.clip,
            settings=settings,
            gap=shard.problem.compiled.head.gap,
            clock=shard.clock,
        )
    whole = bool(found.all()) or not shard.spent()
    shard.notes["audited"] += int(rows.numel()) if audit and whole else 0
    for row, point in zip(rows[found].tolist(), points[found], strict=True):
        if audit:
            shard.overrule(block, row, epsilon)
        block.falsify(row, position, point, "attack")
