"""A file that differs from the certified graph anywhere that is looked at ends the job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.layers.activations import ReLU
from models.layers.affine import Linear
from models.layers.joins import Add
from models.network import Network
from tests.workers.verification.certification import evaluate
from tests.workers.verification.networks import Builder, dense_network, random_network
from workers.verification.cascade import parity
from workers.verification.cascade.parity import (
    EXAMINED,
    FEWEST,
    MAX_INPUTS,
    MIN_INPUTS,
    DeploymentMismatch,
    _compare,
    _enclosed,
    check_parity,
    extra_inputs,
)
from workers.verification.cascade.parity_inputs import (
    BATCH_SIZES,
    RANDOM,
    batches,
    coordinate_changes,
    random_inputs,
)
from workers.verification.clock import UNLIMITED
from workers.verification.graph.compiled_network import CompiledNetwork

Samples = NDArray[np.float32]
FEATURES = 40
NETWORK = dense_network([FEATURES, 8, 3], 0)
SAMPLES = np.random.default_rng(1).uniform(0.2, 0.8, (5, FEATURES)).astype(np.float32)


def check(
    deviates: Callable[[Samples], NDArray[np.bool_]] = lambda x: np.zeros(len(x), dtype=np.bool_),
    *,
    network: Network = NETWORK,
    x: Samples = SAMPLES,
    **options: Any,
) -> dict[str, Any]:
    """The check on a file that computes the network, but something else where it ``deviates``."""

    def deployed(rows: Samples) -> Samples:
        logits = evaluate(network, rows)
        return np.where(deviates(rows)[:, None], logits[:, ::-1] + 0.25, logits)

    options.setdefault("clip", True)
    compiled = CompiledNetwork.compile(network, norms=False)
    return check_parity(compiled, x, deployed(x), deployed, **options)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_network_agrees_with_itself_on_every_kind_of_input(seed: int, clip: bool) -> None:
    x = np.random.default_rng(seed).random((3, 2, 8, 8)).astype(np.float32)
    facts = check(network=random_network(seed), x=x, clip=clip, seed=seed)
    assert facts["inputs"] == {
        "batches": 26,
        "samples": 3,
        "random": MIN_INPUTS,
        "coordinates": MIN_INPUTS,
    }
    assert 0 <= facts["largest_share"] <= 1
    assert facts["max_difference"] <= facts["budget"] / max(facts["largest_share"], 1e-9)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_what_differs_in_batches_of_one_size_alone_is_found(size: int) -> None:
    def mixes(x: Samples) -> NDArray[np.bool_]:
        return (np.arange(len(x)) == size - 1) & (len(x) == size)

    with pytest.raises(DeploymentMismatch, match=f"row {size - 1} of a batch of {size} .*alone"):
        check(mixes)
    assert check(mixes, batched=False)["inputs"]["batches"] == 2


@pytest.mark.parametrize("place", [0, 17, FEATURES - 1])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_pixel_at_one_end_of_its_range_is_found(place: int, value: float) -> None:
    with pytest.raises(DeploymentMismatch, match=r"random input|coordinate"):
        check(lambda x: x[:, place] == value)


@pytest.mark.parametrize("place", range(0, FEATURES, 7))
def test_a_pixel_that_matters_only_beside_a_whole_sample_is_found(place: int) -> None:
    """The rest of the image must be that of a sample: no random input can show it."""

    def deviates(x: Samples) -> NDArray[np.bool_]:
        same = (x[:, None] == SAMPLES[None]).sum(2) == FEATURES - 1
        return same.any(1) & ((x[:, place] == 0) | (x[:, place] == 1))

    with pytest.raises(DeploymentMismatch, match=f"with coordinate {place} set to"):
        check(deviates)


@pytest.mark.parametrize(
    ("where", "named"),
    [
        (lambda x: (x < 1e-5).all(1), r"\((tiny|scaled noise|constant)\)"),
        (lambda x: (x < 1e-38).any(1) & (x > 0).all(1), r"\(tiny\)"),
        (lambda x: ((x == 0) | (x == 1)).all(1), r"\((corner|constant)\)"),
        (lambda x: (x == x[:, :1]).all(1), r"\(constant\)"),
        (lambda x: x.mean(1) > 0.9, r"\(constant\)"),
        (lambda x: ((x > 0.93) & (x < 1)).mean(1) > 0.3, "near the edges"),
    ],
)
def test_what_differs_on_unusual_inputs_alone_is_found(
    where: Callable[[Samples], NDArray[np.bool_]], named: str
) -> None:
    with pytest.raises(DeploymentMismatch, match=named):
        check(where)


@pytest.mark.parametrize("sign", [-1, 1])
def test_without_clip_inputs_far_beyond_the_data_are_compared(sign: int) -> None:
    def far(x: Samples) -> NDArray[np.bool_]:
        return (sign * x > 50.0).any(1)

    with pytest.raises(DeploymentMismatch, match=r"random input|coordinate"):
        check(far, clip=False)
    check(far)


def test_a_sample_that_differs_is_named() -> None:
    with pytest.raises(DeploymentMismatch, match="on sample 3,"):
        check(lambda x: (x == SAMPLES[3]).all(1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_a_mismatch(wrong: float) -> None:
    logits = evaluate(NETWORK, SAMPLES)
    logits[2, 1] = wrong
    compiled = CompiledNetwork.compile(NETWORK, norms=False)
    with pytest.raises(DeploymentMismatch, match="on sample 2,"):
        check_parity(compiled, SAMPLES, logits, lambda x: evaluate(NETWORK, x), clip=True)


def test_the_same_seed_compares_the_same_inputs() -> None:
    assert check(seed=3) == check(seed=3)
    assert check(seed=3) != check(seed=4)


@pytest.mark.parametrize("clip", [True, False])
def test_inputs_are_as_promised(clip: bool) -> None:
    rng = np.random.default_rng(0)
    drawn = random_inputs(SAMPLES, 160, rng, clip=clip)
    for kind in RANDOM:
        assert sum(f"({kind})" in name for name in drawn.names) == 160 // len(RANDOM)
    assert ((drawn.x != 0) & (abs(drawn.x) < 2.0**-126)).any()
    assert len(np.unique(drawn.x)) > 1000
    assert np.isfinite(drawn.x).all()
    changed = coordinate_changes(SAMPLES, 160, rng, clip=clip)
    sources = [int(name.split()[1]) for name in changed.names]
    differs = changed.x != SAMPLES[sources]
    assert (differs.sum(1) == 1).all()
    assert differs.any(0).all()
    assert set(sources) == set(range(len(SAMPLES)))
    for x in (drawn.x, changed.x):
        assert (x.min() >= 0 and x.max() <= 1) == clip
    # However few samples there are, the rows of a batch are all different.
    for count in (1, 5):
        made = batches(SAMPLES[:count], rng, clip=clip)
        assert [len(batch.x) for batch in made] == [n for n in BATCH_SIZES for _ in range(2)]
        for batch in made:
            assert len(np.unique(batch.x, axis=0)) == len(batch.x)


def test_coordinates_of_huge_samples_are_changed_without_overflow() -> None:
    samples = np.array([[3e38, -3e38]], np.float32)
    with np.errstate(over="raise"):
        changed = coordinate_changes(samples, 64, np.random.default_rng(0), clip=False)
    assert np.isfinite(changed.x).all()
    assert ((changed.x != samples).sum(1) == 1).all()


def test_numbers_of_extra_inputs_grow_with_the_samples_and_shrink_with_the_cost() -> None:
    small = CompiledNetwork.compile(NETWORK, norms=False)
    assert [extra_inputs(small, n) for n in (1, 200, 10**6)] == [MIN_INPUTS, 400, MAX_INPUTS]
    large = Builder((3, 64, 64), 0)
    large.conv(64, 3, padding=1)
    large.conv(64, 3, padding=1)
    large.flatten()
    large.linear(2)
    compiled = CompiledNetwork.compile(large.build(), norms=False)
    assert [extra_inputs(compiled, n) for n in (1, 10, 32, 500)] == [
        FEWEST,
        20,
        MIN_INPUTS,
        MIN_INPUTS,
    ]
    assert 2 * len(RANDOM) <= FEWEST


@pytest.mark.parametrize("scale", [1.0, 2.0**90])
@pytest.mark.parametrize("seed", range(4))
def test_the_heads_rounding_alone_lets_nothing_through_that_the_enclosure_refuses(
    seed: int, scale: float
) -> None:
    """Logits off by anything around both budgets: what is taken lies inside the enclosure."""
    network = random_network(seed)
    with torch.no_grad():
        next(network.parameters()).mul_(scale)
    compiled = CompiledNetwork.compile(network, norms=False)
    rng = np.random.default_rng(seed)
    x = rng.random((40, *network.input_shape)).astype(np.float32)
    whole = _enclosed(compiled, x, evaluate(network, x), UNLIMITED)
    exponents = rng.uniform(-8, 2, (40, 1))
    off = evaluate(network, x) + (whole[1].numpy() * 10.0**exponents).astype(np.float32)
    exact = _enclosed(compiled, x, off, UNLIMITED)
    found = _compare(compiled, x, off)
    inside = exact[2] <= 1
    assert int(inside.sum()) > 0
    assert ((found.share <= 1) == inside).all()
    # Rows are computed in other blocks: their float64 sums differ in the last bits.
    assert (found.share >= exact[2] * (1 - 1e-9)).all()
    assert (found.examined | (found.difference <= found.budget).all(1)).all()


def test_an_enclosure_is_computed_for_few_of_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 0

    def counted(compiled: CompiledNetwork, x: Any, *more: Any) -> Any:
        nonlocal rows
        rows += len(x)
        return enclosed(compiled, x, *more)

    enclosed = parity._enclosed
    monkeypatch.setattr(parity, "_enclosed", counted)
    network = random_network(3)
    x = np.random.default_rng(0).random((200, *network.input_shape)).astype(np.float32)
    compiled = CompiledNetwork.compile(network, norms=False)
    facts = check_parity(
        compiled, x, evaluate(network, x), lambda x: evaluate(network, x), clip=True
    )
    assert facts["inputs"]["samples"] == 200
    assert EXAMINED <= rows <= 20


def test_the_box_alone_needs_no_norms() -> None:
    """Infinite norms give the same budget as proved ones."""
    network = random_network(3)
    x = np.random.default_rng(0).random((4, 2, 8, 8)).astype(np.float32)
    given = evaluate(network, x)
    found = [
        check_parity(
            CompiledNetwork.compile(network, norms=norms),
            x,
            given,
            lambda x: evaluate(network, x),
            clip=True,
        )
        for norms in (True, False)
    ]
    assert found[0] == found[1]
    assert torch.isfinite(torch.tensor(found[0]["budget"]))
    assert found[0]["unchecked"] == 0


def _deep_network(blocks: int) -> Network:
    """Residual blocks of two convolutions: the budget of its logits is a multiple of them."""
    builder = Builder((3, 8, 8), 5)
    builder.conv(8, 3, padding=1)
    for _ in range(blocks):
        builder.add(ReLU())
        before = builder.last
        builder.conv(8, 3, padding=1)
        builder.add(ReLU())
        builder.conv(8, 3, padding=1)
        builder.add(Add(), builder.last, before)
    builder.flatten()
    builder.linear(10)
    return builder.build()


def test_a_loose_budget_lets_no_other_network_pass() -> None:
    network = _deep_network(9)
    x = np.random.default_rng(0).random((3, *network.input_shape)).astype(np.float32)
    whole = _enclosed(
        CompiledNetwork.compile(network, norms=False), x, evaluate(network, x), UNLIMITED
    )
    size = float(np.abs(evaluate(network, x)).max())
    assert float(whole[1].min()) > size, "the budget alone would let anything pass"
    assert check(network=network, x=x)["largest_share"] <= 1
    shift = np.float32(0.05 * size)

    def deployed(rows: Samples) -> Samples:
        return evaluate(network, rows) + shift

    compiled = CompiledNetwork.compile(network, norms=False)
    with pytest.raises(DeploymentMismatch, match="does not move them that far"):
        check_parity(compiled, x, deployed(x), deployed, clip=True)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
def test_sums_that_cancel_explain_differences(size: float) -> None:
    """Every logit is rounding of ``size``: another order of summation gives quite another one."""
    weight = torch.tensor([[size, -size, 1.0], [size, -size, -1.0]]).repeat(1, 20)
    builder = Builder((60,), 0)
    builder.add(Linear(torch.eye(60), torch.zeros(60)))
    builder.add(ReLU())
    builder.add(Linear(weight, torch.zeros(2)))
    network = builder.build()
    backwards = Linear(weight.flip(1).contiguous(), torch.zeros(2))

    def deployed(rows: Samples) -> Samples:
        with torch.no_grad():
            return backwards(torch.from_numpy(rows[:, ::-1].copy())).numpy()

    x = np.random.default_rng(0).random((4, 20, 1)).astype(np.float32)
    x = np.concatenate([x, x, x], axis=2).reshape(4, 60)
    compiled = CompiledNetwork.compile(network, norms=False)
    facts = check_parity(compiled, x, deployed(x), deployed, clip=True)
    assert facts["largest_share"] <= 1


@pytest.mark.parametrize("apart", [True, False])
def test_where_float32_underflows_the_message_says_so(apart: bool) -> None:
    """Two layers of 1e-22 make numbers of 1e-44, of which float32 keeps three bits."""
    small = [Linear(torch.eye(6) * 1e-22, torch.zeros(6)) for _ in range(2)]
    builder = Builder((6,), 0)
    builder.add(small[0])
    builder.add(small[1])
    if apart:
        builder.add(ReLU())
    builder.add(Linear(torch.eye(6) * 1e30, torch.zeros(6)))
    if apart:
        builder.add(ReLU())
    builder.add(Linear(torch.eye(6) * 1e14, torch.zeros(6)))
    network = builder.build()
    x = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    with pytest.raises(DeploymentMismatch, match="float32 underflows") as caught:
        check(network=network, x=x)
    assert "below 1e-36" in caught.value.hint


def test_a_sample_of_denormal_numbers_whose_logits_underflow_is_compared() -> None:
    """Alone in its batch: products of 1e-42 and 1e-7 are 0 in float32, and the logits with them."""
    builder = Builder((6,), 0)
    builder.add(Linear(torch.eye(6) * 1e-7, torch.zeros(6)))
    network = builder.build()
    x = np.full((1, 6), 1e-42, np.float32)
    assert not evaluate(network, x).any()
    facts = check(network=network, x=x)
    assert 0 < facts["max_difference"] < 1e-48
