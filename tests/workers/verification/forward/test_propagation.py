"""Ball and box hold every float32 evaluation of every input of the region, whatever the network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.network import Network
from tests.extent import examples
from tests.workers.verification.networks import adversarial_float32, random_network
from tests.workers.verification.regions import points_of
from workers.verification.forward.margins import logit_enclosure, margin_lower_bounds
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    epsilon=st.sampled_from([0.0, 1e-9, 1e-3, 0.05, 0.5, 3.0]),
    scale=st.sampled_from([1.0, 1e-4, 1e4, 1e-6, 1e6]),
    parts=st.sampled_from([(True, True), (True, False), (False, True)]),
)
@settings(max_examples=examples(60), deadline=None)
def test_every_float32_evaluation_lies_in_ball_box_and_margins(
    dtype: torch.dtype,
    seed: int,
    norm: str,
    clip: bool,
    epsilon: float,
    scale: float,
    parts: tuple[bool, bool],
) -> None:
    network = random_network(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 8, 8, generator=generator)
    reach = torch.tensor([epsilon, 2 * epsilon, epsilon / 3], dtype=torch.float64)
    region = Region(x, reach, norm, clip)
    compiled = CompiledNetwork.compile(network)
    rounding = Rounding.sound(dtype)
    with torch.no_grad():
        state = propagate(
            compiled, region, rounding=rounding, dtype=dtype, ball=parts[0], box=parts[1]
        )
        # float32 may give up (not valid) on such scales; float64 may not.
        assert bool(state.valid.all()) or dtype == torch.float32
        labels = torch.tensor([0, 1, 2])
        lowest = margin_lower_bounds(compiled.head, state, labels, rounding)
        logits, room = logit_enclosure(compiled.head, state, rounding)
        for point in points_of(region, generator, 4):
            evaluations = [adversarial_float32(network, point, generator) for _ in range(2)]
            evaluations.append(network(point).double())
            for value in evaluations:
                margins = value.gather(1, labels[:, None]) - value
                margins = margins.scatter(1, labels[:, None], torch.inf)
                assert bool((margins >= lowest).all())
                outside = ((value - logits).abs() > room) & state.valid[:, None]
                assert not bool(outside.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hidden_values_lie_in_ball_and_box(dtype: torch.dtype) -> None:
    """The same one level deeper: the enclosure before the head, on networks cut before it."""
    for seed in range(20):
        network = random_network(seed)
        body = (
            Network(
                network.input_shape,
                [(n.name, network.layer(n.name), n.inputs) for n in network.nodes[:-2]],
            )
            if len(network.nodes[-3].shape) == 1
            else network
        )
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(2, 2, 8, 8, generator=generator)
        region = Region(x, torch.tensor([0.3, 0.01], dtype=torch.float64), "l2", True)
        compiled = CompiledNetwork.compile(body)
        with torch.no_grad():
            rounding = Rounding.sound(dtype)
            state = propagate(compiled, region, rounding=rounding, dtype=dtype)
            if compiled.head.terms:
                continue
            assert state.lower is not None
            assert state.upper is not None
            for point in points_of(region, generator, 6):
                value = adversarial_float32(body, point, generator)
                assert bool((value >= state.lower.double()).all())
                assert bool((value <= state.upper.double()).all())
                distance = (value - state.centre.double()).flatten(1).norm(dim=1)
                assert bool((distance <= state.radius).all())


def test_ball_and_box_together_are_never_looser_than_either() -> None:
    for seed in range(15):
        network = random_network(seed)
        x = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
        region = Region(x, torch.full((2,), 0.1, dtype=torch.float64), "l2", True)
        compiled = CompiledNetwork.compile(network)
        rounding, labels = Rounding.sound(torch.float64), torch.tensor([0, 1])
        with torch.no_grad():
            bounds = [
                margin_lower_bounds(
                    compiled.head,
                    propagate(
                        compiled, region, rounding=rounding, dtype=torch.float64, ball=ball, box=box
                    ),
                    labels,
                    rounding,
                )
                for ball, box in ((True, True), (True, False), (False, True))
            ]
        # Pairs are refined only as far as a decision needs, so compare decisions.
        decided = [(bound > 0).all(1) for bound in bounds]
        assert bool((decided[0] >= decided[1]).all())
        assert bool((decided[0] >= decided[2]).all())


def test_what_is_not_finite_proves_nothing() -> None:
    network = random_network(3)
    x = torch.rand(1, 2, 8, 8)
    compiled = CompiledNetwork.compile(network)
    rounding = Rounding.sound(torch.float64)
    labels = torch.tensor([0])
    for value in (float("nan"), float("inf")):
        broken = x.clone()
        broken[0, 0, 0, 0] = value
        region = Region(broken, torch.tensor([0.1], dtype=torch.float64), "l2", False)
        with torch.no_grad():
            state = propagate(compiled, region, rounding=rounding, dtype=torch.float64)
            bounds = margin_lower_bounds(compiled.head, state, labels, rounding)
        assert not bool((bounds[:, 1:] > 0).any())


def test_float32_overflow_inside_the_region_proves_nothing() -> None:
    """1e30 * 1e9 overflows float32 while the margin is fine in real arithmetic."""
    from models.layers.kinds import Linear, Shift

    network = Network(
        (1,),
        [
            ("a", Linear(torch.tensor([[1e30]])), ("input",)),
            ("b", Linear(torch.tensor([[1e9]])), ("a",)),
            ("c", Linear(torch.tensor([[1e-38], [0.0]])), ("b",)),
            ("d", Shift(torch.tensor([1.0, 0.0])), ("c",)),
        ],
    )
    compiled = CompiledNetwork.compile(network)
    region = Region(torch.tensor([[0.5]]), torch.tensor([0.1], dtype=torch.float64), "l2", True)
    for dtype in (torch.float32, torch.float64):
        rounding = Rounding.sound(dtype)
        with torch.no_grad():
            state = propagate(compiled, region, rounding=rounding, dtype=dtype)
            bounds = margin_lower_bounds(compiled.head, state, torch.tensor([0]), rounding)
        assert float(bounds[0, 1]) == -torch.inf
