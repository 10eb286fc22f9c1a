"""The cost of a job is told in advance, with a warning where bounds are out of reach."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.schemas.job_records import Estimate
from tests.extent import examples
from tests.workers.verification.networks import dense_network
from workers.jobs.inspection.estimate import estimate
from workers.verification.cascade.bound_table import BOUNDS, auto_bounds
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.results import EFFORTS

COMPILED = CompiledNetwork.compile(dense_network([4, 8, 3], 1), norms=False)
PLENTY = 1e12


def told(effort: str = "standard", **changes: Any) -> Estimate:
    asked: dict[str, Any] = {
        "samples": 100,
        "epsilons": 2,
        "attack_passes": 120.0,
        "work": 2e7,
        "pass_s": 1e-3,
        "memory": PLENTY,
    }
    bounds = auto_bounds("l2", effort)
    return Estimate.model_validate(estimate(COMPILED, bounds, **(asked | changes)))


@given(
    samples=st.integers(1, 100_000),
    epsilons=st.integers(1, 5),
    work=st.sampled_from([None, 2e6, 2e7, 2e9]),
    effort=st.sampled_from(EFFORTS),
)
@settings(max_examples=examples(30), deadline=None)
def test_no_more_than_the_work_and_the_attack_is_told(
    samples: int, epsilons: int, work: float | None, effort: str
) -> None:
    found = told(effort, samples=samples, epsilons=epsilons, work=work)
    attack = 120.0 * samples * epsilons
    assert found.forward_passes >= attack
    assert work is None or found.forward_passes <= work + attack
    assert found.worker_s == pytest.approx(1e-3 * found.forward_passes)
    assert set(found.left_out) <= set(BOUNDS)
    assert work is not None or not found.left_out


def test_a_network_that_is_too_large_for_all_or_for_the_tight_bounds_is_told() -> None:
    assert told().warning is None
    assert told().left_out == []
    nothing = told(memory=1.0)
    assert nothing.warning is not None
    assert "too large for every bound" in nothing.warning
    assert nothing.forward_passes == 120.0 * 200
    cheap = told(memory=BOUNDS["local-lip"].memory(COMPILED))
    assert cheap.warning is not None
    assert "only an attack can decide" in cheap.warning
    assert set(cheap.left_out) >= {"crown", "crown-ball", "alpha-crown"}
    # So many samples that no tight bound can be paid for any of them.
    many = told(samples=10_000_000)
    assert many.warning is not None
    assert "Fewer samples" in many.warning
