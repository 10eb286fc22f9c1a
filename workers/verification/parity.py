"""Whether the deployed file computes what is certified: its logits against our enclosure of them.

At epsilon 0 the enclosure holds every float32 evaluation of the graph at x in any summation order;
logits of ONNX Runtime outside it mean that the graph certified is not the graph deployed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Network
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.enclosure import propagate
from workers.verification.margins import logit_enclosure
from workers.verification.program import Program
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

__all__ = ["DeploymentMismatch", "check_parity"]

#: Samples checked at once.
BLOCK = 32


class DeploymentMismatch(ValueError):
    """The deployed network's logits differ by more than float32 rounding can explain."""

    code = "deployment_mismatch"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def check_parity(
    network: Network,
    x: NDArray[np.float32],
    deployed_logits: NDArray[np.float32],
    *,
    device: torch.device | None = None,
    cache_dir: Path | None = None,
    clock: Clock = UNLIMITED,
) -> dict[str, Any]:
    """Largest difference of the deployed logits [N, classes] from ours, and its budget.

    Returns max_difference, budget (the budget where the difference uses the largest share of it),
    worst_index, largest_share (<= 1) and unchecked (samples on which float32 may overflow, so that
    nothing is certified there). Raises DeploymentMismatch where a share exceeds 1; OutOfTime.
    """
    program = Program.compile(network, cache_dir=cache_dir, clock=clock)
    rounding = Rounding.sound(torch.float64)
    worst: dict[str, Any] = {
        "max_difference": 0.0,
        "budget": 0.0,
        "worst_index": 0,
        "unchecked": 0,
    }
    share_seen, largest = -1.0, 0.0
    with exact_arithmetic():
        for start in range(0, len(x), BLOCK):
            inputs = torch.from_numpy(np.ascontiguousarray(x[start : start + BLOCK]))
            region = Region(inputs, torch.zeros(len(inputs), dtype=torch.float64), "l2", False)
            state = propagate(program, region, rounding=rounding, dtype=torch.float64, clock=clock)
            logits, budget = logit_enclosure(program.head, state, rounding)
            given = torch.from_numpy(deployed_logits[start : start + BLOCK]).to(torch.float64)
            difference = (given - logits).abs()
            share = difference / budget.clamp_min(1e-300)
            share = torch.where(difference <= budget, share.clamp_max(1.0), share.clamp_min(2.0))
            # Where float32 may overflow nothing is certified and nothing can be compared.
            unchecked = (budget < 0).any(1)
            worst["unchecked"] += int(unchecked.sum())
            share[unchecked], difference[unchecked] = 0.0, 0.0
            row = int(share.amax(1).argmax())
            column = int(share[row].argmax())
            largest = max(largest, float(difference.max()))
            if not float(share[row, column]) <= share_seen:
                share_seen = float(share[row, column])
                worst["budget"] = float(budget[row, column])
                worst["worst_index"] = start + row
                worst["difference_there"] = float(difference[row, column])
    worst["max_difference"] = largest
    worst["largest_share"] = min(share_seen, 1e300) if share_seen == share_seen else 1e300
    if not share_seen <= 1.0:
        raise DeploymentMismatch(
            f"the deployed network's logits differ from the certified graph's by "
            f"{worst['difference_there']:.3g} on sample {worst['worst_index']}, "
            f"where float32 rounding explains at most {worst['budget']:.3g}",
            "check that the file runs as plain float32 and that no operator depends on the batch",
        )
    return worst
