"""Trying to break certificates: attacks inside every radius, brute force, hostile networks."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.kinds import Conv2d, Layer, Linear, ReLU, Reshape, Shift
from models.network import Network
from tests.extent import ALL, examples
from tests.workers.verification.certification import certify, evaluate, images
from tests.workers.verification.networks import dense_network, random_network
from workers.verification.attacks.pgd import attack, project
from workers.verification.attacks.replay import inside
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import SoundnessViolation, UnknownMethod
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.results import AttackSettings, SampleResults

#: By day one image each.
DEAR = ("alpha-crown-intermediate", "branch-and-bound", "milp")
#: Of ``random_network``. By day those on which no bound takes more than some seconds: on deep ones
#: (0 and 10 are such) alpha-CROWN takes a minute.
SEEDS = st.integers(0, 10**6) if ALL else st.sampled_from([2, 3, 1, 5, 7, 8])


@pytest.mark.parametrize("method", ["auto", *BOUNDS])
@given(
    seed=SEEDS,
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    scale=st.sampled_from([1.0, 1e4, 1e-4]),
)
@settings(max_examples=examples(2, night=25), deadline=None)
def test_no_attack_succeeds_inside_the_certified_radius(
    seed: int, norm: str, method: str, clip: bool, scale: float
) -> None:
    network = random_network(seed, scale=scale)
    x = images(seed, examples(1 if method in DEAR else 2, night=6))
    found = certify(
        network, x, ("1/1000", "1/50", "1/2"), norm=norm, method=method, clip=clip, attack=None
    )
    radius = np.minimum(found.radius, 30.0)
    rows = np.flatnonzero(radius > 0)
    if not rows.size:
        return
    broken, _ = attack(
        network,
        lambda batch: evaluate(network, batch),
        torch.from_numpy(x[rows]),
        torch.from_numpy(found.label[rows]),
        rows,
        torch.from_numpy(0.999 * radius[rows]),
        norm=norm,
        clip=clip,
        settings=AttackSettings(steps=20, restarts=3, seed=seed),
    )
    assert not bool(broken.any())


@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "linf"]), clip=st.booleans())
@settings(max_examples=examples(5, night=200), deadline=None)
def test_brute_force_on_two_inputs_finds_nothing_inside_the_radius(
    seed: int, norm: str, clip: bool
) -> None:
    network = dense_network([2, 8, 8, 3], seed)
    x = np.random.default_rng(seed).random((4, 2)).astype(np.float32)
    found = certify(network, x, ("1/20", "1/3"), norm=norm, clip=clip, attack=None)
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    if norm == "linf":
        circle /= np.abs(circle).max(1, keepdims=True)
    for row, radius in enumerate(np.minimum(found.radius, 10.0)):
        if radius <= 0:
            continue
        rings = np.concatenate([circle * radius * r for r in np.linspace(0, 1, 30)])
        points = torch.from_numpy((x[row] + rings).astype(np.float32))
        centre = torch.from_numpy(np.repeat(x[row : row + 1], len(points), 0))
        reach = torch.full((len(points),), float(radius), dtype=torch.float64)
        points = project(points, centre, reach, norm=norm, clip=clip)
        points = points[inside(points, centre, reach, norm=norm, clip=clip)]
        assert len(points) > 11_000
        assert bool(
            (
                torch.from_numpy(evaluate(network, points.numpy())).argmax(1) == found.label[row]
            ).all()
        )


@given(seed=SEEDS, norm=st.sampled_from(["l2", "linf"]))
@settings(max_examples=examples(3, night=80), deadline=None)
def test_nested_epsilons_are_monotone_and_bracketed(seed: int, norm: str) -> None:
    network = random_network(seed)
    x = images(seed)
    epsilons = ("1/2", "1/1000", "1/20", "1/200")
    found = certify(network, x, epsilons, norm=norm, attack=AttackSettings(steps=10, audit=1.0))
    order = np.argsort([float(Fraction(e)) for e in epsilons])
    certified, falsified = found.certified[:, order], found.falsified[:, order]
    assert not (certified[:, 1:] & ~certified[:, :-1]).any()
    assert not (falsified[:, :-1] & ~falsified[:, 1:]).any()
    assert not (certified & falsified).any()
    values = np.array([float(Fraction(e)) for e in epsilons])[order]
    assert (certified == (found.radius[:, None] >= values)).all()


@given(
    seed=SEEDS,
    method=st.sampled_from(["auto", *BOUNDS]),
)
@settings(max_examples=examples(2, night=60), deadline=None)
def test_batch_size_does_not_change_a_certificate(seed: int, method: str) -> None:
    network = random_network(seed)
    x = images(seed, examples(2, night=5))
    together = certify(network, x, ("1/100", "1/10"), method=method, attack=None)
    for row in range(len(x)):
        alone = certify(network, x[row : row + 1], ("1/100", "1/10"), method=method, attack=None)
        assert (alone.certified[0] == together.certified[row]).all()
        # Under auto a pool of samples pays for its searches together: some then go farther.
        if method != "auto":
            assert alone.radius[0] == pytest.approx(together.radius[row], rel=1e-6)


def test_a_near_isometric_stack_is_not_certified_beyond_its_gain() -> None:
    """Dirac kernels with a small smooth bump: power iteration stops at once and certifies a lie;
    the true gain over 12 layers is 1.14."""
    rows: list[tuple[str, Layer, tuple[str, ...]]] = []
    last = "input"
    for index in range(12):
        weight = torch.zeros(4, 4, 3, 3)
        for channel in range(4):
            weight[channel, channel, 1, 1] = 1.0
        weight[0, 0] += 0.012 / 9 * 9 * torch.ones(3, 3) / 9
        rows += [
            (f"c{index}", Conv2d(weight, torch.full((4,), 1.0), padding=1), (last,)),
            (f"r{index}", ReLU(), (f"c{index}",)),
        ]
        last = f"r{index}"
    rows.append(("f", Reshape(shape=(256,)), (last,)))
    mode = torch.zeros(1, 4, 8, 8)
    line = torch.sin(torch.arange(1, 9) * math.pi / 9)
    mode[0, 0] = line[:, None] * line[None, :]
    direction = (mode / mode.norm()).reshape(1, -1)
    body = Network((4, 8, 8), rows)
    x = np.full((4, 4, 8, 8), 0.5, dtype=np.float32)
    value = float((evaluate(body, x[:1]) @ direction.numpy().T)[0, 0])
    epsilon = 36 / 255
    # The boundary lies between the believed and the true gain.
    head = torch.cat([direction, torch.zeros(1, 256)])
    bias = torch.tensor([-value + 1.05 * epsilon, 0.0])
    network = Network((4, 8, 8), [*rows, ("o", Linear(head, bias), ("f",))])
    found = certify(network, x, ("36/255",), attack=AttackSettings(steps=50))
    assert found.falsified.all()
    assert not found.certified.any()
    for deterministic in (True, False):
        local = certify(
            network, x, ("36/255",), method="local-lip", deterministic=deterministic, attack=None
        )
        assert not local.certified.any()


def test_epsilon_1e20_certifies_only_what_is_constant() -> None:
    x = images(0)
    huge = ("100000000000000000000",)
    for clip in (True, False):
        assert not certify(random_network(1), x, huge, clip=clip).certified.any()
        constant = Network(
            (2, 8, 8),
            [
                ("f", Reshape(shape=(128,)), ("input",)),
                ("o", Linear(torch.zeros(3, 128), torch.tensor([0.0, 1.0, 0.5])), ("f",)),
            ],
        )
        found = certify(constant, x, huge, clip=clip)
        assert found.certified.all()
        assert np.isinf(found.radius).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layer", ["n0", "n1"])
def test_weights_that_are_not_finite_certify_nothing(value: float, layer: str) -> None:
    network = dense_network([4, 5, 3], 0)
    with torch.no_grad():
        target = network.layer("n0" if layer == "n0" else "n2")
        target.weight[0, 0] = value
    x = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    labels = np.zeros(5, dtype=np.int64)
    for method in ("auto", *BOUNDS):
        assert not certify(network, x, labels=labels, method=method).certified.any()


def test_ties_are_never_certified() -> None:
    """All logits equal everywhere: GloRo's tie handling certifies this (klasleino/gloro #9)."""
    equal = Linear(torch.ones(3, 4), torch.zeros(3))
    network = Network((4,), [("o", equal, ("input",))])
    x = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    for method in ("auto", *BOUNDS):
        found = certify(network, x, ("1/1000000",), method=method)
        assert not found.certified.any()
        assert (found.radius == 0).all()


@pytest.mark.parametrize("scale", [1e6, 1e-6, 1e4, 1e-4])
def test_scaled_weights_keep_the_certificates_that_float32_allows(scale: float) -> None:
    """A ReLU network is unchanged by moving a factor from one layer to the next."""
    plain = dense_network([6, 10, 3], 5)
    moved = dense_network([6, 10, 3], 5, scale=scale)
    with torch.no_grad():
        moved.layer("n0").bias.mul_(scale)
        moved.layer("n2").weight.div_(scale)
    x = np.random.default_rng(0).random((20, 6)).astype(np.float32)
    first, second = (certify(n, x, ("1/100",), attack=None) for n in (plain, moved))
    assert first.certified.any()
    assert (second.radius >= first.radius * (1 - 1e-2) - 1e-4).all(), "nothing is lost"
    # A search among slopes in float32 may end better at another scale.
    assert second.radius == pytest.approx(first.radius, rel=4e-2, abs=1e-4)


def test_dead_neurons_with_huge_outgoing_weights_cost_nothing() -> None:
    """Zero-width boxes under large weights: an inner solver that iterates is 95 % low here."""
    network = Network(
        (2,),
        [
            (
                "a",
                Linear(torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([0.0, 0, -50])),
                ("input",),
            ),
            ("r", ReLU(), ("a",)),
            ("o", Linear(torch.tensor([[1.0, 0, 1e6], [0, 1, -1e6]])), ("r",)),
        ],
    )
    x = np.array([[0.9, 0.1]], dtype=np.float32)
    found = certify(network, x, ("3/8",), method="bcp")
    assert found.certified.all()
    assert found.radius[0] == pytest.approx(0.4, rel=2e-3)


def test_a_backdoor_below_float32_resolution_is_not_certified_away() -> None:
    """A large offset swallows the input in float32: real margins lie ("Fooling a Complete Neural
    Network Verifier", ICLR 2021)."""
    big = 2.0**25
    network = Network(
        (1,),
        [
            ("a", Linear(torch.tensor([[1.0]]), torch.tensor([big])), ("input",)),
            ("s", Shift(torch.tensor([-big])), ("a",)),
            ("o", Linear(torch.tensor([[1.0], [0.0]]), torch.tensor([-0.25, 0.0])), ("s",)),
        ],
    )
    x = np.array([[0.9]], dtype=np.float32)
    # In real arithmetic class 0 wins by 0.65; in float32 the sum rounds to a multiple of 2 or 4.
    found = certify(network, x, ("1/1000",), labels=np.array([0]))
    assert not found.certified.any()


def radius_of_five(compiled: CompiledNetwork, x: Tensor, labels: Tensor, **_: object) -> Tensor:
    """A bound that lies."""
    return torch.full((len(x),), 5.0).double()


def test_a_certified_and_broken_sample_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit: with a bound that lies, the job must not succeed."""
    lie = replace(BOUNDS["lipschitz"], radius=radius_of_five)  # type: ignore[type-var]
    monkeypatch.setitem(BOUNDS, "lipschitz", lie)
    network, x = random_network(0), images(0)
    with pytest.raises(SoundnessViolation):
        certify(network, x, ("4",), method="lipschitz", attack=AttackSettings(audit=1.0))
    found = certify(network, x, ("4",), method="lipschitz", attack=AttackSettings(audit=0.0))
    assert found.certified.all()


def test_an_estimate_that_the_attack_breaks_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    lie = replace(BOUNDS["lipschitz"], radius=radius_of_five)  # type: ignore[type-var]
    monkeypatch.setitem(BOUNDS, "lipschitz", lie)
    found = certify(
        random_network(0),
        images(0),
        ("4", "5"),
        method="lipschitz",
        soundness="estimate",
        attack=AttackSettings(audit=1.0),
    )
    assert found.notes["overruled_estimates"] > 0
    assert not (found.certified & found.falsified).any()


def test_wrong_predictions_have_radius_zero_and_unknown_methods_are_refused() -> None:
    network, x = random_network(2), images(2)
    wrong = (evaluate(network, x).argmax(1) + 1) % 4
    found = certify(network, x, labels=wrong.astype(np.int64))
    assert (found.radius == 0).all()
    assert found.method == ["misclassified"] * len(x)
    with pytest.raises(UnknownMethod):
        certify(network, x, method="no-such")


def test_results_survive_the_disk(tmp_path: Any) -> None:
    found = certify(random_network(4), images(4), ("1/100", "3"))
    found.save(tmp_path / "shard.npz")
    again = SampleResults.load(tmp_path / "shard.npz")
    assert (again.certified == found.certified).all()
    assert again.method == found.method
    assert again.counterexamples.keys() == found.counterexamples.keys()


def test_a_network_too_large_for_a_bound_falls_back_to_the_next_cheaper_one() -> None:
    network, x = random_network(5), images(5)
    full = certify(network, x, ("1/100",), attack=None)
    compiled = CompiledNetwork.compile(network, norms=False)
    room = (BOUNDS["bcp"].memory(compiled) + BOUNDS["local-lip"].memory(compiled)) / 2
    small = certify(network, x, ("1/100",), attack=None, memory=room)
    assert set(small.notes["gave_up"]) == {
        "local-lip",
        "crown-ball",
        "crown",
        "alpha-crown",
        "alpha-crown-intermediate",
    }
    cheap = {"lipschitz", "ibp", "bcp", "undecided"}
    assert set(small.method) <= cheap
    assert not (small.certified & ~full.certified).any()
    assert not certify(network, x, ("1/100",), attack=None, memory=1.0).certified.any()


@pytest.mark.parametrize("method", ["auto", "bcp", "crown"])
def test_shards_of_several_blocks_are_certified_like_single_ones(method: str) -> None:
    network = dense_network([6, 10, 3], 5)
    x = np.random.default_rng(0).random((150, 6)).astype(np.float32)
    together = certify(network, x, ("1/100", "1/10"), method=method, attack=None)
    last = certify(network, x[140:], ("1/100", "1/10"), method=method, attack=None)
    assert together.certified.any()
    assert (together.certified[140:] == last.certified).all()
