"""Limited work: pooled by a few samples that are always in one shard, nearest to deciding first."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.network import Network
from tests.extent import part
from tests.workers.verification.certification import evaluate
from tests.workers.verification.networks import random_network
from workers.verification.cascade.block import Block
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import BLOCK, certify_samples
from workers.verification.results import (
    POOL,
    AttackSettings,
    CertificationRequest,
    SampleResults,
)

CPU = torch.device("cpu")
EXPENSIVE = ("crown", "alpha-crown", "alpha-crown-intermediate")
SAMPLES = 3 * POOL
#: Per sample: nothing, cheap bounds alone, some expensive bounds, all that is ever asked.
WORKS = (0.0, 50.0, 500.0, 2500.0, 1e9)


@given(
    gaps=st.lists(
        st.sampled_from([-5.0, -1.0, -0.1, 0.0]), min_size=2 * POOL - 3, max_size=2 * POOL
    ),
    affordable=st.integers(0, POOL),
    seed=st.integers(0, 100),
)
def test_the_least_gap_goes_first_then_the_largest_margin(
    gaps: list[float], affordable: int, seed: int
) -> None:
    count = len(gaps)
    margin = np.random.default_rng(seed).permutation(count) + 1.0
    block = Block(
        torch.zeros(count, 1),
        torch.zeros(count, dtype=torch.int64),
        np.arange(count),
        torch.from_numpy(margin),
        torch.ones(count, dtype=torch.bool),
        [0.01],
    )
    block.gap = torch.tensor(gaps, dtype=torch.float64)
    block.work = [1000.0 * affordable, 1000.0 * POOL]
    rows = torch.arange(1, count)
    paid = block.afford(rows, torch.full((count - 1,), 0.01), 1000.0)
    best = sorted(range(1, POOL), key=lambda row: (-gaps[row], -margin[row]))
    # The second pool pays for all of its own, and for no other's.
    assert rows[paid].tolist() == sorted(best[:affordable]) + list(range(POOL, count))
    assert block.work == [
        1000.0 * (affordable - min(affordable, POOL - 1)),
        1000.0 * (2 * POOL - count),
    ]


def certify(
    network: Network, x: NDArray[np.float32], work: float | None, *, shard: int
) -> list[SampleResults]:
    logits = evaluate(network, x)
    request = CertificationRequest(
        "linf",
        (Fraction(1, 100), Fraction(1, 40), Fraction(1, 25)),
        attack=AttackSettings(steps=3, restarts=1),
    )
    return [
        certify_samples(
            network,
            x[start : start + shard],
            logits[start : start + shard].argmax(1),
            np.arange(start, min(start + shard, len(x))),
            request,
            deployed=lambda batch: evaluate(network, batch),
            deployed_logits=logits[start : start + shard],
            device=CPU,
            work=work,
        )
        for start in range(0, len(x), shard)
    ]


@pytest.fixture(scope="module")
def case() -> tuple[Network, NDArray[np.float32]]:
    """A network on which cheap bounds leave something open that expensive ones decide."""
    x = np.random.default_rng(3).random((SAMPLES, 2, 8, 8)).astype(np.float32)
    return random_network(3), x


def test_blocks_hold_whole_pools() -> None:
    assert BLOCK % POOL == 0


@pytest.mark.parametrize("work", part(WORKS[1:4], 0, 1))
def test_limited_work_gives_the_same_answers_in_any_shards(
    case: tuple[Network, NDArray[np.float32]], work: float
) -> None:
    whole = certify(*case, work, shard=SAMPLES)[0]
    assert whole.notes["work_spent"]
    for shard in (POOL, 2 * POOL):
        parts = certify(*case, work, shard=shard)
        assert [by for part in parts for by in part.decided_by] == whole.decided_by
        np.testing.assert_array_equal(np.concatenate([part.radius for part in parts]), whole.radius)


def test_more_work_decides_more(case: tuple[Network, NDArray[np.float32]]) -> None:
    found = [certify(*case, work, shard=SAMPLES)[0] for work in (*WORKS, None)]
    for less, more in itertools.pairwise(found):
        assert less.certified.sum() <= more.certified.sum()
        assert less.radius.sum() <= more.radius.sum()
    names = [Counter(by for row in result.decided_by for by in row) for result in found]
    assert set(names[0]) <= {"lipschitz", "attack", "undecided"}
    assert not set(names[1]) & set(EXPENSIVE)
    expensive = [sum(count[name] for name in EXPENSIVE) for count in names]
    assert 0 < expensive[2] < expensive[3] <= expensive[4]
    assert [result.notes["work_spent"] for result in found] == [True] * 4 + [False] * 2
    assert BOUNDS["crown"].expected_passes > WORKS[2]
