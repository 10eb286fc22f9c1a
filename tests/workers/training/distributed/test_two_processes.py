"""Two processes train as one does on the whole batch: gradients, states, curves and checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.contract.processes import wait_until
from tests.workers.training.distributed.runs_of_two import (
    SIZE,
    STEPS,
    Found,
    gradients_and_states,
    run_of,
    run_to_the_end,
    samples,
)
from tests.workers.training.runs import CPU, config_of
from workers.training.config import TrainingError
from workers.training.distributed.ranks import ALONE, Ranks
from workers.training.loop import train
from workers.training.objectives import OBJECTIVES, ScheduledWeights

#: Largest difference, as a share of all gradients together: float32 sums in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("pair")
    module = "tests.workers.training.distributed.runs_of_two"
    ranks = [
        subprocess.Popen([sys.executable, "-m", module, str(rank), str(os.getpid()), str(folder)])
        for rank in range(SIZE)
    ]
    try:
        assert wait_until(lambda: all(rank.poll() is not None for rank in ranks), 500)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [Found.read(folder, rank) for rank in range(SIZE)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process finds."""
    found = gradients_and_states()
    _, found.facts["whole"], _ = run_to_the_end(tmp_path_factory.mktemp("alone") / "checkpoint")
    return found


@pytest.mark.parametrize("method", OBJECTIVES)
def test_two_processes_have_the_gradients_of_one_on_the_whole_batch(
    method: str, pair: list[Found], alone: Found
) -> None:
    for step in range(STEPS):
        start = f"{method}/gradient/{step}/"
        names = [name for name in alone.tensors if name.startswith(start)]
        assert len(names) >= 4
        ours, theirs = (
            torch.cat([found.tensors[name].flatten() for name in names])
            for found in (pair[0], alone)
        )
        assert float(theirs.norm()) > 0.1
        assert float((ours - theirs).norm()) <= TOLERANCE * float(theirs.norm())
        ours, theirs = (found.tensors[f"{method}/sums/{step}"] for found in (pair[0], alone))
        assert torch.allclose(ours, theirs, rtol=TOLERANCE)


@pytest.mark.parametrize("method", OBJECTIVES)
def test_all_ranks_have_the_same_bits_and_those_of_one_process_but_for_rounding(
    method: str, pair: list[Found], alone: Found
) -> None:
    """Weights, moments, power-iteration vectors, running statistics."""
    states = [name for name in alone.tensors if name.startswith(f"{method}/state/")]
    for part in ("network.", "optimizer.", "lookahead."):
        assert any(name.startswith(f"{method}/state/{part}") for name in states)
    for name in states:
        first, second = (found.tensors[name] for found in pair)
        assert torch.equal(first, second), name
        theirs = alone.tensors[name].double()
        assert float((first - theirs).norm() / theirs.norm().clamp_min(1.0)) <= 1e-4, name


def test_a_paused_run_of_two_ends_in_the_bits_of_one_that_was_not(pair: list[Found]) -> None:
    for found in pair:
        assert found.facts["whole pauses"] == 0
        assert found.facts["resumed pauses"] >= 2
        assert found.facts["resumed"] == found.facts["whole"] == pair[0].facts["whole"]
        for name, tensor in found.tensors.items():
            if name.startswith("whole/"):
                assert torch.equal(tensor, found.tensors["resumed/" + name.removeprefix("whole/")])
                assert torch.equal(tensor, pair[0].tensors[name])


def test_the_curve_of_two_is_that_of_one(pair: list[Found], alone: Found) -> None:
    for ours, theirs in zip(pair[0].facts["whole"], alone.facts["whole"], strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        for name in ("accuracy", "validation_accuracy"):
            assert abs(ours[name] - theirs[name]) <= 1 / 7
        assert (ours["epsilon"], ours["learning_rate"]) == (
            theirs["epsilon"],
            theirs["learning_rate"],
        )


def test_ranks_that_drifted_apart_or_do_not_come_are_an_error(pair: list[Found]) -> None:
    for found in pair:
        assert "first in other" in found.facts["differing"]
        assert found.facts["equal"] is None
    assert "do not answer" in pair[0].facts["waited in vain"]


@given(rows=st.integers(1, 500), size=st.integers(1, 9))
def test_the_ranks_parts_are_the_batch(rows: int, size: int) -> None:
    ranks = [Ranks(rank, size) for rank in range(size)]
    assert [row for rank in ranks for row in range(rows)[rank.part(rows)]] == list(range(rows))
    assert sum(rank.share(rows) for rank in ranks) == pytest.approx(1.0)
    counts = [len(range(rows)[rank.part(rows)]) for rank in ranks]
    assert max(counts) - min(counts) <= 1


def test_a_sample_draws_the_same_whichever_rank_has_it() -> None:
    config, x = config_of(), torch.zeros(7, 1, 2, 2)
    at = ScheduledWeights.of(0.1, 0.0, 1.0, step=3)
    whole = at.uniform(config, x)
    parts = []
    for rank in range(3):
        part = Ranks(rank, 3).part(7)
        parts.append(at.within(part.start, 7).uniform(config, x[part]))
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique()) == whole.numel()
    assert not torch.equal(whole, at.uniform(config, x, purpose=1))


def test_alone_nothing_is_said() -> None:
    """No process group is there: any message would be an error."""
    x = torch.ones(2, requires_grad=True)
    assert ALONE.total(x) is x
    assert torch.equal(ALONE.table(x), x[None])
    assert ALONE.decided([1.5], x.device) == [1.5]
    ALONE.check_equal({"x": x}, x.device)
    ALONE.add_gradients([torch.nn.Parameter(x.detach())])


def test_a_batch_that_is_too_small_for_the_ranks_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        train(run_of("standard", validation_samples=0), samples(2), device=CPU, ranks=Ranks(1, 3))
    assert (caught.value.code, caught.value.field) == ("too_few_samples", "devices")
