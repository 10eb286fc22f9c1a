"""One box of a property: the bounds of the table on its goals, the attack, then smaller boxes.

The order is the cascade's: cheap bounds, attack, expensive bounds. What is open then, in few
dimensions, is split (``splitting``). The answer depends on network, box and request alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network import Network
from workers.verification.attacks.replay import Deployed
from workers.verification.bounds.arithmetics import RadiusBound
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.coverage import (
    UnknownMethod,
    covering_bounds,
    uncovered,
    without_replaced,
)
from workers.verification.cascade.shard import SoundnessViolation
from workers.verification.clock import Clock
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.per_sample import forward_cost
from workers.verification.problem import Problem
from workers.verification.properties.attack import (
    STEPS,
    Counterexample,
    descend,
    replayed,
    starting_points,
)
from workers.verification.properties.goals import Goal, goals_of
from workers.verification.properties.inputs import float32_box, outer_box
from workers.verification.properties.lowering import Box
from workers.verification.properties.results import BoxResult, PropertyRequest
from workers.verification.properties.rows import with_rows
from workers.verification.protocol import Bound, Budget, Verdict
from workers.verification.region import Region

__all__ = ["BoxSearch", "attack_passes", "property_bounds", "questions", "verify_box"]

#: Starts of the attack on all cases of a box together, before and after the expensive bounds, and
#: where everything is proved (an audit); at least two for each case.
FIRST_STARTS, MORE_STARTS, AUDIT_STARTS = 24, 120, 8
#: Cases that are attacked, at most: the first ones.
ATTACKED = 200
#: The complete search that ``auto`` ends with where a box has too many dimensions to be split.
COMPLETE = "branch-and-bound"
#: Alternatives of a goal that an expensive bound is asked for: those that lead most in the middle.
TRIED = 3


def property_bounds(compiled: CompiledNetwork, method: str) -> list[Bound]:
    """The bounds that ``method`` runs on boxes, in order of cost.

    A property is one question: for it ``auto`` goes on to the complete search.

    Raises UnknownMethod, UnsupportedLayer. A radius in closed form is of balls: it is left out.
    """
    found, _ = covering_bounds(compiled, method, "linf")
    bounds: list[Bound] = [bound for bound in found if not isinstance(bound, RadiusBound)]
    complete = BOUNDS[COMPLETE]
    if method == "auto" and uncovered(complete, compiled) is None:
        bounds.append(complete)
    if not bounds:
        raise UnknownMethod(f"the method {method!r} bounds balls, not the boxes of a property")
    return bounds


def attack_passes(box: Box) -> float:
    """Forward passes that the attacks on a box that stays open take: a step goes there and back."""
    cases = min(len(box.unsafe), ATTACKED)
    return sum(3.0 * STEPS * max(starts, 2 * cases) for starts in (FIRST_STARTS, MORE_STARTS))


def questions(box: Box, outputs: int) -> int:
    """How many margins each bound is asked for on a whole box, at most."""
    return sum(min(TRIED, len(goal.alternatives)) for goal in goals_of(box, outputs))


@dataclass
class BoxSearch:
    """The state of the work on one box.

    goals: still open; passes: spent so far; found: a counterexample that was replayed; by: what
    proved the last goal.
    """

    problem: Problem
    network: Network
    deployed: Deployed
    box: Box
    request: PropertyRequest
    clock: Clock
    goals: list[Goal]
    passes: float = 0.0
    found: Counterexample | None = None
    by: str = "undecided"
    notes: dict[str, Any] = field(default_factory=dict)
    gaps: dict[int, float] = field(default_factory=dict)

    @property
    def work_left(self) -> float:
        """Plain forward passes that may still be spent."""
        return math.inf if self.request.work is None else self.request.work - self.passes

    def over(self) -> bool:
        """Whether there is an answer, or no time or no work is left."""
        if self.found is not None or not self.goals:
            return True
        if self.clock.over():
            self.notes["budget_spent"] = True
            return True
        if self.work_left <= 0:
            self.notes["out_of_work"] = True
            return True
        return False

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [batch, outputs] float64 of the deployed network."""
        return torch.from_numpy(self.deployed(x.numpy()).astype(np.float64))

    def check(self, points: NDArray[np.float32]) -> bool:
        """Whether one of the points [N, *shape] is a counterexample; it is kept."""
        self.found = self.found or replayed(points, self.box, self.deployed)
        return self.found is not None

    def prove(
        self, bound: Bound, goal: Goal, region: Region, margins: Tensor, *, tried: int
    ) -> tuple[Tensor, Tensor]:
        """(proved [batch] bool, least margin over the centre's [batch]) of a goal over regions.

        margins [batch, alternatives]: at the centres. The ``tried`` alternatives that lead most
        there are attempted. Counterexamples of the bound are replayed and kept.
        """
        batch = len(region.x)
        proved = torch.zeros(batch, dtype=torch.bool)
        gap = torch.full((batch,), -math.inf, dtype=torch.float64)
        order = margins.argsort(dim=1, descending=True, stable=True)[:, :tried]
        for rank in range(order.shape[1]):
            for number, alternative in enumerate(goal.alternatives):
                wanted = ~proved & (order[:, rank] == number) & (margins[:, number] > 0)
                rows = wanted.nonzero().flatten()
                if not rows.numel() or self.over():
                    continue
                margin = margins[rows, number]
                budget = Budget(
                    margin,
                    self.clock,
                    passes=min(bound.max_passes, self.work_left / rows.numel()),
                    sample_time_s=self.request.time_s,
                    states=[{} for _ in range(rows.numel())],
                )
                problem = Problem(
                    with_rows(self.problem.compiled, alternative),
                    self.problem.sound,
                    self.problem.device,
                    self.problem.only,
                )
                part = region.part(rows, torch.device("cpu"))
                labels = torch.zeros(rows.numel(), dtype=torch.int64)
                verdict = bound.attempt(problem, part, labels, budget)
                self.passes += float(verdict.spent.sum())
                proved[rows] = verdict.proved
                gap[rows] = torch.fmax(gap[rows], verdict.least_margin / margin)
                self._note_open(bound, verdict)
                if verdict.counterexample is not None and bool(verdict.falsified.any()):
                    self.check(verdict.counterexample[verdict.falsified].numpy())
        return proved, gap

    def _note_open(self, bound: Bound, verdict: Verdict) -> None:
        """Note how far a search got on the limits that it leaves open."""
        if verdict.open_domains is None:
            return
        for row in (~(verdict.proved | verdict.falsified)).nonzero().flatten().tolist():
            least = float(verdict.least_margin[row])
            entry = {
                "method": bound.name,
                "best_bound": least if math.isfinite(least) else None,
                "open_domains": int(verdict.open_domains[row]),
            }
            self.notes.setdefault("searched", []).append(entry)


def verify_box(
    network: Network,
    compiled: CompiledNetwork,
    box: Box,
    request: PropertyRequest,
    *,
    deployed: Deployed,
    device: torch.device,
    deadline: float | None = None,
    report: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda message: None,
) -> BoxResult:
    """Whether no input of the box has unsafe outputs, for the deployed float32 network.

    compiled: of ``network``, which has no operator cut off at its end; deployed: float32 batch ->
    outputs as ONNX Runtime computes them; deadline: ``time.monotonic()`` after which what is open
    is ``unknown``; report is called again and again and may raise to abort; say: what is at work.
    Raises UnknownMethod, UnsupportedLayer, PropertyError, SoundnessViolation.
    """
    from workers.verification.properties.splitting import split, splits

    shape = compiled.input_shape
    lower, upper = outer_box(box, shape)
    bounds = property_bounds(compiled, request.method)
    limit = math.inf if request.memory is None else request.memory
    bounds = [bound for bound in bounds if bound.memory(compiled) <= limit] or bounds[:1]
    bounds = without_replaced(bounds, lambda bound: True)
    attacked = network.to(device)
    for parameter in attacked.parameters():
        parameter.requires_grad_(False)
    clock = Clock(deadline, report)
    outputs = compiled.head.classes
    search = BoxSearch(
        Problem(compiled, request.soundness == "sound", device),
        attacked,
        deployed,
        box,
        request,
        clock,
        goals_of(box, outputs),
    )
    began, attack_s = time.perf_counter(), 0.0
    region = Region.between(lower[None], upper[None])
    inside = float32_box(box, shape)
    search.notes["float32_inputs"] = inside is not None

    def attack(starts: int, seed: int, cases: list[Any] | None = None) -> None:
        nonlocal attack_s
        if inside is None or search.found is not None:
            return
        say("attack")
        started = time.perf_counter()
        chosen = [case for goal in search.goals for case in goal.cases] if cases is None else cases
        _attack(search, inside, chosen[:ATTACKED], starts, seed)
        attack_s += time.perf_counter() - started

    price = 3.0 * STEPS * FIRST_STARTS
    cheap = [bound for bound in bounds if bound.expected_passes <= price]
    last = [bound for bound in bounds if request.method == "auto" and bound.name == COMPLETE]
    expensive = [bound for bound in bounds if bound.expected_passes > price and bound not in last]
    if inside is not None and search.check(region.x.numpy()):
        # The middle of the box, where the attack begins.
        search.by = "attack"
    else:
        for bound in cheap:
            say(bound.name)
            _apply(search, bound, region, cascading=len(bounds) > 1)
        if search.goals:
            attack(FIRST_STARTS, 0)
        for bound in expensive:
            if not search.over():
                say(bound.name)
                _apply(search, bound, region, cascading=len(bounds) > 1)
        if search.goals and expensive and not search.over():
            attack(MORE_STARTS, 1)
        if search.goals and request.method == "auto" and not search.over():
            if splits(lower, upper):
                say("smaller boxes")
                split(search, bounds, lower, upper)
            for bound in last if not splits(lower, upper) else ():
                say(bound.name)
                _apply(search, bound, region, cascading=False)
    if not search.goals and search.found is None:
        attack(AUDIT_STARTS, 2, list(box.unsafe))
        if search.found is not None and search.problem.sound:
            raise SoundnessViolation("a counterexample lies in a box that was proved")
    whole = time.perf_counter() - began
    search.notes["passes"] = search.passes
    seconds = {"bound": whole - attack_s, "attack": attack_s}
    if search.found is not None:
        return BoxResult("violated", search.by, search.found, seconds, search.notes)
    if not search.goals:
        return BoxResult("holds", search.by, None, seconds, search.notes)
    return BoxResult("unknown", "undecided", None, seconds, search.notes)


def _apply(search: BoxSearch, bound: Bound, region: Region, *, cascading: bool) -> None:
    """``bound`` on every open goal over the whole box; what it proves is closed."""
    outputs = search.outputs(region.x)
    still = []
    for place, goal in enumerate(search.goals):
        margins = goal.margins(outputs)
        missed = search.gaps.get(place, 0.0)
        hopeless = bound.within is not None and cascading and missed < -bound.within
        if hopeless or search.over() or not goal.alternatives:
            still.append(goal)
            continue
        proved, gap = search.prove(bound, goal, region, margins, tried=TRIED)
        if search.found is not None:
            search.by = bound.name
        if bool(proved.all()):
            search.by = bound.name
        else:
            search.gaps[len(still)] = float(gap.amax())
            still.append(goal)
    search.goals = still


def _attack(
    search: BoxSearch,
    inside: tuple[NDArray[np.float32], NDArray[np.float32]],
    cases: list[Any],
    starts: int,
    seed: int,
) -> None:
    low, high = inside
    each = max(2, starts // max(1, len(cases)))
    cost = forward_cost(search.problem.compiled)
    for number, case in enumerate(cases):
        if search.clock.over():
            return
        key = [search.request.seed & (2**63 - 1), seed * 2**32 + number]
        rng = np.random.Generator(np.random.Philox(key=key))
        points = starting_points(low, high, each, rng)
        if case:
            found = descend(search.network, low, high, case, points, cost=cost, clock=search.clock)
        else:
            found = points.numpy()
        if search.check(found):
            search.by = "attack"
            return
