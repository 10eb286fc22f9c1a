"""Bounds and attack look at the clock between pieces of work: time that is over ends them at once.

The clocks here count looks instead of seconds, so nothing hangs on the machine's speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.layers.kinds import ReLU
from models.network import Network
from models.onnx.importer import import_onnx
from tests.extent import part
from tests.workers.verification.certification import evaluate
from tests.workers.verification.networks import Builder, random_network
from workers.verification import clock as clock_module
from workers.verification.block_sizes import BLOCK_BYTES
from workers.verification.cascade import progress as progress_module
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.clock import Clock, OutOfTime
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.per_sample import costliest, forward_cost
from workers.verification.results import AttackSettings, CertificationRequest, SampleResults

SAMPLES = 3
EPSILONS = (Fraction(1, 100), Fraction(1, 25))
METHODS = ["auto", *BOUNDS]


class Looks:
    """A clock whose time is the number of looks at it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> float:
        self.count += 1
        return float(self.count)


def certify(
    network: Network,
    method: str,
    *,
    cache: Path | None = None,
    radius: bool = False,
    deterministic: bool = True,
    deadline: float | None = None,
    now: Callable[[], float] | None = None,
    progress: Callable[[int | None, str], None] = lambda done, message: None,
) -> SampleResults:
    x = np.random.default_rng(8).random((SAMPLES, *network.input_shape)).astype(np.float32)
    logits = evaluate(network, x)
    return certify_samples(
        network,
        x,
        logits.argmax(1),
        np.arange(SAMPLES),
        CertificationRequest(
            "linf",
            EPSILONS,
            method,
            deterministic=deterministic,
            attack=AttackSettings(steps=3, restarts=2) if method == "auto" else None,
            radius=radius,
        ),
        deployed=lambda batch: evaluate(network, batch),
        deployed_logits=logits,
        device=torch.device("cpu"),
        cache_dir=cache,
        deadline=deadline,
        now=now or Looks(),
        progress=progress,
    )


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where operator norms are kept: each network's are computed once."""
    return tmp_path_factory.mktemp("norms")


def small_network() -> Network:
    """Two convolutions and a dense layer: every kind of piece, few of each."""
    b = Builder((1, 6, 6), 5)
    b.conv(3, 3, padding=1)
    b.add(ReLU())
    b.conv(4, 3, stride=2)
    b.add(ReLU())
    b.flatten()
    b.linear(10)
    b.add(ReLU())
    b.linear(3)
    return b.build()


def same(one: SampleResults, other: SampleResults) -> bool:
    return (
        np.array_equal(one.certified, other.certified)
        and np.array_equal(one.falsified, other.falsified)
        and np.array_equal(one.radius, other.radius, equal_nan=True)
        and one.decided_by == other.decided_by
    )


@pytest.mark.parametrize("method", METHODS)
def test_whenever_time_runs_out_what_is_proved_stands_and_the_rest_is_undecided(
    method: str, norms: Path
) -> None:
    network = small_network()
    radius = method in ("auto", "bcp", "local-lip")
    whole = certify(network, method, cache=norms, radius=radius)
    looks = Looks()
    timed = certify(network, method, cache=norms, radius=radius, deadline=1e9, now=looks)
    assert same(whole, timed)
    assert not whole.notes["budget_spent"]
    assert not timed.notes["budget_spent"]
    decided = []
    for after in sorted({0, 1, 2, 5, 20, 100, looks.count // 2, looks.count - 2}):
        ended = Looks()
        part = certify(network, method, cache=norms, radius=radius, deadline=after, now=ended)
        assert not (part.certified & ~whole.certified).any()
        # An attack that is cut short answers with what it has met so far.
        assert not (part.falsified & whole.certified).any()
        if radius:
            assert bool((part.radius <= whole.radius).all())
        assert part.notes["budget_spent"] or same(part, whole)
        # A handful of looks later everything has ended, whatever was still to do.
        assert ended.count <= after + 40
        decided.append(int((part.certified | part.falsified).sum()))
    assert decided[0] == 0
    assert decided == sorted(decided)


def wide_network() -> Network:
    """Convolutions of some 16,000 numbers, and a dense layer: many rows in every backward pass."""
    b = Builder((2, 12, 12), 5)
    b.conv(16, 3, padding=1)
    b.add(ReLU())
    b.conv(16, 3, padding=1)
    b.add(ReLU())
    b.flatten()
    b.linear(40)
    b.add(ReLU())
    b.linear(4)
    return b.build()


@pytest.mark.parametrize("method", part(METHODS, *range(0, len(METHODS), 2)))
def test_between_two_looks_there_is_at_most_one_row_block(
    method: str, norms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = wide_network()
    compiled = CompiledNetwork.compile(network, cache_dir=norms)
    # Eight rows at a time; a block of samples in a forward pass is as large as memory makes it.
    monkeypatch.setitem(clock_module.PIECE, "cpu", 8.0 * costliest(compiled))
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 2**14)
    pieces: list[int] = []
    with FlopCounterMode(display=False) as flops:

        def tell(done: int | None, message: str) -> None:
            pieces.append(flops.get_total_flops())

        certify(network, method, cache=norms, deadline=150.0, progress=tell)
        pieces.append(flops.get_total_flops())
    largest = max(after - before for before, after in itertools.pairwise(pieces))
    # A row block there and back, in flops: two per multiplication; the deployed network beside it.
    assert largest <= 2 * 3 * 8 * forward_cost(compiled), largest / forward_cost(compiled)
    assert len(pieces) > 10


@pytest.mark.parametrize("method", part(METHODS, *range(1, len(METHODS), 2)))
def test_who_raises_from_the_progress_ends_every_bound_at_once(method: str, norms: Path) -> None:
    class Cancelled(BaseException):
        pass

    network = small_network()
    seen: list[int | None] = []
    CompiledNetwork.compile(network, cache_dir=norms)
    certify(network, method, cache=norms, progress=lambda done, message: seen.append(done))
    for last in {1, 2, len(seen) // 3, len(seen) // 2, len(seen) - 1}:
        told: list[int | None] = []

        def tell(
            done: int | None, message: str, told: list[int | None] = told, last: int = last
        ) -> None:
            told.append(done)
            if len(told) >= last:
                raise Cancelled

        with pytest.raises(Cancelled):
            certify(network, method, cache=norms, progress=tell)
        assert len(told) == last


def test_random_starts_end_between_steps_too(norms: Path) -> None:
    network = random_network(3)
    whole = certify(network, "local-lip", cache=norms, radius=True, deterministic=False)
    looks = Looks()
    certify(
        network,
        "local-lip",
        cache=norms,
        radius=True,
        deterministic=False,
        deadline=1e9,
        now=looks,
    )
    for after in range(0, looks.count, max(1, looks.count // 3)):
        part = certify(
            network,
            "local-lip",
            cache=norms,
            radius=True,
            deterministic=False,
            deadline=after,
            now=Looks(),
        )
        assert not (part.certified & ~whole.certified).any()
        assert bool((part.radius <= whole.radius).all())


def test_norms_that_time_cut_short_go_on_where_they_were(tmp_path: Path) -> None:
    network = wide_network()
    looks = Looks()
    whole = CompiledNetwork.compile(network, clock=Clock(1e9, now=looks))
    steps = [step.norms for step in whole.steps]
    tries = 0
    while True:
        tries += 1
        try:
            # A bit more each time: one norm cannot be had in parts.
            made = CompiledNetwork.compile(
                network, cache_dir=tmp_path, clock=Clock(looks.count * 0.8, now=Looks())
            )
            break
        except OutOfTime:
            assert tries < 3
    assert [step.norms for step in made.steps] == steps
    assert tries > 1


def test_no_time_for_norms_leaves_everything_undecided() -> None:
    result = certify(random_network(8), "auto", deadline=0.0, radius=True)
    assert result.notes["budget_spent"]
    assert result.method == ["undecided"] * SAMPLES
    assert not result.certified.any()
    assert not result.radius.any()


def test_progress_names_the_bound_and_the_open_samples_and_only_grows(
    norms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "EVERY_S", 0.0)
    said: list[tuple[int | None, str]] = []
    result = certify(
        random_network(8),
        "crown",
        cache=norms,
        progress=lambda done, message: said.append((done, message)),
    )
    messages = [message for _, message in said]
    assert f"crown at 1/100: {SAMPLES} of {SAMPLES} samples open, 0 tried" in messages
    assert any(message.startswith("crown at 1/25: ") for message in messages)
    # What comes before the first bound is no sample's time.
    assert {count is None for count, message in said if message == "operator norms"} == {True}
    done = [count for count, _ in said if count is not None]
    assert [count for count, _ in said[-len(done) :]] == done == sorted(done)
    assert done[-1] == SAMPLES
    # Samples that are certified at both count before the end.
    both = int(result.certified.all(1).sum())
    assert both > 0
    assert both in done


def test_the_handed_network_stops_within_a_few_layers(shared: Path) -> None:
    folder = shared / "failing" / "time-budget"
    if not folder.is_dir():
        pytest.skip("the handed case is not there")
    network = import_onnx(folder / "model.onnx")
    with np.load(folder / "data.npz") as data:
        x = np.ascontiguousarray(data["x"].transpose(0, 3, 1, 2), dtype=np.float32)
    x = x / np.float32(255) if x.max() > 1 else x
    logits = evaluate(network, x)
    looks = Looks()
    result = certify_samples(
        network,
        x,
        logits.argmax(1),
        np.arange(len(x)),
        CertificationRequest("linf", (Fraction(8, 255),), "crown", attack=None, radius=False),
        deployed=lambda batch: evaluate(network, batch),
        deployed_logits=logits,
        device=torch.device("cpu"),
        deadline=300.0,
        now=looks,
    )
    assert result.notes["budget_spent"]
    assert set(result.method) == {"undecided"}
    assert looks.count < 320


def test_a_large_row_is_a_piece_of_its_own() -> None:
    cpu = torch.device("cpu")
    assert clock_module.rows_per_piece(2.0**40, cpu) == 1
    assert clock_module.rows_per_piece(2.0**20, cpu) == 2**12
