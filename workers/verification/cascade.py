"""The cascade: cheapest bound first, each only on what is still open, then the attack.

A shard's answer depends on its samples alone: not on the batch, the shard or the worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network import Network
from workers.verification.attack import Deployed, attack, audit_selection
from workers.verification.bounds import AUTO, BOUNDS, Bound, Verifier
from workers.verification.program import Program
from workers.verification.radius import rounded_down, search_radius
from workers.verification.region import float_above, largest_distance
from workers.verification.results import CertificationRequest, SampleResults

__all__ = ["SoundnessViolation", "UnknownMethod", "certify_samples"]

#: Samples that go through the cascade together (progress is reported after each such block).
BLOCK = 64
#: An audited sample is attacked at this share of the epsilon that it is certified for.
AUDIT_SHARE = 0.999


class UnknownMethod(ValueError):
    """A method that no row of the table of bounds names, or a norm that it does not cover."""

    code = "unknown_method"


class SoundnessViolation(RuntimeError):
    """A certified sample was broken inside its certified ball: a bug, never an answer."""

    code = "soundness_violation"


class _Block:
    """The state of one block of samples while bounds and attack work on it."""

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        indices: NDArray[np.int64],
        margin: Tensor,
        correct: Tensor,
        epsilons: list[float],
    ) -> None:
        count, width = x.shape[0], len(epsilons)
        self.x, self.labels, self.indices = x, labels, indices
        self.margin, self.correct = margin, correct
        self.epsilons = epsilons
        #: Largest proved and smallest not-proved epsilon per sample.
        self.proved = torch.zeros(count, dtype=torch.float64)
        self.failed = torch.full((count,), torch.inf, dtype=torch.float64)
        self.by = [""] * count
        self.decided_by = [[""] * width for _ in range(count)]
        self.falsified = torch.zeros(count, width, dtype=torch.bool)
        self.counterexamples: dict[tuple[int, int], Tensor] = {}

    def certified(self) -> Tensor:
        """[batch, epsilons] bool: within the largest proved epsilon."""
        return torch.tensor(self.epsilons, dtype=torch.float64)[None, :] <= self.proved[:, None]

    def prove(self, rows: Tensor, epsilon: Tensor, name: str) -> None:
        """``name`` proved these rows up to these epsilons."""
        for row, value in zip(rows.tolist(), epsilon.tolist(), strict=True):
            if value > float(self.proved[row]):
                self.proved[row] = value
                self.by[row] = name
                for position, asked in enumerate(self.epsilons):
                    if asked <= value and not self.decided_by[row][position]:
                        self.decided_by[row][position] = name


def certify_samples(
    network: Network,
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
    request: CertificationRequest,
    *,
    deployed: Deployed,
    deployed_logits: NDArray[np.float32],
    device: torch.device,
    cache_dir: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
    deadline: float | None = None,
) -> SampleResults:
    """Certified radius and certified / falsified epsilons of every sample of a shard.

    x [N, *shape] float32 pixels; labels [N]; indices [N]: positions in the data set (they seed the
    attack); deployed: float32 batch -> logits, the network as it is deployed; deployed_logits
    [N, classes] at x; deadline: ``time.monotonic()`` after which what is open stays undecided;
    progress is told how many samples are done and may raise to abort.
    Raises UnknownMethod, UnsupportedLayer, SoundnessViolation.
    """
    bounds = _bounds(request)
    sound = request.soundness == "sound"
    program = Program.compile(network, cache_dir=cache_dir, estimate=not sound)
    verifier = Verifier(program, request.norm, request.clip, sound, device)
    attacked = network.to(device)
    for parameter in attacked.parameters():
        parameter.requires_grad_(False)
    epsilons = [float_above(epsilon) for epsilon in request.epsilons]
    blocks: list[_Block] = []
    seconds = {"bound": 0.0, "attack": 0.0}
    notes: dict[str, Any] = {"audited": 0, "budget_spent": False, "overruled_estimates": 0}
    inputs = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    targets = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    prediction, margin, correct = _deployed_answers(deployed_logits, labels)

    def spent() -> bool:
        return deadline is not None and time.monotonic() > deadline

    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        block = _Block(
            inputs[rows], targets[rows], indices[rows], margin[rows], correct[rows], epsilons
        )
        blocks.append(block)
        began = time.perf_counter()
        _run_bounds(verifier, bounds, block, request, spent)
        seconds["bound"] += time.perf_counter() - began
        began = time.perf_counter()
        if request.attack is not None and not spent():
            _run_attack(attacked, deployed, block, request, notes, sound)
        seconds["attack"] += time.perf_counter() - began
        notes["budget_spent"] = bool(notes["budget_spent"] or spent())
        progress(rows.stop)
    return _results(blocks, indices, labels, prediction, margin, request, seconds, notes)


def _bounds(request: CertificationRequest) -> list[Bound]:
    names = AUTO if request.method == "auto" else (request.method,)
    unknown = [name for name in names if name not in BOUNDS]
    if unknown:
        raise UnknownMethod(f"unknown method {unknown[0]!r}; known: auto, {', '.join(BOUNDS)}")
    bounds = [BOUNDS[name] for name in names if request.norm in BOUNDS[name].norms]
    if not bounds:
        raise UnknownMethod(f"method {request.method!r} does not cover the norm {request.norm!r}")
    return bounds


def _deployed_answers(
    logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """prediction [N]; margin [N] f_y - max_j f_j; correct [N]: label strictly on top, finite."""
    values = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    targets = torch.from_numpy(np.asarray(labels, dtype=np.int64))[:, None]
    others = values.scatter(1, targets, -torch.inf).amax(1)
    margin = values.gather(1, targets)[:, 0] - others
    finite = torch.isfinite(values).all(1)
    prediction = np.where(finite.numpy(), np.nan_to_num(logits).argmax(1), -1).astype(np.int64)
    correct = finite & (margin > 0)
    return prediction, torch.where(finite, margin, torch.nan), correct


def _run_bounds(
    verifier: Verifier,
    bounds: list[Bound],
    block: _Block,
    request: CertificationRequest,
    spent: Callable[[], bool],
) -> None:
    cap = largest_distance(tuple(block.x.shape[1:]), request.norm, request.clip)
    for bound in bounds:
        if bound.radius is not None:
            rows = block.correct.nonzero().flatten()
            if rows.numel():
                radius = verifier.radius(
                    bound,
                    block.x[rows],
                    block.labels[rows],
                    block.epsilons,
                    report=request.radius,
                )
                radius = torch.where(radius >= cap, torch.inf, radius)
                block.prove(rows, radius, bound.name)
            continue
        for position in np.argsort(block.epsilons, kind="stable"):
            if spent():
                return
            epsilon = block.epsilons[position]
            # A bound that failed at a smaller epsilon fails here too.
            tried = torch.full_like(block.failed, epsilon)
            rows = (block.correct & (block.proved < epsilon) & (block.failed > epsilon)).nonzero()
            rows = rows.flatten()
            if not rows.numel():
                continue
            proved = verifier.proves(
                bound, block.x[rows], block.labels[rows], tried[rows], block.margin[rows]
            )
            block.prove(rows[proved], tried[rows[proved]], bound.name)
            block.failed[rows[~proved]] = epsilon
        if bound is not bounds[-1]:
            # The next bound may prove what this one could not.
            block.failed.fill_(torch.inf)
    if request.radius:
        _search(verifier, bounds, block, cap, spent)


def _search(
    verifier: Verifier,
    bounds: list[Bound],
    block: _Block,
    cap: float,
    spent: Callable[[], bool],
) -> None:
    dominated = {name for bound in bounds for name in bound.dominates}
    searching = [b for b in bounds if b.margins is not None and b.name not in dominated]
    rows = block.correct.nonzero().flatten()
    if not searching or not rows.numel():
        return
    start = torch.full((rows.numel(),), min(min(block.epsilons), cap), dtype=torch.float64)

    def proves(chosen: Tensor, epsilon: Tensor) -> Tensor:
        proved = torch.zeros(chosen.numel(), dtype=torch.bool)
        for bound in searching:
            still = (~proved).nonzero().flatten()
            picked = rows[chosen[still]]
            found = verifier.proves(
                bound, block.x[picked], block.labels[picked], epsilon[still], block.margin[picked]
            )
            block.prove(picked[found], epsilon[still][found], bound.name)
            proved[still[found]] = True
        return proved

    failed = torch.minimum(block.failed[rows], torch.full_like(start, torch.inf))
    radius = search_radius(proves, block.proved[rows], failed, start, cap, stop=spent)
    # Beyond the cap the whole pixel box is proved.
    for row in rows[torch.isinf(radius)].tolist():
        block.prove(torch.tensor([row]), torch.tensor([math.inf]), block.by[row])


def _run_attack(
    network: Network,
    deployed: Deployed,
    block: _Block,
    request: CertificationRequest,
    notes: dict[str, Any],
    sound: bool,
) -> None:
    settings = request.attack
    assert settings is not None
    for position in np.argsort(block.epsilons, kind="stable").tolist():
        epsilon = block.epsilons[position]
        certified = block.certified()[:, position]
        audited = torch.from_numpy(
            audit_selection(
                block.indices, share=settings.audit, seed=settings.seed, position=position
            )
        )
        broken = block.falsified[:, position].clone()
        open_rows = block.correct & ~certified & ~broken
        rows = (open_rows | (block.correct & certified & audited)).nonzero().flatten()
        if not rows.numel():
            continue
        reach = torch.where(certified[rows], AUDIT_SHARE * epsilon, epsilon)
        # Huge balls are attacked where pixels live.
        reach = reach.clamp_max(4 * largest_distance(tuple(block.x.shape[1:]), request.norm, True))
        found, points = attack(
            network,
            deployed,
            block.x[rows],
            block.labels[rows],
            block.indices[rows.numpy()],
            reach,
            norm=request.norm,
            clip=request.clip,
            settings=settings,
        )
        notes["audited"] += int(certified[rows].sum())
        for row, point in zip(rows[found].tolist(), points[found], strict=True):
            if bool(certified[row]):
                _overrule(block, row, epsilon, notes, sound)
            block.counterexamples[row, position] = point
            for other, asked in enumerate(block.epsilons):
                if asked >= epsilon:
                    block.falsified[row, other] = True


def _overrule(block: _Block, row: int, epsilon: float, notes: dict[str, Any], sound: bool) -> None:
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


def _results(
    blocks: list[_Block],
    indices: NDArray[np.int64],
    labels: NDArray[np.int64],
    prediction: NDArray[np.int64],
    margin: Tensor,
    request: CertificationRequest,
    seconds: dict[str, float],
    notes: dict[str, Any],
) -> SampleResults:
    width = len(request.epsilons)
    if blocks:
        certified = torch.cat([block.certified() & block.correct[:, None] for block in blocks])
        falsified = torch.cat([block.falsified for block in blocks])
        radius = torch.cat([block.proved for block in blocks])
    else:
        certified = falsified = torch.zeros(0, width, dtype=torch.bool)
        radius = torch.zeros(0, dtype=torch.float64)
    counterexamples: dict[str, NDArray[np.float32]] = {}
    method: list[str] = []
    decided_by: list[list[str]] = []
    for number, block in enumerate(blocks):
        for (row, position), point in block.counterexamples.items():
            counterexamples[f"{number * BLOCK + row},{position}"] = point.numpy()
        for row, names in enumerate(block.decided_by):
            broken = block.falsified[row]
            if not bool(block.correct[row]):
                method.append("misclassified")
                decided_by.append(["misclassified"] * width)
                continue
            decided = [
                name or ("attack" if bool(broken[position]) else "undecided")
                for position, name in enumerate(names)
            ]
            decided_by.append(decided)
            proved = [p for p in range(width) if bool(certified[number * BLOCK + row, p])]
            if proved:
                method.append(decided[max(proved, key=lambda p: request.epsilons[p])])
            else:
                method.append("attack" if bool(broken.any()) else "undecided")
    asked = torch.tensor([float_above(epsilon) for epsilon in request.epsilons]).double()
    largest = torch.where(certified, asked[None, :].expand_as(certified), 0.0)
    radius = torch.maximum(rounded_down(radius), largest.amax(1) if len(radius) else radius)
    radius[~torch.cat([block.correct for block in blocks])] = 0.0
    if not request.radius:
        radius = torch.full_like(radius, torch.nan)
    return SampleResults(
        index=np.asarray(indices, dtype=np.int64),
        label=np.asarray(labels, dtype=np.int64),
        prediction=prediction,
        margin=margin.numpy().astype(np.float64),
        radius=radius.numpy(),
        certified=certified.numpy(),
        falsified=falsified.numpy(),
        method=method,
        decided_by=decided_by,
        counterexamples=counterexamples,
        seconds={"forward": 0.0, **seconds},
        notes=notes,
    )
