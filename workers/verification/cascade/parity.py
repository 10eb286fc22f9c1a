"""Parity: compares logits of the deployed file with the certified graph's enclosure of them.

At epsilon 0 the enclosure holds every float32 evaluation of the graph at x in any summation order;
logits of ONNX Runtime outside it mean that the graph certified is not the graph deployed. It is
checked on the samples, in small batches of different rows, on random inputs of several scales
over the whole range, and on samples with one coordinate changed (``parity_inputs``). That finds
mistakes of an importer; it proves nothing about inputs that were not tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.verification.cascade.parity_inputs import (
    BATCH_SIZES,
    Inputs,
    batches,
    coordinate_changes,
    random_inputs,
)
from workers.verification.cascade.plain_parity import forward_pass, implausible
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.forward.margins import logit_enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.input_range import Clip
from workers.verification.norms.per_sample import multiplications
from workers.verification.numerics import nonzero
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

__all__ = ["DeploymentMismatch", "check_parity", "extra_inputs"]

#: Inputs checked at once.
BLOCK = 32

#: Random inputs, and as many changes of one coordinate: ``PER_SAMPLE`` for each sample, at least
#: ``MIN_INPUTS`` and at most ``MAX_INPUTS``, but beyond ``MIN_INPUTS`` no more than ``WORK``
#: multiplications and ``NUMBERS`` numbers of input. Where ``MIN_INPUTS`` take more than ``LITTLE``
#: multiplications, few samples have ``PER_SAMPLE`` each too, but at least ``FEWEST`` together: two
#: of every kind.
PER_SAMPLE, MIN_INPUTS, MAX_INPUTS, WORK, NUMBERS = 2, 64, 1024, 2**31, 2**24
LITTLE, FEWEST = 2**28, 16

#: Samples whose whole enclosure is computed: those that differ most.
EXAMINED = 8
#: Numbers in a network up to which no sum of a map that is safe in float32 overflows.
MODERATE = 2.0**60

_HINT = "check that the file runs as plain float32 and that no operator depends on the batch"
_SCALE = (
    "scale the layers so that no number between them is below 1e-36: multiply the weights and the "
    "bias of one by what you divide the weights of the next by, and export again"
)

#: float32 rows [N, *shape] -> logits [N, classes], all rows in one batch where the file allows it.
Deployed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class DeploymentMismatch(ValueError):
    """The deployed network's logits differ by more than float32 rounding can explain."""

    code = "deployment_mismatch"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class _Compared:
    """difference, budget [N, classes]; share [N] of the budget that is used (> 1: a mismatch);
    unchecked [N]: float32 may overflow there; examined [N]: the budget is the enclosure's,
    elsewhere a smaller one, which was enough; logits [N, classes]: ours."""

    difference: Tensor
    budget: Tensor
    share: Tensor
    unchecked: Tensor
    examined: Tensor
    logits: Tensor


def extra_inputs(compiled: CompiledNetwork, samples: int) -> int:
    """How many random inputs are tried, and how many changes of one coordinate."""
    maps = (step.op for step in compiled.steps if isinstance(step.op, Dense | Convolution))
    cost = max(1, int(sum(multiplications(op) for op in maps) + compiled.head.multiplications))
    room = min(WORK // cost, NUMBERS // math.prod(compiled.input_shape))
    least = (
        MIN_INPUTS
        if MIN_INPUTS * cost <= LITTLE
        else min(MIN_INPUTS, max(FEWEST, PER_SAMPLE * samples))
    )
    return max(least, min(PER_SAMPLE * samples, MAX_INPUTS, room))


def check_parity(
    compiled: CompiledNetwork,
    x: NDArray[np.float32],
    deployed_logits: NDArray[np.float32],
    deployed: Deployed,
    *,
    clip: Clip,
    batched: bool = True,
    seed: int = 0,
    clock: Clock = UNLIMITED,
) -> dict[str, Any]:
    """Differences of the deployed logits from ours, and their budgets, on all kinds of inputs.

    x [N, *shape]: the samples; deployed_logits [N, classes] at x; ``clip``: their range;
    ``batched``: False where the file runs one row at a time. ``compiled`` needs no norms.

    Returns, of the samples: max_difference, budget and difference_there at worst_index, the sample
    where the difference uses the largest share of its budget (of the ``EXAMINED`` that differ
    most); of all inputs: largest_share (<= 1; an upper bound, because most inputs are held against
    the head's rounding alone), unchecked (how many have logits that float32 may overflow at, so
    that nothing is certified there) and ``inputs``, how many there were of each kind. Raises
    DeploymentMismatch where a share exceeds 1, UnsupportedLayer where a layer has no enclosure;
    OutOfTime.
    """
    rng = np.random.default_rng(seed)
    count = extra_inputs(compiled, len(x))
    facts: dict[str, Any] = {}
    tried: dict[str, int] = {}
    largest_share, unchecked = 0.0, 0

    def compare(kind: str, inputs: Inputs, given: NDArray[np.float32]) -> _Compared:
        nonlocal largest_share, unchecked
        found = _compare(compiled, inputs.x, given, clock, EXAMINED if kind == "samples" else 0)
        row = int(found.share.argmax())
        if not float(found.share[row]) <= 1.0:
            raise _mismatch(compiled, deployed, inputs, found, row, together=kind == "batches")
        _check_plainly(compiled, inputs, found, given, clock)
        largest_share = max(largest_share, float(found.share[row]))
        unchecked += int(found.unchecked.sum())
        tried[kind] = tried.get(kind, 0) + len(inputs.x)
        return found

    sizes = BATCH_SIZES if batched else BATCH_SIZES[:1]
    for batch in batches(x, rng, clip=clip, sizes=sizes):
        compare("batches", batch, deployed(batch.x))
    samples = Inputs(x, [f"sample {row}" for row in range(len(x))])
    found = compare("samples", samples, deployed_logits)
    worst = int(torch.where(found.examined, found.share, -1.0).argmax())
    column = int((found.difference[worst] / nonzero(found.budget[worst])).argmax())
    facts["max_difference"] = float(found.difference.max())
    facts["budget"] = max(0.0, float(found.budget[worst, column]))
    facts["worst_index"] = worst
    facts["difference_there"] = float(found.difference[worst, column])
    for kind, draw in (("random", random_inputs), ("coordinates", coordinate_changes)):
        drawn = draw(x, count, rng, clip=clip)
        compare(kind, drawn, deployed(drawn.x))
    return {**facts, "largest_share": largest_share, "unchecked": unchecked, "inputs": tried}


def _compare(
    compiled: CompiledNetwork,
    x: NDArray[np.float32],
    given: NDArray[np.float32],
    clock: Clock = UNLIMITED,
    examined: int = 0,
) -> _Compared:
    """``given`` against the enclosures of the rows of x.

    An enclosure takes about five plain passes. So the head's own rounding, a part of every
    enclosure, goes first: where the difference is below it, the logits are inside. The enclosure is
    computed for the other rows and for the ``examined`` ones that differ most; for all rows where
    weights are so large that float32 may overflow beside numbers of any size.
    """
    maps = [step.op for step in compiled.steps if isinstance(step.op, Affine)]
    safe = compiled.head.float32_safe() and all(_moderate(op) for op in maps)
    parts = [
        _within_head(compiled, x[start : start + BLOCK], given[start : start + BLOCK], clock)
        for start in range(0, len(x), BLOCK)
    ]
    found = _Compared(*(torch.cat(column) for column in zip(*parts, strict=True)))
    most = found.share.argsort(descending=True, stable=True)
    found.examined[most[: examined if safe else None]] = True
    rows = found.examined.nonzero().flatten()
    for part in rows.split(BLOCK) if len(rows) else ():
        exact = _enclosed(compiled, x[part.numpy()], given[part.numpy()], clock)
        found.difference[part], found.budget[part], found.share[part], found.unchecked[part] = exact
    return found


def _moderate(op: Affine) -> bool:
    return bool(op.scalar("moderate", lambda: torch.tensor(op.moderate())))


def _within_head(
    compiled: CompiledNetwork, x: NDArray[np.float32], given: NDArray[np.float32], clock: Clock
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The columns of ``_Compared`` by the head's rounding; examined: rows that need more."""
    rounding, head = Rounding.sound(torch.float64), compiled.head
    with exact_arithmetic(), torch.no_grad():
        start = torch.from_numpy(np.ascontiguousarray(x)).double()
        centre, largest = forward_pass(compiled, start, clock)
        logits = head.logits(centre)
        size = head.sizes(centre.abs())
        budget = rounding.deployed_gamma(head.terms) * size if head.terms else 0.0 * size
        difference = (torch.from_numpy(given).double() - logits).abs()
        # Written so that a NaN needs more.
        enough = (difference <= budget).all(1) & (largest <= MODERATE)
        share = (difference / nonzero(budget)).amax(1).nan_to_num(torch.inf)
    return difference, budget, share, torch.zeros_like(enough), ~enough, logits


def _enclosed(
    compiled: CompiledNetwork, x: NDArray[np.float32], given: NDArray[np.float32], clock: Clock
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Difference, budget, share and unchecked by the whole enclosures of the rows."""
    rounding = Rounding.sound(torch.float64)
    with exact_arithmetic(), torch.no_grad():
        inputs = torch.from_numpy(np.ascontiguousarray(x))
        region = Region(inputs, torch.zeros(len(inputs), dtype=torch.float64), "linf", False)
        # The box alone: at epsilon 0 it is the tighter one, and needs no operator norms.
        state = propagate(
            compiled, region, rounding=rounding, dtype=torch.float64, ball=False, clock=clock
        )
        logits, budget = logit_enclosure(compiled.head, state, rounding)
        difference = (torch.from_numpy(given).double() - logits).abs()
        share = difference / nonzero(budget)
        # NaN and what is rounded to 1 from above are mismatches like others.
        inside = difference <= budget
        share = torch.where(inside, share.clamp_max(1.0), share.nan_to_num(1e300).clamp_min(2.0))
        unchecked = (budget < 0).any(1)
        # Where float32 may overflow nothing is certified and nothing can be compared.
        share[unchecked], difference[unchecked] = 0.0, 0.0
        return difference, budget, share.amax(1), unchecked


def _check_plainly(
    compiled: CompiledNetwork,
    inputs: Inputs,
    found: _Compared,
    given: NDArray[np.float32],
    clock: Clock,
) -> None:
    """Raise DeploymentMismatch where logits are inside a loose budget and yet are others."""
    rows = (found.examined & ~found.unchecked).nonzero().flatten()
    sizes = found.logits.abs()[~found.unchecked]
    if not len(rows):
        return
    x = torch.from_numpy(np.ascontiguousarray(inputs.x[rows.numpy()])).double()
    logits, deployed = found.logits[rows], torch.from_numpy(given[rows.numpy()]).double()
    largest = float(sizes.max())
    odd = implausible(compiled, x, logits, deployed, largest, clock)
    if bool(odd.any()):
        row = int(odd.nonzero()[0])
        one = slice(row, row + 1)
        off = float((deployed[row] - logits[row]).abs().max())
        lost = not bool(
            implausible(
                compiled, x[one], logits[one], deployed[one], largest, clock, underflow=True
            )
        )
        raise DeploymentMismatch(
            f"the deployed network's logits differ from the certified graph's by {off:.3g} on "
            f"{inputs.names[int(rows[row])]}, where logits are {largest:.3g} at most and "
            + (
                "float32 underflows: numbers on the way are so small that it loses their digits"
                if lost
                else "float32 rounding does not move them that far"
            ),
            _SCALE if lost else _HINT,
        )


def _mismatch(
    compiled: CompiledNetwork,
    deployed: Deployed,
    inputs: Inputs,
    found: _Compared,
    row: int,
    *,
    together: bool,
) -> DeploymentMismatch:
    where = inputs.names[row]
    if together and len(inputs.x) > 1:
        alone = inputs.x[row : row + 1]
        if float(_compare(compiled, alone, deployed(alone)).share[0]) <= 1.0:
            where = f"row {row} of a batch of {len(inputs.x)} ({where}; alone it agrees)"
    over = found.difference[row] - found.budget[row]
    column = int(over.nan_to_num(torch.inf).argmax())
    return DeploymentMismatch(
        f"the deployed network's logits differ from the certified graph's by "
        f"{float(found.difference[row, column]):.3g} on {where}, "
        f"where float32 rounding explains at most {float(found.budget[row, column]):.3g}",
        _HINT,
    )
