"""The bounds by name, cheapest first, and what running one needs. A new bound is one row here."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.layers.kinds import Layer
from workers.verification.backward.backward_pass import has_backward_rule
from workers.verification.bounds.alpha_crown import alpha_crown_margins
from workers.verification.bounds.alpha_crown_intermediate import alpha_crown_intermediate_margins
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crown import cap_margins, crown_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.bounds.lipschitz import lipschitz_radius
from workers.verification.bounds.local_lipschitz import local_margins, randomized_local_margins
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.forward.ball import has_ball_rule
from workers.verification.forward.local_pass import has_local_rule
from workers.verification.forward.margins import certified, logit_enclosure
from workers.verification.forward.propagation import has_forward_rule, propagate
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.lanczos import FailureBudget
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

__all__ = ["AUTO", "BOUNDS", "Bound", "Verifier"]

#: Bytes per activation tensor handled at once: on a CPU, small enough to stay in its cache.
BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**28}

#: Bounds from this cost on carry many rows per sample: their blocks are this many times smaller.
MANY_ROWS, MANY_ROWS_SHARE = 500, 32

#: A failed float32 pass is repeated in float64 only where its own rounding may be to blame: its
#: bound lacks less than this share of the margin at the centre (of a cheap bound, of a dear one),
#: or less than so many rounding errors of a logit at the centre, or it broke down altogether.
RETRY_SHARES, RETRY_ERRORS = (0.5, 0.05), 4.0

#: (program, region, labels, rounding, dtype, *, clock) -> margins.
MarginsAt = Callable[..., Tensor]
#: The same after the chance.
Randomized = Callable[..., Tensor]
ClosedForm = Callable[..., Tensor]


@dataclass(frozen=True)
class Bound:
    """One bound: either a closed-form radius or margins at given epsilons.

    radius(program, x, labels, norm=, rounding=, dtype=, clock=) -> [batch] epsilon;
    margins(program, region, labels, rounding, dtype, clock=) -> [batch, classes] lower bounds;
    both look at the clock between pieces of work, and raise OutOfTime or answer what they have;
    has_rule(op): whether it covers a step, read from the tables of rules that it uses;
    cost: in plain forward passes per sample and epsilon, roughly; orders the cascade.
    by_chance(chance, program, ...): the same, valid up to the failure probability of
    ``failure_budget``; kept: numbers held per number of all activations of one sample (memory);
    dominates: bounds that prove nothing at any epsilon that this one does not prove. within: in a
    cascade, tried only where the bound before it missed by less than this share of the margin at
    the centre (None: everywhere).
    """

    name: str
    norms: tuple[str, ...]
    has_rule: Callable[[Affine | Layer], bool]
    cost: float
    kept: float
    radius: ClosedForm | None = None
    margins: MarginsAt | None = None
    dominates: tuple[str, ...] = ()
    within: float | None = None
    randomized: Randomized | None = None


BOUNDS: dict[str, Bound] = {
    bound.name: bound
    for bound in (
        Bound("lipschitz", ("l2", "linf"), has_ball_rule, 4, 2, radius=lipschitz_radius),
        Bound("ibp", ("l2", "linf"), has_forward_rule, 5, 8, margins=interval_margins),
        Bound(
            "bcp",
            ("l2", "linf"),
            has_forward_rule,
            6,
            10,
            margins=bcp_margins,
            dominates=("ibp",),
        ),
        Bound(
            "local-lip",
            ("l2", "linf"),
            has_local_rule,
            10,
            20,
            margins=local_margins,
            randomized=randomized_local_margins,
            dominates=("ibp", "bcp"),
        ),
        Bound("crown", ("l2", "linf"), has_backward_rule, 1_000, 30, margins=crown_margins),
        Bound("cap", ("l2", "linf"), has_backward_rule, 1_000, 30, margins=cap_margins),
        Bound(
            "alpha-crown",
            ("l2", "linf"),
            has_backward_rule,
            5_000,
            60,
            margins=alpha_crown_margins,
            dominates=("crown",),
            within=0.5,
        ),
        Bound(
            "alpha-crown-intermediate",
            ("l2", "linf"),
            has_backward_rule,
            10_000,
            100,
            margins=alpha_crown_intermediate_margins,
            dominates=("crown", "alpha-crown"),
            within=0.2,
        ),
    )
}

#: What ``method: auto`` runs, in this order.
AUTO: tuple[str, ...] = (
    "lipschitz",
    "ibp",
    "bcp",
    "local-lip",
    "crown",
    "alpha-crown",
    "alpha-crown-intermediate",
)


@dataclass(frozen=True)
class Verifier:
    """A program with everything a bound needs: norm, clip, device, sound or estimate.

    ``only``: one arithmetic instead of all that are tried in turn. ``failure_budget``: random
    starts are allowed and counted there (None: everything is deterministic). memory: bytes that a
    bound may take for one sample (None: no limit). clock: when all of it must end; what is proved
    by then is answered.
    """

    compiled: CompiledNetwork
    norm: str
    clip: bool
    sound: bool
    device: torch.device
    only: torch.dtype | None = None
    memory: float | None = None
    failure_budget: FailureBudget | None = None
    clock: Clock = UNLIMITED

    def passes(self) -> list[tuple[Rounding, torch.dtype]]:
        """Arithmetic to try in turn: what the first leaves open, the next tries again.

        On a CPU float32 with its own rounding folded in is cheap and nearly as tight; what it
        proves is proved. On CUDA float64 alone: float32 kernels may leave the error model.
        """
        if not self.sound:
            return [(Rounding.ignored(), torch.float32)]
        kinds = [torch.float64] if self.only is None else [self.only]
        if self.only is None and self.device.type == "cpu":
            kinds = [torch.float32, torch.float64]
        # A float32 copy of weights beyond its range proves nothing of the network.
        safe = self.compiled.float32_safe
        kinds = [kind for kind in kinds if safe or kind == torch.float64]
        return [(Rounding.sound(kind), kind) for kind in kinds]

    def fits(self, bound: Bound) -> bool:
        """Whether one sample's activations and the copies of the weights fit into ``memory``."""
        numbers = sum(math.prod(step.shape) for step in self.compiled.steps)
        weights = sum(
            weight.numel()
            for step in self.compiled.steps
            if isinstance(step.op, Affine)
            for weight in step.op.weights()
        )
        # Float64 numbers; weights are held in both arithmetics, with their absolute values.
        need = 8.0 * (bound.kept * numbers + 4.0 * weights)
        return self.memory is None or need <= self.memory

    def radius(
        self,
        bound: Bound,
        x: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        margin: Tensor,
        *,
        report: bool,
    ) -> Tensor:
        """Closed-form radius [batch] float64; margin [batch]: the deployed margin at x.

        ``report``: the radius itself is asked for, so the tightest arithmetic alone is used; else
        the cheapest first, and the next only where it may decide one of ``epsilons``. -inf where
        there was no time.
        """
        assert bound.radius is not None
        best = torch.full((x.shape[0],), -math.inf, dtype=torch.float64)
        asked = torch.tensor(list(epsilons), dtype=torch.float64)
        hopeful = torch.ones(x.shape[0], dtype=torch.bool)
        with exact_arithmetic(), contextlib.suppress(OutOfTime):
            passes = self.passes()[-1 if report else 0 :]
            for number, (rounding, dtype) in enumerate(passes, start=1):
                for rows in self._blocks(x, dtype, hopeful.nonzero().flatten()):
                    found = bound.radius(
                        self.compiled,
                        x[rows].to(self.device),
                        labels[rows].to(self.device),
                        norm=self.norm,
                        rounding=rounding,
                        dtype=dtype,
                        clock=self.clock,
                    )
                    best[rows] = torch.maximum(best[rows], found.cpu())
                if number == len(passes):
                    break
                failed = (best[:, None] < asked).any(1).nonzero().flatten()
                share = torch.zeros_like(best)
                share[failed] = self._lost(bound, x[failed], margin[failed]) / margin[failed]
                near = (best[:, None] < asked) & (asked <= best[:, None] * (1.0 + share[:, None]))
                hopeful = near.any(1) | (best <= 0)
        return best

    def proves(
        self,
        bound: Bound,
        x: Tensor,
        labels: Tensor,
        epsilon: Tensor,
        margin: Tensor,
        *,
        tightest: bool = False,
        told: Callable[[Tensor, Tensor], None] = lambda rows, proved: None,
    ) -> tuple[Tensor, Tensor]:
        """Whether the bound proves each label within its own epsilon [batch], and its least
        margin, both [batch].

        margin [batch]: the deployed margin at x, which says when a second try is worth it;
        ``tightest``: at once in the tightest arithmetic, where about half of the tries will fail;
        told(rows, proved): called after every few rows, so that they count at once. Nothing is
        proved, and the least margin -inf, where there was no time.
        """
        margins_at = bound.margins
        if self.failure_budget is not None and bound.randomized is not None:
            margins_at = partial(bound.randomized, self.failure_budget)
        assert margins_at is not None
        proved = torch.zeros(x.shape[0], dtype=torch.bool)
        hopeful = torch.ones(x.shape[0], dtype=torch.bool)
        lowest = torch.full((x.shape[0],), -math.inf, dtype=torch.float64)
        everything = torch.arange(x.shape[0])
        with exact_arithmetic(), contextlib.suppress(OutOfTime):
            passes = self.passes()[-1 if tightest else 0 :]
            for number, (rounding, dtype) in enumerate(passes, start=1):
                still = (~proved & hopeful).nonzero().flatten()
                for rows in self._blocks(x, dtype, still, many_rows=bound.cost >= MANY_ROWS):
                    region = Region(
                        x[rows].to(self.device), epsilon[rows].to(self.device), self.norm, self.clip
                    )
                    margins = margins_at(
                        self.compiled,
                        region,
                        labels[rows].to(self.device),
                        rounding,
                        dtype,
                        clock=self.clock,
                    )
                    proved[rows] = certified(margins).cpu()
                    least = margins.amin(1).cpu()
                    lowest[rows] = torch.maximum(lowest[rows], least)
                    told(everything[rows], proved[rows])
                if number < len(passes):
                    failed = (~proved).nonzero().flatten()
                    close = lowest[failed] > -self._lost(bound, x[failed], margin[failed])
                    hopeful[failed] = close | torch.isneginf(lowest[failed])
        return proved, lowest

    def _lost(self, bound: Bound, x: Tensor, margin: Tensor) -> Tensor:
        """What a bound may lose of the margin at x, [batch], by computing in float32 itself."""
        lost = torch.full((x.shape[0],), torch.inf, dtype=torch.float64)
        if not all(has_forward_rule(step.op) for step in self.compiled.steps):
            return lost
        rounding, dtype = Rounding.sound(torch.float32), torch.float32
        for rows in self._blocks(x, dtype, torch.arange(x.shape[0])):
            here = x[rows].to(self.device)
            at_x = Region(here, torch.zeros(len(here), dtype=torch.float64), self.norm, self.clip)
            state = propagate(self.compiled, at_x, rounding=rounding, dtype=dtype, clock=self.clock)
            _, error = logit_enclosure(self.compiled.head, state, rounding)
            # Negative: nothing is known, float32 may overflow.
            lost[rows] = torch.where(error < 0, torch.inf, error).amax(1).cpu()
        share = RETRY_SHARES[bound.cost >= MANY_ROWS]
        return torch.maximum(share * margin, RETRY_ERRORS * lost)

    def _blocks(
        self, x: Tensor, dtype: torch.dtype, rows: Tensor, *, many_rows: bool = False
    ) -> Iterator[Tensor | slice]:
        largest = max(1, math.prod(x.shape[1:]), *(math.prod(s.shape) for s in self.compiled.steps))
        room = BLOCK_BYTES[self.device.type] // (MANY_ROWS_SHARE if many_rows else 1)
        size = max(1, room // (largest * dtype.itemsize))
        whole = rows.numel() == x.shape[0]
        for start in range(0, rows.numel(), size):
            self.clock.check()
            yield slice(start, start + size) if whole else rows[start : start + size]
