"""Smaller boxes: what no bound decides on a whole box is cut in two, again and again.

Complete in the limit for boxes of few dimensions (Bunel et al. 2018, input splits); the two halves
share their common face, so that together they hold every input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.verification.numerics import nonzero
from workers.verification.properties.goals import Goal
from workers.verification.properties.verify import BoxSearch
from workers.verification.protocol import Bound
from workers.verification.region import Region

__all__ = ["split", "splits"]

#: Coordinates of some width, at most: beyond that halves are hardly smaller than the whole.
MAX_INPUTS = 50
#: The bound of a part costs at most so many passes: deeper is better than tighter.
MAX_PASSES = 2_000
#: Parts that are bounded together, and that may wait, and how often a part may be cut.
TOGETHER, MAX_WAITING, MAX_DEPTH = 32, 100_000, 120

Part = tuple[Tensor, Tensor, tuple[int, ...], int]


def splits(lower: Tensor, upper: Tensor) -> bool:
    """Whether the box has so few dimensions that halves of it are worth a try."""
    return int((upper > lower).sum()) <= MAX_INPUTS


def split(search: BoxSearch, bounds: list[Bound], lower: Tensor, upper: Tensor) -> None:
    """Work on the open goals over parts of the box from ``lower`` to ``upper`` [*shape] float64.

    ``search.goals`` is empty afterwards where every part is proved; else as it was.
    """
    affordable = [bound for bound in bounds if bound.expected_passes <= MAX_PASSES]
    if not affordable:
        return
    if any(not goal.alternatives for goal in search.goals):
        return
    bound = affordable[-1]
    search.notes["parts"] = 0
    waiting: list[Part] = [(lower, upper, tuple(range(len(search.goals))), 0)]
    while waiting:
        if search.over() or len(waiting) > MAX_WAITING:
            return
        parts = waiting[-TOGETHER:]
        del waiting[-TOGETHER:]
        search.notes["parts"] += len(parts)
        halves = _work_on(search, bound, parts)
        if halves is None:
            return
        waiting += halves
    search.goals = []
    search.by = "input-splitting"


def _work_on(search: BoxSearch, bound: Bound, parts: list[Part]) -> list[Part] | None:
    """The halves of those parts that stay open; None where one cannot be cut any more, or a
    counterexample is found."""
    region = Region.between(
        torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
    )
    if search.check(region.x.numpy()):
        search.by = "input-splitting"
        return None
    outputs = search.outputs(region.x)
    open_goals = [list(part[2]) for part in parts]
    for number, goal in enumerate(search.goals):
        rows = torch.tensor([place for place, still in enumerate(open_goals) if number in still])
        if not rows.numel():
            continue
        margins = goal.margins(outputs[rows])
        some = region.part(rows, torch.device("cpu"))
        proved, _ = search.prove(bound, goal, some, margins, tried=1)
        if search.found is not None:
            search.by = bound.name
            return None
        for place in rows[proved].tolist():
            open_goals[place].remove(number)
    halves: list[Part] = []
    left = [place for place, still in enumerate(open_goals) if still]
    if not left:
        return halves
    slopes = _slopes(search, region.x[left], [search.goals[open_goals[place][0]] for place in left])
    for place, slope in zip(left, slopes, strict=True):
        cut = _halves(parts[place], slope, tuple(open_goals[place]))
        if cut is None:
            return None
        halves += cut
    return halves


def _halves(part: Part, slope: Tensor, goals: tuple[int, ...]) -> list[Part] | None:
    """The part cut in the coordinate that its margin depends on most."""
    lower, upper, _, depth = part
    width = upper - lower
    # A coordinate on which the middle says nothing may still matter elsewhere.
    score = (width * (slope + slope.amax() / 16 + nonzero(slope.amax()) * 0.0)).flatten()
    score = torch.where(torch.isfinite(score), score, width.flatten())
    if not bool((score > 0).any()):
        score = width.flatten()
    place = int(score.argmax())
    low, high = lower.flatten()[place], upper.flatten()[place]
    middle = low + (high - low) / 2
    if depth >= MAX_DEPTH or not bool((low < middle) & (middle < high)):
        return None
    above, below = upper.clone(), lower.clone()
    above.view(-1)[place], below.view(-1)[place] = middle, middle
    return [(below, upper, goals, depth + 1), (lower, above, goals, depth + 1)]


def _slopes(search: BoxSearch, x: Tensor, goals: list[Goal]) -> Tensor:
    """|gradient| of each part's leading margin at its middle, [parts, *shape] float64."""
    device = search.problem.device
    point = x.to(device).requires_grad_(True)
    with torch.enable_grad():
        outputs = search.network(point).to(torch.float64).cpu()
        least = [goal.margins(outputs[row : row + 1]).amax() for row, goal in enumerate(goals)]
        (gradient,) = torch.autograd.grad(torch.stack(least).sum(), point)
    return gradient.abs().to(torch.float64).cpu().nan_to_num(math.inf, math.inf)
