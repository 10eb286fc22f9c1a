"""A shard at work: its clock, notes and seconds, and how one bound is tried on its samples."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.network import Network
from workers.verification.attacks.replay import Deployed, breaks
from workers.verification.cascade.block import Block
from workers.verification.cascade.progress import Progress
from workers.verification.clock import Clock
from workers.verification.problem import Problem
from workers.verification.protocol import Bound, Budget, Verdict
from workers.verification.region import Region
from workers.verification.results import CertificationRequest

log = logging.getLogger(__name__)

__all__ = ["Shard", "SoundnessViolation", "fresh_notes"]

TOO_LARGE = "too large for its memory"
#: What smaller epsilons, proved after a failed verdict, cost the search of the radius: a share of
#: that verdict.
RETREAT_SHARE = 0.3


class SoundnessViolation(RuntimeError):
    """A certified sample was broken inside its certified ball: a bug, never an answer."""

    code = "soundness_violation"


class Shard:
    """What all blocks of a shard share; records the verdict of an attempt in a block.

    network: gives the attack its gradients; memory: bytes that one sample may take in a bound
    (None: no limit); samples: of the shard.
    """

    def __init__(
        self,
        problem: Problem,
        network: Network,
        deployed: Deployed,
        request: CertificationRequest,
        *,
        clock: Clock,
        memory: float | None,
        progress: Progress,
        samples: int,
    ) -> None:
        self.problem, self.network, self.deployed = problem, network, deployed
        self.request, self.clock, self.memory = request, clock, memory
        self.progress = progress
        #: Samples of the shard; the first one of the block in hand.
        self.samples, self.start = samples, 0
        self.seconds = {"bound": 0.0, "attack": 0.0}
        self.notes = fresh_notes()

    def spent(self) -> bool:
        """Whether the time that the job was given is over."""
        over = self.clock.over()
        self.notes["budget_spent"] = self.notes["budget_spent"] or over
        return over

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds that it takes to ``seconds[name]``."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def say(
        self,
        block: Block,
        what: str,
        rows: Tensor,
        certain: Tensor | None = None,
        tried: Tensor | None = None,
    ) -> None:
        """``what`` is at work on ``rows``, of which ``certain`` [rows] bool are open no more."""
        later = self.samples - self.start - len(block.x)

        def describe() -> tuple[int, str]:
            open_samples = rows.numel() - (0 if certain is None else int(certain.sum())) + later
            message = f"{what}: {open_samples} of {self.samples} samples open"
            if tried is not None:
                message += f", {int(tried.sum())} tried"
            return self.start + int((block.decided() & block.closed).sum()), message

        self.progress.describe = describe

    def fits(self, bound: Bound) -> bool:
        """Whether what the bound holds for one sample fits into ``memory``."""
        return self.memory is None or bound.memory(self.problem.compiled) <= self.memory

    def attempt(
        self,
        bound: Bound,
        block: Block,
        rows: Tensor,
        epsilon: Tensor,
        what: str,
        *,
        tightest: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(proved, rows): of the rows those that time and the work of their pools still allow.

        rows: positions in the block; epsilon [rows] float64. What is proved or falsified is written
        into the block at once. A bound that runs out of memory leaves the rest undecided.
        """
        price = bound.price(tightest=tightest)
        rows, epsilon = self._affordable(price, block, rows, epsilon)
        if not rows.numel():
            return torch.zeros(0, dtype=torch.bool), rows
        tried = torch.zeros(rows.numel(), dtype=torch.bool)
        certain = tried.clone()

        def report(part: Tensor, found: Tensor) -> None:
            tried[part], certain[part] = True, found
            part = part[found]
            block.prove(rows[part], epsilon[part], bound.name)

        # Proved at one epsilon, a search goes on to the next.
        self.say(block, what, rows, None if tightest else certain, tried)
        budget = Budget(
            block.margin[rows],
            self.clock,
            passes=price,
            tightest=tightest,
            states=block.states_of(bound.name, rows),
            sample_time_s=self.request.sample_time_s,
            radius=self.request.radius,
            report=report,
        )
        region = Region(block.x[rows], epsilon, self.request.norm, self.request.clip)
        try:
            verdict = bound.attempt(self.problem, region, block.labels[rows], budget)
        except (MemoryError, torch.OutOfMemoryError) as error:
            return self.gave_up(bound, rows, certain, str(error))
        except torch.AcceleratorError:
            raise  # the device is lost, whatever it says
        except RuntimeError as error:
            # What torch raises when the host, or a GPU's library, has no memory left has no class.
            if "alloc" not in str(error).lower():
                raise
            return self.gave_up(bound, rows, certain, str(error))
        proved = verdict.proved
        block.prove(rows[proved], epsilon[proved], bound.name)
        if verdict.reached is not None:
            block.prove(rows, verdict.reached, bound.name)
        left = verdict.least_margin / block.margin[rows]
        block.gap[rows] = torch.where(proved, 0.0, left)
        block.left[rows] = left
        if not tightest:
            block.tries_of(bound.name).add(rows, epsilon, proved, left)
        block.settle(rows, price - verdict.spent)
        # Of a bound that goes on in rounds, a search takes the first alone.
        each = (
            verdict.spent
            if tightest
            else torch.maximum(
                verdict.spent / 2, verdict.spent.clamp_max(bound.price(tightest=True))
            )
        )
        dearest = block.last.setdefault(bound.name, torch.zeros_like(block.searched))
        dearest[rows] = torch.maximum(dearest[rows], each)
        if tightest:
            block.searched[rows] += verdict.spent
            block.hunted[rows] += float(bound.metered)
        else:
            block.spend(bound.name, rows, verdict.spent)
            if self.request.radius and bound.metered and verdict.reached is not None:
                retreated = verdict.spent * (verdict.reached > 0)
                block.searched[rows] += RETREAT_SHARE * retreated
        if verdict.open_domains is not None and not tightest:
            self._searched(bound, block, rows, epsilon, verdict)
        self._falsify(bound, block, rows, region, verdict)
        if not bool(proved.all()):
            self.spent()
        return proved, rows

    def _searched(
        self, bound: Bound, block: Block, rows: Tensor, epsilon: Tensor, verdict: Verdict
    ) -> None:
        """Note how far a search got on what it leaves open, per sample and epsilon."""
        opened = verdict.open_domains
        if opened is None:
            return
        for place in (~(verdict.proved | verdict.falsified)).nonzero().flatten().tolist():
            least = float(verdict.least_margin[place])
            self.notes["searched"].append(
                {
                    "index": int(block.indices[rows[place]]),
                    "epsilon": float(epsilon[place]) / self.request.unit,
                    "method": bound.name,
                    "best_bound": least if math.isfinite(least) else None,
                    "open_domains": int(opened[place]),
                }
            )

    def gave_up(
        self, bound: Bound, rows: Tensor, certain: Tensor, reason: str = TOO_LARGE
    ) -> tuple[Tensor, Tensor]:
        """(certain, rows): a network too large for a bound; the report says so.

        What cheaper bounds proved, and ``certain`` [rows] bool of this one, stands.
        """
        count = int((~certain).sum())
        log.warning("bound %s gave up on %d samples: %s", bound.name, count, reason)
        self.notes["gave_up"][bound.name] = self.notes["gave_up"].get(bound.name, 0) + count
        return certain, rows

    def overrule(self, block: Block, row: int, epsilon: float) -> None:
        """A certified sample was broken: an internal error if sound; an estimate is taken back.

        Raises SoundnessViolation.
        """
        if self.problem.sound:
            raise SoundnessViolation(
                f"sample {int(block.indices[row])} is certified by {block.by[row]!r} for "
                f"{float(block.proved[row])!r} and broken within {epsilon!r}"
            )
        self.notes["overruled_estimates"] += 1
        block.take_back(row, epsilon)

    def _affordable(
        self, price: float, block: Block, rows: Tensor, epsilon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(rows, epsilon) that time and work are left for; their pools have paid."""
        if rows.numel() and self.spent():
            rows, epsilon = rows[:0], epsilon[:0]
        if math.isfinite(block.work[0]):
            paid = block.afford(rows, epsilon, price)
            if not bool(paid.all()):
                self.notes["work_spent"] = True
            rows, epsilon = rows[paid], epsilon[paid]
        return rows, epsilon

    def _falsify(
        self, bound: Bound, block: Block, rows: Tensor, region: Region, verdict: Verdict
    ) -> None:
        """Write down the counterexamples of a bound that the deployed network gets wrong."""
        claimed = verdict.falsified.nonzero().flatten()
        if not claimed.numel() or verdict.counterexample is None:
            return
        points = verdict.counterexample[claimed].to("cpu", torch.float32)
        confirmed = breaks(
            self.deployed,
            points,
            region.x[claimed],
            block.labels[rows[claimed]],
            region.epsilon[claimed],
            norm=region.norm,
            clip=region.clip,
            gap=self.problem.compiled.head.gap,
        )
        if not bool(confirmed.all()):
            # Wrong in real arithmetic, perhaps, but not as deployed: undecided.
            count = int((~confirmed).sum())
            log.info("%d counterexamples of %s are none as deployed", count, bound.name)
        found = rows[claimed[confirmed]].tolist()
        reach = region.epsilon[claimed[confirmed]].tolist()
        for row, epsilon, point in zip(found, reach, points[confirmed], strict=True):
            if float(block.proved[row]) >= epsilon:
                self.overrule(block, row, epsilon)
            position = block.least_asked(epsilon)
            if position is not None:
                block.falsify(row, position, point, bound.name)


def fresh_notes() -> dict[str, Any]:
    """The notes of a shard that has not begun."""
    return {
        "audited": 0,
        "budget_spent": False,
        "work_spent": False,
        "overruled_estimates": 0,
        "gave_up": {},
        "searched": [],
    }
