"""Limited work: every sample has its own share, whatever else is in its shard."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.network import Network
from tests.workers.verification.networks import random_network
from tests.workers.verification.test_soundness import evaluate
from workers.verification.bounds import BOUNDS
from workers.verification.cascade import certify_samples
from workers.verification.results import AttackSettings, CertificationRequest, SampleResults

CPU = torch.device("cpu")
DEAR = ("crown", "alpha-crown")
#: From nothing for a dear bound to enough for all that is ever asked.
WORKS = (0.0, BOUNDS["crown"].cost, BOUNDS["crown"].cost + BOUNDS["alpha-crown"].cost, 1e9)


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
    """A network on which cheap bounds leave something open that dear ones decide."""
    return random_network(8), np.random.default_rng(8).random((10, 2, 8, 8)).astype(np.float32)


def test_limited_work_gives_the_same_answers_in_any_shards(
    case: tuple[Network, NDArray[np.float32]],
) -> None:
    for work in WORKS:
        whole = certify(*case, work, shard=10)[0]
        for shard in (1, 3):
            parts = certify(*case, work, shard=shard)
            assert [by for part in parts for by in part.decided_by] == whole.decided_by
            np.testing.assert_array_equal(
                np.concatenate([part.radius for part in parts]), whole.radius
            )


def test_more_work_never_proves_less_and_only_dear_bounds_cost_it(
    case: tuple[Network, NDArray[np.float32]],
) -> None:
    found = [certify(*case, work, shard=10)[0] for work in (*WORKS, None)]
    for less, more in itertools.pairwise(found):
        assert (less.radius <= more.radius).all()
        assert (less.certified <= more.certified).all()
    names = [{by for row in result.decided_by for by in row} for result in found]
    assert not names[0] & set(DEAR)
    assert names[-1] & set(DEAR)
    assert names[0] - {"undecided", "attack", "misclassified"}
    assert [result.notes["work_spent"] for result in found] == [True, True, True, False, False]
