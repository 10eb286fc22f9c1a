"""Whether the deployed file computes what is certified: its logits against our enclosure of them.

At epsilon 0 the enclosure holds every float32 evaluation of the graph at x in any summation order;
logits of ONNX Runtime outside it mean that the graph certified is not the graph deployed. It is
looked at on the samples, in small batches of different rows, on random inputs of several scales
over the whole range, and on samples with one coordinate changed (``parity_inputs``). That finds
mistakes of an importer; it proves nothing about inputs that were not tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.forward.margins import logit_enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.per_sample import multiplications
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

__all__ = ["DeploymentMismatch", "check_parity", "extra_inputs"]

#: Inputs checked at once.
BLOCK = 32

#: Random inputs, and as many changes of one coordinate: ``PER_SAMPLE`` for each sample, at least
#: ``LEAST`` and at most ``MOST``, but beyond ``LEAST`` no more than ``WORK`` multiplications and
#: ``NUMBERS`` numbers of input.
PER_SAMPLE, LEAST, MOST, WORK, NUMBERS = 2, 64, 1024, 2**31, 2**24

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
    unchecked [N]: float32 may overflow there."""

    difference: Tensor
    budget: Tensor
    share: Tensor
    unchecked: Tensor


def extra_inputs(compiled: CompiledNetwork, samples: int) -> int:
    """How many random inputs are tried, and how many changes of one coordinate."""
    maps = (step.op for step in compiled.steps if isinstance(step.op, Dense | Convolution))
    cost = sum(multiplications(op) for op in maps) + compiled.head.weight.numel()
    room = min(WORK // max(1, int(cost)), NUMBERS // math.prod(compiled.input_shape))
    return max(LEAST, min(PER_SAMPLE * samples, MOST, room))


def check_parity(
    compiled: CompiledNetwork,
    x: NDArray[np.float32],
    deployed_logits: NDArray[np.float32],
    deployed: Deployed,
    *,
    clip: bool,
    batched: bool = True,
    seed: int = 0,
    clock: Clock = UNLIMITED,
) -> dict[str, Any]:
    """Differences of the deployed logits from ours, and their budgets, on all kinds of inputs.

    x [N, *shape]: the samples; deployed_logits [N, classes] at x; ``clip``: inputs lie in [0, 1];
    ``batched``: False where the file runs one row at a time. ``compiled`` needs no norms.

    Returns, of the samples: max_difference, budget and difference_there at worst_index, the sample
    where the difference uses the largest share of its budget; of all inputs: largest_share (<= 1),
    unchecked (how many have logits that float32 may overflow at, so that nothing is certified
    there) and ``inputs``, how many there were of each kind. Raises DeploymentMismatch where a share
    exceeds 1, UnsupportedLayer where a layer has no enclosure; OutOfTime.
    """
    rng = np.random.default_rng(seed)
    count = extra_inputs(compiled, len(x))
    facts: dict[str, Any] = {}
    tried: dict[str, int] = {}
    largest_share, unchecked = 0.0, 0

    def compare(kind: str, inputs: Inputs, given: NDArray[np.float32]) -> _Compared:
        nonlocal largest_share, unchecked
        found = _compare(compiled, inputs.x, given, clock)
        row = int(found.share.argmax())
        if not float(found.share[row]) <= 1.0:
            raise _mismatch(compiled, deployed, inputs, found, row, together=kind == "batches")
        largest_share = max(largest_share, float(found.share[row]))
        unchecked += int(found.unchecked.sum())
        tried[kind] = tried.get(kind, 0) + len(inputs.x)
        return found

    sizes = BATCH_SIZES if batched else BATCH_SIZES[:1]
    for batch in batches(x, rng, clip=clip, sizes=sizes):
        compare("batches", batch, deployed(batch.x))
    samples = Inputs(x, [f"sample {row}" for row in range(len(x))])
    found = compare("samples", samples, deployed_logits)
    worst = int(found.share.argmax())
    column = int((found.difference[worst] / found.budget[worst].clamp_min(1e-300)).argmax())
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
) -> _Compared:
    parts = list(_blocks(compiled, x, given, clock))
    columns = zip(*parts, strict=True)
    return _Compared(*(torch.cat(column) for column in columns))


def _blocks(
    compiled: CompiledNetwork, x: NDArray[np.float32], given: NDArray[np.float32], clock: Clock
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    rounding = Rounding.sound(torch.float64)
    with exact_arithmetic(), torch.no_grad():
        for start in range(0, len(x), BLOCK):
            inputs = torch.from_numpy(np.ascontiguousarray(x[start : start + BLOCK]))
            region = Region(inputs, torch.zeros(len(inputs), dtype=torch.float64), "linf", False)
            # The box alone: at epsilon 0 it is the tighter one, and needs no operator norms.
            state = propagate(
                compiled, region, rounding=rounding, dtype=torch.float64, ball=False, clock=clock
            )
            logits, budget = logit_enclosure(compiled.head, state, rounding)
            answer = torch.from_numpy(given[start : start + BLOCK]).to(torch.float64)
            difference = (answer - logits).abs()
            share = difference / budget.clamp_min(1e-300)
            # NaN and what is rounded to 1 from above are mismatches like others.
            inside = difference <= budget
            share = torch.where(
                inside, share.clamp_max(1.0), share.nan_to_num(1e300).clamp_min(2.0)
            )
            unchecked = (budget < 0).any(1)
            # Where float32 may overflow nothing is certified and nothing can be compared.
            share[unchecked], difference[unchecked] = 0.0, 0.0
            yield difference, budget, share.amax(1), unchecked


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
        "check that the file runs as plain float32 and that no operator depends on the batch",
    )
