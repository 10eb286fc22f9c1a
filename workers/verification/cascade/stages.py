"""The stages of the cascade on one block of samples, within the time and work allowed."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.network import Network
from workers.verification.attacks.pgd import Deployed, attack, audit_selection
from workers.verification.cascade.block import Block
from workers.verification.cascade.bound_table import Bound, Verifier
from workers.verification.cascade.progress import Progress, epsilon_text
from workers.verification.cascade.radius import search_radius
from workers.verification.clock import rows_per_piece
from workers.verification.norms.per_sample import forward_cost
from workers.verification.region import largest_distance
from workers.verification.results import CertificationRequest

log = logging.getLogger(__name__)

__all__ = ["SoundnessViolation", "Stages", "fresh_notes"]

#: A radius is searched until its bracket is this narrow: with cheap bounds, and with dear ones.
FINE, COARSE = 2.0**-10, 2.0**-4
#: An audited sample is attacked at this share of the epsilon that it is certified for.
AUDIT_SHARE = 0.999
TOO_LARGE = "too large for its memory"


class SoundnessViolation(RuntimeError):
    """A certified sample was broken inside its certified ball: a bug, never an answer."""

    code = "soundness_violation"


class Stages:
    """One shard's cascade: cheap bounds, then the attack, then the dear bounds, then the audit."""

    def __init__(
        self,
        verifier: Verifier,
        network: Network,
        deployed: Deployed,
        request: CertificationRequest,
        *,
        epsilons: list[float],
        progress: Progress,
        samples: int,
    ) -> None:
        self.verifier, self.network, self.deployed = verifier, network, deployed
        self.request, self.epsilons = request, epsilons
        self.clock, self.progress = verifier.clock, progress
        #: Samples of the shard; the first one of the block in hand.
        self.samples, self.start = samples, 0
        self.cascading = False
        self.seconds = {"bound": 0.0, "attack": 0.0}
        self.notes = fresh_notes()

    def spent(self) -> bool:
        """Whether the time that the job was given is over."""
        over = self.clock.over()
        self.notes["budget_spent"] = self.notes["budget_spent"] or over
        return over

    def certify(self, block: Block, bounds: list[Bound], *, start: int) -> None:
        """Run the whole cascade on one block, which begins with the shard's sample ``start``."""
        self.start = start
        block.closed.fill_(not self.request.radius)
        settings = self.request.attack
        # The attack comes as soon as the next bound would cost more than it.
        price = math.inf if settings is None else 3.0 * settings.steps * max(1, settings.restarts)
        cheap = [bound for bound in bounds if bound.cost <= price]
        expensive = [bound for bound in bounds if bound.cost > price]
        self.cascading = len(bounds) > 1
        with self._timed("bound"):
            for bound in cheap:
                self._apply(bound, block)
            self._search(cheap, block, FINE)
        if self.request.radius:
            block.closed.copy_(block.decided())
        with self._timed("attack"):
            self._attack(block, audit=False)
        with self._timed("bound"):
            for bound in expensive:
                self._apply(bound, block)
            # Where the cheap bounds have settled everything asked, their radius is left as it is.
            names = {bound.name for bound in expensive}
            unsettled = torch.tensor([by in names or not by for by in block.by])
            unsettled |= block.proved < min(block.epsilons)
            self._search(
                expensive[:1], block, COARSE if cheap else FINE, unsettled if cheap else None
            )
        block.closed.fill_(True)
        with self._timed("attack"):
            self._attack(block, audit=True)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def _say(
        self, block: Block, what: str, rows: Tensor, certain: Tensor | None, tried: Tensor | None
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

    def _cap(self, block: Block) -> float:
        return largest_distance(tuple(block.x.shape[1:]), self.request.norm, self.request.clip)

    def _apply(self, bound: Bound, block: Block) -> None:
        """``bound`` on every asked epsilon that is still open, smallest first."""
        if not self.verifier.fits(bound):
            rows = block.correct.nonzero().flatten()
            self._gave_up(bound, rows, torch.zeros_like(rows, dtype=torch.bool), TOO_LARGE)
            return
        if bound.radius is not None:
            rows = block.correct.nonzero().flatten()
            self._say(block, bound.name, rows, None, None)
            if rows.numel() and not self.spent():
                radius = self.verifier.radius(
                    bound,
                    block.x[rows],
                    block.labels[rows],
                    block.epsilons,
                    block.margin[rows],
                    report=self.request.radius,
                )
                radius = torch.where(radius >= self._cap(block), torch.inf, radius)
                block.prove(rows, radius, bound.name)
                if bool((radius < max(block.epsilons)).any()):
                    self.spent()
            return
        block.failed.fill_(torch.inf)
        for position in np.argsort(block.epsilons, kind="stable").tolist():
            epsilon = block.epsilons[position]
            # A bound that failed at a smaller epsilon fails here too.
            wanted = block.open(position) & (block.failed > epsilon)
            if bound.within is not None and self.cascading:
                wanted &= block.gap > -bound.within
            rows = wanted.nonzero().flatten()
            tried = torch.full((len(block.x),), epsilon, dtype=torch.float64)
            what = f"{bound.name} at {epsilon_text(self.request.epsilons[position])}"
            proved, asked = self._proves(bound, block, rows, tried[rows], what)
            block.failed[asked[~proved]] = epsilon

    def _proves(
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

        What is proved is written into the block at once.
        """
        if rows.numel() and self.spent():
            rows, epsilon = rows[:0], epsilon[:0]
        if math.isfinite(block.work[0]):
            paid = block.afford(rows, epsilon, bound.cost)
            if not bool(paid.all()):
                self.notes["work_spent"] = True
            rows, epsilon = rows[paid], epsilon[paid]
        if not rows.numel():
            return torch.zeros(0, dtype=torch.bool), rows
        tried = torch.zeros(rows.numel(), dtype=torch.bool)
        certain = tried.clone()

        def told(part: Tensor, found: Tensor) -> None:
            tried[part], certain[part] = True, found
            part = part[found]
            block.prove(rows[part], epsilon[part], bound.name)

        # Proved at one epsilon, a search goes on to the next.
        self._say(block, what, rows, None if tightest else certain, tried)
        try:
            proved, least = self.verifier.proves(
                bound,
                block.x[rows],
                block.labels[rows],
                epsilon,
                block.margin[rows],
                tightest=tightest,
                told=told,
            )
            block.gap[rows] = torch.where(proved, 0.0, least / block.margin[rows])
        except (MemoryError, torch.OutOfMemoryError) as error:
            return self._gave_up(bound, rows, certain, str(error))
        except torch.AcceleratorError:
            raise  # the device is lost, whatever it says
        except RuntimeError as error:
            # What torch raises when the host, or a GPU's library, has no memory left has no class.
            if "alloc" not in str(error).lower():
                raise
            return self._gave_up(bound, rows, certain, str(error))
        if not bool(proved.all()):
            self.spent()
        return proved, rows

    def _gave_up(
        self, bound: Bound, rows: Tensor, certain: Tensor, reason: str
    ) -> tuple[Tensor, Tensor]:
        """A network too large for a bound: cheaper bounds' answers stand, the report says so."""
        count = int((~certain).sum())
        log.warning("bound %s gave up on %d samples: %s", bound.name, count, reason)
        self.notes["gave_up"][bound.name] = self.notes["gave_up"].get(bound.name, 0) + count
        return certain, rows

    def _search(
        self, bounds: list[Bound], block: Block, width: float, chosen: Tensor | None = None
    ) -> None:
        """Raise the proved radius of every correct (and chosen) sample with the tightest bounds."""
        dominated = {name for bound in bounds for name in bound.dominates}
        searching = [
            b
            for b in bounds
            if b.margins is not None and b.name not in dominated and self.verifier.fits(b)
        ]
        wanted = block.correct if chosen is None else block.correct & chosen
        rows = wanted.nonzero().flatten()
        if not self.request.radius or not searching or not rows.numel():
            return
        cap = self._cap(block)
        start = torch.full((rows.numel(),), min(min(block.epsilons), cap), dtype=torch.float64)

        def proves(chosen: Tensor, epsilon: Tensor) -> Tensor:
            proved = torch.zeros(chosen.numel(), dtype=torch.bool)
            block.closed[rows] = True
            block.closed[rows[chosen]] = False
            for bound in searching:
                still = (~proved).nonzero().flatten()
                asked, at = rows[chosen[still]], epsilon[still]
                what = f"radius by {bound.name}"
                found, asked = self._proves(bound, block, asked, at, what, tightest=True)
                position = torch.searchsorted(rows[chosen], asked)
                proved[position[found]] = True
            return proved

        failed = torch.minimum(block.failed[rows], block.ceiling()[rows])
        radius = search_radius(
            proves,
            block.proved[rows].clone(),
            failed,
            start,
            cap,
            width=width,
            stop=self.spent,
        )
        # Beyond the cap every input is proved.
        for row in rows[torch.isinf(radius)].tolist():
            block.prove(torch.tensor([row]), torch.tensor([math.inf]), block.by[row])

    def _attack(self, block: Block, *, audit: bool) -> None:
        """PGD on what is open, or (``audit``) on a random share of what is certified."""
        settings = self.request.attack
        if settings is None:
            return
        # A step goes through the network and back.
        together = rows_per_piece(3 * forward_cost(self.verifier.compiled), self.verifier.device)
        limit = 4 * largest_distance(tuple(block.x.shape[1:]), self.request.norm, True)
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
            # Huge balls are attacked where pixels live.
            reach = min(AUDIT_SHARE * epsilon if audit else epsilon, limit)
            what = "audit" if audit else "attack"
            what = f"{what} at {epsilon_text(self.request.epsilons[position])}"
            for part in rows.split(together):
                self._say(block, what, rows, None, None)
                if self.spent():
                    return
                self._attack_rows(block, part, position, reach, audit=audit)

    def _attack_rows(
        self, block: Block, rows: Tensor, position: int, reach: float, *, audit: bool
    ) -> None:
        settings, epsilon = self.request.attack, block.epsilons[position]
        assert settings is not None
        # On a GPU: the same counterexamples every time.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            found, points = attack(
                self.network,
                self.deployed,
                block.x[rows],
                block.labels[rows],
                block.indices[rows.numpy()],
                torch.full((rows.numel(),), reach, dtype=torch.float64),
                norm=self.request.norm,
                clip=self.request.clip,
                settings=settings,
                gap=self.verifier.compiled.head.gap,
                clock=self.clock,
            )
        whole = bool(found.all()) or not self.spent()
        self.notes["audited"] += int(rows.numel()) if audit and whole else 0
        for row, point in zip(rows[found].tolist(), points[found], strict=True):
            if audit:
                _overrule(block, row, epsilon, self.notes, self.verifier.sound)
            block.falsify(row, position, point)


def fresh_notes() -> dict[str, Any]:
    """The notes of a shard that has not begun."""
    return {
        "audited": 0,
        "budget_spent": False,
        "work_spent": False,
        "overruled_estimates": 0,
        "gave_up": {},
    }


def _overrule(block: Block, row: int, epsilon: float, notes: dict[str, Any], sound: bool) -> None:
    """A certified sample was broken: an internal error if sound; an estimate is taken back."""
    if sound:
        raise SoundnessViolation(
            f"sample {int(block.indices[row])} is certified by {block.by[row]!r} for "
            f"{float(block.proved[row])!r} and broken within {epsilon!r}"
        )
    notes["overruled_estimates"] += 1
    smaller = [asked for asked in block.epsilons if asked < epsilon]
    block.proved[row] = max([e for e in smaller if e <= float(block.proved[row])], default=0.0)
    for position, asked in enumerate(block.epsilons):
        if asked > float(block.proved[row]):
            block.decided_by[row][position] = ""
    if not float(block.proved[row]):
        block.by[row] = ""
