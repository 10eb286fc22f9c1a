"""Ranges of valid inputs other than pixels: what is proved holds in them, and nowhere less."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.layers.kinds import ReLU
from models.network import Network
from tests.workers.verification.certification import certify, evaluate
from tests.workers.verification.networks import Builder
from workers.verification.attacks.replay import inside
from workers.verification.cascade.run import PixelsOutOfRange
from workers.verification.input_range import PIXELS, InputRange, in_range
from workers.verification.region import Region, largest_distance

#: Two features in units of their own.
UNITS = InputRange.between([-3.0, 10.0], [5.0, 11.5])


def network(seed: int) -> Network:
    builder = Builder((2,), seed)
    for width in (8, 8, 3):
        builder.linear(width)
        if width != 3:
            builder.add(ReLU())
    return builder.build()


@given(st.floats(-1e30, 1e30), st.floats(0, 1e30))
def test_ends_are_rounded_outward_to_float32(low: float, width: float) -> None:
    limits = InputRange.between([low], [low + width])
    assert limits.low[0] <= low
    assert limits.high[0] >= low + width
    for end in (*limits.low, *limits.high):
        assert float(np.float32(end)) == end
    kept = np.array([[low]], np.float32)
    assert in_range(kept, limits)


def test_pixels_are_what_true_means() -> None:
    x = torch.rand(4, 1, 3, 3)
    epsilon = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        ours, theirs = (Region(x, epsilon, "l2", clip).box(dtype) for clip in (True, PIXELS))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert largest_distance((3,), "linf", PIXELS) == 1.0
    assert largest_distance((3,), "l2", PIXELS) >= math.sqrt(3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_nothing_that_is_valid_within_a_certified_radius_is_answered_wrongly(norm: Any) -> None:
    """Brute force on two features of unlike units, whose ranges cut the ball."""
    rng = np.random.default_rng(0)
    low, high = np.array(UNITS.low), np.array(UNITS.high)
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, 160),) * 2), -1).reshape(-1, 2)
    valid = (low + grid * (high - low)).astype(np.float32)
    for seed in range(2):
        x = (low + rng.random((8, 2)) * (high - low)).astype(np.float32)
        net = network(seed)
        # No class wins everywhere.
        middle = torch.from_numpy(np.median(evaluate(net, valid), 0))
        with torch.no_grad():
            net.layer(net.nodes[-1].name).bias.sub_(middle)
        found = certify(net, x, ("1/2", "2"), norm=norm, clip=UNITS)
        answers = evaluate(net, valid).argmax(1)
        assert np.isfinite(found.radius).any()
        for row in range(len(x)):
            move = np.abs(valid.astype(np.float64) - x[row])
            away = move.max(1) if norm == "linf" else np.hypot(*move.T)
            wrong = away[answers != found.label[row]].min(initial=np.inf)
            assert found.radius[row] <= wrong
            for place, epsilon in enumerate((0.5, 2.0)):
                if found.certified[row, place]:
                    assert wrong > epsilon
        for key, point in found.counterexamples.items():
            row, place = (int(part) for part in key.split(","))
            assert in_range(point[None], UNITS)
            epsilon = torch.tensor([(0.5, 2.0)[place]], dtype=torch.float64)
            points = (torch.from_numpy(array[None]) for array in (point, x[row]))
            assert bool(inside(*points, epsilon, norm=norm, clip=UNITS))
            assert evaluate(net, point[None]).argmax() != found.label[row]


def test_another_unit_of_the_inputs_is_another_unit_of_radii_and_nothing_else() -> None:
    """A power of two, so that every rounding is the same."""
    x = np.random.default_rng(1).random((6, 2)).astype(np.float32)
    net = network(3)
    scaled = copy.deepcopy(net)
    first = scaled.layer(scaled.nodes[0].name)
    with torch.no_grad():
        first.weight.mul_(0.25)
    ours = certify(net, x, ("1/10",), clip=True)
    theirs = certify(scaled, 4 * x, ("4/10",), clip=InputRange.between([0.0], [4.0]))
    assert (ours.certified == theirs.certified).all()
    assert np.allclose(4 * ours.radius, theirs.radius, rtol=1e-4)
    # The same in the deployed file's bytes: radii are asked for and told in shares.
    shares = certify(scaled, 4 * x, ("1/10",), clip=InputRange.between([0.0], [4.0]), unit=4)
    assert (ours.certified == shares.certified).all()
    assert np.allclose(ours.radius, shares.radius, rtol=1e-4)


def test_samples_outside_are_refused() -> None:
    with pytest.raises(PixelsOutOfRange):
        certify(network(0), np.array([[0.0, 9.0]], np.float32), clip=UNITS)
    halves = InputRange.between([0.0], [255.0], whole=True)
    with pytest.raises(PixelsOutOfRange):
        certify(network(0), np.array([[1.5, 3.0]], np.float32), clip=halves)


def test_a_counterexample_in_bytes_is_one_of_bytes_and_no_farther_than_asked() -> None:
    limits = InputRange.between([0.0], [255.0], whole=True)
    x = np.random.default_rng(0).integers(0, 256, (12, 2)).astype(np.float32)
    for norm in ("l2", "linf"):
        found = certify(
            network(5), x, (Fraction(21, 510), "60/255"), norm=norm, clip=limits, unit=255
        )
        assert len(found.counterexamples)
        for key, point in found.counterexamples.items():
            row, place = (int(part) for part in key.split(","))
            assert (point == point.round()).all()
            move = np.abs(point - x[row]).astype(np.float64)
            away = move.max() if norm == "linf" else np.hypot(*move)
            assert away <= (10.5, 60.0)[place]
