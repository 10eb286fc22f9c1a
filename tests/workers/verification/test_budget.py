"""Limited work goes to the samples nearest to deciding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.verification.networks import dense_network
from tests.workers.verification.test_soundness import evaluate
from workers.verification.block import Block
from workers.verification.bounds import BOUNDS, Verifier
from workers.verification.program import Program
from workers.verification.results import CertificationRequest
from workers.verification.stages import Stages

CPU = torch.device("cpu")


@given(
    gaps=st.lists(st.sampled_from([-5.0, -1.0, -0.1, 0.0]), min_size=2, max_size=8),
    allowed=st.integers(1, 8),
    seed=st.integers(0, 100),
)
@settings(deadline=None)
def test_the_least_gap_goes_first_then_the_largest_margin(
    gaps: list[float], allowed: int, seed: int
) -> None:
    network = dense_network([4, 6, 3], 0)
    count = len(gaps)
    random = np.random.default_rng(seed)
    x = random.random((count, 4)).astype(np.float32)
    labels = torch.from_numpy(evaluate(network, x).argmax(1))
    margin = torch.from_numpy(random.permutation(count) + 1.0)
    block = Block(
        torch.from_numpy(x),
        labels,
        np.arange(count),
        margin,
        torch.ones(count, dtype=torch.bool),
        [0.01],
    )
    block.gap = torch.tensor(gaps, dtype=torch.float64)
    run = Stages(
        Verifier(Program.compile(network), "l2", True, True, CPU),
        network,
        lambda batch: evaluate(network, batch),
        CertificationRequest("l2", (Fraction(1, 100),)),
        epsilons=[0.01],
        deadline=None,
        work=1e9,
    )
    run.budget = BOUNDS["crown"].cost * allowed
    everything = torch.arange(count)
    epsilon = torch.full((count,), 0.01, dtype=torch.float64)
    _, asked = run._proves(BOUNDS["crown"], block, everything, epsilon)
    best = sorted(range(count), key=lambda row: (-gaps[row], -float(margin[row])))
    assert asked.tolist() == sorted(best[:allowed])
    assert run.notes["work_spent"] == (allowed < count)
