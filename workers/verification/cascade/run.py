"""The cascade: cheapest bound first, each only on what is still open, then the attack.

A shard's answer depends on its samples alone: not on the batch, the shard or the worker.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.chains import with_whole_sums
from models.network import Network
from workers.verification.answers import answers
from workers.verification.attacks.replay import Deployed
from workers.verification.cascade.block import Block
from workers.verification.cascade.coverage import (
    UnknownMethod,
    covering_bounds,
    without_replaced,
)
from workers.verification.cascade.progress import Progress
from workers.verification.cascade.radius import radius_rounded_down
from workers.verification.cascade.shard import Shard, SoundnessViolation, fresh_notes
from workers.verification.cascade.stages import certify_block
from workers.verification.clock import Clock, OutOfTime
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.input_range import in_range, range_of
from workers.verification.norms.lanczos import FailureBudget
from workers.verification.numerics import lowered
from workers.verification.problem import Problem
from workers.verification.region import float_above
from workers.verification.results import POOL, CertificationRequest, SampleResults
from workers.verification.rounding import answer_gap

__all__ = [
    "PixelsOutOfRange",
    "SoundnessViolation",
    "UnknownMethod",
    "certify_samples",
    "deployed_answers",
]

#: An epsilon beyond which units of the input make no difference.
FARTHEST = Fraction(sys.float_info.max)

#: Samples that go through the cascade together (progress is reported after each such block).
BLOCK = 6 * POOL


class PixelsOutOfRange(ValueError):
    """With a range of valid inputs the samples must lie in it themselves."""

    code = "value_out_of_range"


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
    progress: Callable[[int | None, str], None] = lambda done, message: None,
    deadline: float | None = None,
    now: Callable[[], float] = time.monotonic,
    work: float | None = None,
    memory: float | None = None,
) -> SampleResults:
    """Certified radius and certified / falsified epsilons of every sample of a shard.

    x [N, *shape] float32; labels [N]; indices [N]: positions in the data set (they seed the
    attack); deployed: float32 batch -> logits, the network as it is deployed; deployed_logits
    [N, classes] at x; deadline: ``now()`` after which what is open stays undecided: it is looked at
    inside every bound, and what is proved by then counts; work: plain forward passes per sample
    that bounds may cost (None: no limit), pooled by ``POOL`` samples from the first one on; memory:
    bytes that one bound may take for a sample, else the next cheaper one has to do;
    progress(done, message) is told again and again, from inside the bounds too, how many samples
    are done (None before the first bound) and what is at work, and may raise to abort.
    Raises UnknownMethod, UnsupportedLayer, PixelsOutOfRange, SoundnessViolation.
    """
    if not in_range(x, request.clip):
        raise PixelsOutOfRange("inputs must lie in the range of valid ones")
    sound = request.soundness == "sound"
    said = Progress(progress)
    clock = Clock(deadline, said, now)
    # Gradients are taken of whole sums: partial ones are many times as large.
    attacked = with_whole_sums(network).to(device)
    for parameter in attacked.parameters():
        parameter.requires_grad_(False)
    epsilons = [_reach(epsilon, request) for epsilon in request.epsilons]
    blocks: list[Block] = []
    inputs = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    targets = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    gap = answer_gap(network.dropped_output)
    prediction, margin, correct = deployed_answers(deployed_logits, labels, gap)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        block = Block(
            inputs[rows],
            targets[rows],
            indices[rows],
            margin[rows],
            correct[rows],
            epsilons,
            work=math.inf if work is None else work,
        )
        blocks.append(block)
    began = time.perf_counter()
    try:
        compiled = CompiledNetwork.compile(
            network, cache_dir=cache_dir, estimate=not sound, clock=clock
        )
    except OutOfTime:
        spent = {"bound": time.perf_counter() - began, "attack": 0.0}
        notes = {**fresh_notes(), "budget_spent": True}
        return _results(blocks, indices, labels, prediction, margin, request, spent, notes)
    bounds, passed_over = covering_bounds(compiled, request.method, request.norm, request.effort)
    failure_budget = None if request.deterministic or not sound else FailureBudget()
    shard = Shard(
        Problem(compiled, sound, device, failure_budget=failure_budget),
        attacked,
        deployed,
        request,
        clock=clock,
        memory=memory,
        progress=said,
        samples=len(x),
    )
    shard.notes["passed_over"] = passed_over
    shard.seconds["bound"] += time.perf_counter() - began
    # One that the work is not enough for replaces none: the cheaper one may be all there is.
    enough = math.inf if work is None else work
    bounds = without_replaced(
        bounds, lambda bound: shard.fits(bound) and bound.max_passes <= enough
    )
    for number, block in enumerate(blocks):
        certify_block(shard, block, bounds, start=number * BLOCK)
        said.done = number * BLOCK + len(block.x)
        said()
    if failure_budget is not None:
        shard.notes["failure_probability"] = failure_budget.failure_probability
    return _results(
        blocks, indices, labels, prediction, margin, request, shard.seconds, shard.notes
    )


def _reach(epsilon: Fraction, request: CertificationRequest) -> float:
    """The least float64 that is not below an epsilon, in the input's own units."""
    own, limits = epsilon * request.unit, range_of(request.clip)
    if limits is not None and limits.whole and request.norm == "linf" and own >= 1:
        # No whole number lies between.
        own = Fraction(math.floor(own))
    # Beyond the largest float64 as up to it: no two inputs are so far apart.
    return float_above(min(own, FARTHEST))


def deployed_answers(
    logits: NDArray[np.float32], labels: NDArray[np.int64], gap: float
) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """prediction [N] (-1: none); margin [N] f_y - max_j f_j; correct [N]: label strictly on top.

    Behind a softmax (``gap``) there is no answer where two logits lead by too little.
    """
    values = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    prediction = answers(values, gap=gap)
    targets = torch.from_numpy(np.asarray(labels, dtype=np.int64))[:, None]
    others = values.scatter(1, targets, -torch.inf).amax(1)
    margin = values.gather(1, targets)[:, 0] - others
    margin = torch.where(torch.isfinite(values).all(1), margin, torch.nan)
    return prediction.numpy(), margin, prediction == targets[:, 0]


def _results(
    blocks: list[Block],
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
        for row in range(len(block.x)):
            by, names = block.verdicts(row)
            method.append(by)
            decided_by.append(names)
    asked = torch.tensor(
        [float_above(epsilon) for epsilon in request.epsilons], dtype=torch.float64
    )
    largest = torch.where(certified, asked[None, :].expand_as(certified), 0.0)
    radius = radius_rounded_down(radius if request.unit == 1 else lowered(radius / request.unit, 1))
    radius = torch.maximum(radius, largest.amax(1) if len(radius) else radius)
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
