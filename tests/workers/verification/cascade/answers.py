"""All answers to one request, however they are computed, and where two of them differ."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Network
from tests.workers.verification.certification import evaluate
from workers.verification.cascade.run import certify_samples
from workers.verification.problem import Problem
from workers.verification.results import CertificationRequest
from workers.verification.rounding import Rounding

#: Decisions may differ where a bound misses by less than 1e-9, radii by this share.
RADIUS_SHARE = 1e-6


@dataclass(frozen=True)
class Answers:
    """certified, falsified [N, epsilons] bool; radius [N]."""

    certified: NDArray[np.bool_]
    falsified: NDArray[np.bool_]
    radius: NDArray[np.float64]

    def differences(self, other: Answers) -> tuple[int, int]:
        """How many decisions and radii are not the same."""
        decisions = (self.certified != other.certified) | (self.falsified != other.falsified)
        both = np.maximum(self.radius, other.radius)
        with np.errstate(invalid="ignore"):
            far = np.abs(self.radius - other.radius) > RADIUS_SHARE * both
        return int(decisions.sum()), int(far.sum())


def answers(
    network: Network,
    x: NDArray[np.float32],
    request: CertificationRequest,
    cache: Path,
    *,
    shard: int,
    threads: int = 1,
    device: str = "cpu",
    float64_alone: bool = False,
) -> Answers:
    """Of all samples, certified in shards of this size; ``cache`` keeps operator norms.

    ``float64_alone``: in the arithmetic of a GPU.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        if float64_alone:
            exact = [(Rounding.sound(torch.float64), torch.float64)]
            stack.enter_context(mock.patch.object(Problem, "arithmetics", return_value=exact))
        # The deployed answer once for all samples, as a job has it.
        logits = evaluate(network, x)
        labels = logits.argmax(1)
        parts = []
        for start in range(0, len(x), shard):
            rows = slice(start, start + shard)
            parts.append(
                certify_samples(
                    network.to(torch.device(device)),
                    x[rows],
                    labels[rows],
                    np.arange(len(x))[rows],
                    request,
                    deployed=lambda batch: evaluate(network.to(torch.device("cpu")), batch),
                    deployed_logits=logits[rows],
                    device=torch.device(device),
                    cache_dir=cache,
                )
            )
            network.to(torch.device("cpu"))
    return Answers(
        np.concatenate([part.certified for part in parts]),
        np.concatenate([part.falsified for part in parts]),
        np.concatenate([part.radius for part in parts]),
    )
