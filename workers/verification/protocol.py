"""The protocol of a bound: what an attempt may spend and what it answers.

Everything that decides a sample speaks it: closed-form radii, margins, complete search. The cascade
orders, gates, charges and records; a bound knows nothing of the cascade. A new bound is one file in
``bounds/`` or ``complete/`` and one row in ``cascade/bound_table``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from models.layers.kinds import Layer
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.region import Region
from workers.verification.results import EFFORTS
from workers.verification.rounding import Rounding

__all__ = ["Bound", "Budget", "Margins", "Verdict", "activation_memory"]

#: What a bound has a rule for: one step's operator.
HasRule = Callable[[Affine | Layer], bool]


@dataclass(frozen=True)
class Budget:
    """What one attempt on a batch of samples may spend, and how.

    margin [batch] float64: the deployed margin at the centre: how large a lack is worth a retry;
    clock: looked at between pieces of work; when its time is over, what is proved counts;
    passes: plain forward passes that the attempt may cost per sample (inf: no limit); a bound that
    searches ends there, so that its answer does not depend on the machine's speed;
    tightest: a search of the radius, where half the tries fail: the best arithmetic at once, unless
    the bound can tell from a failed float32 pass that float64 would fail as well;
    states: per sample, what this very bound left there at earlier attempts on it, at whatever
    epsilon, to go on from (open subproblems, multipliers); empty where none are kept;
    sample_time_s: seconds for each sample, in place of ``passes``, for a bound that searches (None:
    no clock of its own);
    radius: the largest epsilon that is proved is asked for: of a sample that fails, a smaller one
    too, where it costs little beside the attempt;
    report(rows, proved): to be called with positions in the batch after every few samples, so that
    they count at once, whatever happens to the others.
    """

    margin: Tensor
    clock: Clock = UNLIMITED
    passes: float = math.inf
    tightest: bool = False
    states: Sequence[dict[str, Any]] = ()
    sample_time_s: float | None = None
    radius: bool = False
    report: Callable[[Tensor, Tensor], None] = lambda rows, proved: None


@dataclass(frozen=True)
class Verdict:
    """What an attempt found out, per sample; neither proved nor falsified is undecided.

    proved [batch] bool: the label's deployed logit leads everywhere in the region;
    least_margin [batch] float64: lower bound on the least margin there (-inf: none found);
    spent [batch] float64: plain forward passes that it cost;
    falsified [batch] bool and counterexample [batch, *shape] float32 (of falsified samples alone
    does it mean anything; None: no sample is): an input of the region that the network gets wrong.
    It is a claim: it counts after the deployed network has answered wrongly on it;
    open_domains [batch] int64: parts of the region left unproved, of a bound that searches;
    reached [batch] float64: of samples that are not proved, a smaller epsilon at which they are, if
    ``Budget.radius`` asked for it (0: none).
    """

    proved: Tensor
    least_margin: Tensor
    spent: Tensor
    falsified: Tensor
    counterexample: Tensor | None = None
    open_domains: Tensor | None = None
    reached: Tensor | None = None

    @classmethod
    def undecided(cls, batch: int) -> Verdict:
        """Nothing found out, nothing spent; to be filled in place."""
        return cls(
            proved=torch.zeros(batch, dtype=torch.bool),
            least_margin=torch.full((batch,), -math.inf, dtype=torch.float64),
            spent=torch.zeros(batch, dtype=torch.float64),
            falsified=torch.zeros(batch, dtype=torch.bool),
        )


class Margins(Protocol):
    """Lower bounds [batch, classes] on f_y - f_j over the region, in one arithmetic.

    They hold for the network that ``rounding`` says: the deployed one, or that of real numbers.
    """

    def __call__(
        self,
        compiled: CompiledNetwork,
        region: Region,
        labels: Tensor,
        rounding: Rounding,
        dtype: torch.dtype,
        /,
        *,
        clock: Clock,
    ) -> Tensor:
        """Region and labels [batch] on the device of the work; the label's column is inf.

        Looks at the clock between pieces of work; raises OutOfTime or answers what it has.
        """


def activation_memory(kept: float) -> Callable[[CompiledNetwork], float]:
    """Bytes for one sample of a bound that holds ``kept`` numbers per activation of the network."""

    def needed(compiled: CompiledNetwork) -> float:
        numbers = sum(math.prod(step.shape) for step in compiled.steps)
        weights = sum(
            weight.numel()
            for step in compiled.steps
            if isinstance(step.op, Affine)
            for weight in step.op.weights()
        )
        numbers += compiled.head.classes
        weights += compiled.head.multiplications
        # Float64 numbers; weights are held in both arithmetics, with their absolute values.
        return 8.0 * (kept * numbers + 4.0 * weights)

    return needed


def _always(compiled: CompiledNetwork) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Bound(ABC):
    """One bound: what it covers, what it costs, and how it is tried.

    name: in ``spec.method`` and in the report; norms: of ``l2``, ``linf``;
    has_rule(op): whether it covers a step, read from the tables of rules that it uses;
    expected_passes: plain forward passes per sample and epsilon that it takes, roughly: orders the
    cascade, and puts the attack before the first bound that would take more than it;
    memory(compiled): bytes that one sample takes; a bound that needs more than there is, is left
    out; auto_norms: the norms for which ``method: auto`` runs it; effort: the least of ``EFFORTS``
    at which it does (complete search, say, at ``exhaustive`` alone);
    dominates: bounds that prove nothing at any epsilon that this one does not prove;
    replaces: bounds that ``auto`` leaves out where it runs this one: seldom better, and not cheaper
    together;
    within: in a cascade, tried only where the bound before it missed by less than this share of the
    margin at the centre (None: everywhere);
    worth_trying(compiled): whether ``auto`` runs it on this network: False where a cheaper bound
    proves as much;
    metered: its attempts count what they cost each sample; others cost what is expected, at most.
    """

    name: str
    norms: tuple[str, ...]
    has_rule: HasRule
    expected_passes: float
    memory: Callable[[CompiledNetwork], float]
    auto_norms: tuple[str, ...] = ("l2", "linf")
    effort: str = EFFORTS[0]
    dominates: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    within: float | None = None
    worth_trying: Callable[[CompiledNetwork], bool] = _always
    metered: bool = False

    @property
    def max_passes(self) -> float:
        """Passes that one attempt may spend per sample. As expected, but for bounds that search."""
        return self.expected_passes

    def price(self, *, tightest: bool) -> float:
        """Passes that an attempt takes from the work budget per sample in advance: what the verdict
        has not spent is given back, what it has spent beyond is taken then. tightest: as of
        ``Budget``."""
        return self.max_passes

    @abstractmethod
    def attempt(self, problem: Problem, region: Region, labels: Tensor, budget: Budget) -> Verdict:
        """Try to decide each sample of ``region`` (x [batch, *shape] float32 and epsilon [batch] in
        pixel units, on the CPU) for its label [batch].

        What it proves holds for the deployed float32 network (an estimate unless
        ``problem.sound``). The verdict on a sample does not depend on the others of the batch.
        Never raises OutOfTime: what is not decided when the time is over stays undecided.
        """
