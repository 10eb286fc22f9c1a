"""Sine and cosine over boxes of any number of periods: the widest places, lines, slopes, balls."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.curves import Atan, Cos, Sin
from models.layers.kinds import Layer
from tests.extent import examples
from tests.workers.verification.layers.boxes import CURVED, DTYPES, boxes
from workers.verification.enclosure import Enclosure
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import apply_layer, rules_of
from workers.verification.layers.smooth.curve import OWN_ERROR
from workers.verification.layers.smooth.curves import CURVES
from workers.verification.layers.smooth.waves import COSINE, RANGE, SINE, Wave
from workers.verification.rounding import Rounding

WAVES: list[Layer] = [Sin(), Cos()]
F64 = torch.float64


def wave_boxes(random: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Float32 boxes of up to many periods anywhere up to ``RANGE``; many end next to a place where
    a wave, or its slope, is extreme."""
    middle = random.uniform(-1, 1, count) * 2.0 ** random.uniform(-3, 20, count)
    width = 10.0 ** random.uniform(-6, 2, count)
    ends = np.stack([middle - width, middle + width])
    quarters = np.round(ends / (0.5 * math.pi)) * (0.5 * math.pi)
    near = np.where(random.random((2, count)) < 0.5, quarters, ends).astype(np.float32)
    for _ in range(2):
        step = np.where(random.random((2, count)) < 0.5, np.float32(-np.inf), np.float32(np.inf))
        near = np.where(random.random((2, count)) < 0.3, np.nextafter(near, step), near)
    lower, upper = np.sort(near.clip(-RANGE, RANGE), 0)
    return torch.from_numpy(lower).double(), torch.from_numpy(upper).double()


def dense(lower: Tensor, upper: Tensor) -> Tensor:
    """Float64 points of boxes: even, near the ends, and where waves and slopes turn."""
    share = torch.linspace(0, 1, 2001, dtype=F64)[:, None]
    near = torch.logspace(-14, 0, 80, dtype=F64)[:, None]
    width = upper - lower
    points = [lower + share * width, lower + near * width, upper - near * width]
    for first in (torch.ceil(lower * 2 / math.pi), torch.floor(upper * 2 / math.pi)):
        points.append((first + torch.arange(-4, 5, dtype=F64)[:, None]) * (0.5 * math.pi))
    return torch.clamp(torch.cat(points), lower, upper)


@given(wave=st.sampled_from([SINE, COSINE]), seed=st.integers(0, 10**6))
@settings(max_examples=examples(20), deadline=None)
def test_nothing_in_a_box_is_beyond_what_is_said_of_it(wave: Wave, seed: int) -> None:
    """Images, largest differences to lines of any slope, and slopes, and all of them are met."""
    random = np.random.default_rng(seed)
    low, high = wave_boxes(random, 48)
    z = dense(low, high)
    values, slopes = wave.value(z), wave.slope(z)
    least, most = wave.image(low, high)
    fine = (high - low < 200.0).double()
    assert bool((least - OWN_ERROR <= values).all() & (values <= most + OWN_ERROR).all())
    assert bool(((values.amin(0) - least) * fine < 0.03).all())
    assert bool(((most - values.amax(0)) * fine < 0.03).all())
    least, most = wave.slope_range(low, high)
    assert bool((least <= slopes).all() & (slopes <= most).all())
    assert bool(((most - slopes.amax(0)) * fine < 0.03).all())
    assert bool((wave.steepness(low, high) >= slopes.abs().amax(0)).all())
    tried = torch.from_numpy(random.choice([-2.0, -1.0, -0.3, 0.0, 1e-9, 0.7, 1.0, 3.0], 48))
    for slope in (tried, slopes[int(random.integers(len(slopes)))]):
        for side in (-1, 1):
            found = wave.largest_less(slope, low, high, side)
            seen = side * (values - slope * z)
            room = OWN_ERROR * (2.0 + slope.abs() * z.abs().amax(0))
            assert bool((seen <= found + room).all())
            assert bool(((found - seen.amax(0)) * fine < 0.03).all())


def test_values_and_places_are_exact_enough() -> None:
    """Against 60 digits, up to the end of the range; a peak there is found."""
    random = np.random.default_rng(0)
    z = random.uniform(-1, 1, 400) * 2.0 ** random.uniform(-20, 20, 400)
    with mpmath.workdps(60):
        for wave, exact in ((SINE, mpmath.sin), (COSINE, mpmath.cos)):
            found = wave.value(torch.from_numpy(z)).tolist()
            assert max(abs(exact(mpmath.mpf(a)) - b) for a, b in zip(z, found, strict=True)) < 2e-16
        for place in (1e3, RANGE - 8.0, -RANGE + 8.0):
            turn = mpmath.nint(place / mpmath.pi) * mpmath.pi + mpmath.pi / 2
            low, high = (torch.tensor(float(turn + side), dtype=F64) for side in (-1, 1))
            top = [float(end.abs()) for end in SINE.image(low, high)]
            assert abs(max(top) - 1.0) < 1e-15
            assert abs(min(top) - math.cos(1.0)) < 1e-9


@given(layer=st.sampled_from(WAVES), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10**6))
@settings(max_examples=examples(20), deadline=None)
@torch.no_grad()
def test_lines_and_boxes_hold_over_any_number_of_periods(
    layer: Layer, dtype: torch.dtype, seed: int
) -> None:
    random, rules, rounding = np.random.default_rng(seed), rules_of(layer), Rounding.sound(dtype)
    low, high = (end[None] for end in wave_boxes(random, 48))
    z = dense(low, high)
    values = apply_layer(layer, z)
    error = CURVES[type(layer)](layer).absolute
    assert rules.relax is not None
    for rule in ("crown", "cap"):
        lines = rules.relax(layer, low.to(dtype), high.to(dtype), rule, rounding)
        assert lines.lower_intercept is not None
        above = lines.upper_slope.double() * z + lines.upper_intercept.double()
        below = lines.lower_slope.double() * z + lines.lower_intercept.double()
        noise = 2.0**-50 * (1.0 + (lines.upper_slope.abs() + lines.lower_slope.abs()) * z.abs())
        assert bool((above + noise >= values + error).all())
        assert bool((below - noise <= values - error).all())
    wide = high - low >= 4 * math.pi
    if rule == "crown":
        # A line next to the range's end, however many periods there are.
        middle = lines.upper_slope.double() * (0.5 * low + 0.5 * high) + lines.upper_intercept
        assert bool((middle[wide] < 1.0 + 1e-5).all())


@given(
    layer=st.sampled_from([*WAVES, Atan()]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(20), deadline=None)
@torch.no_grad()
def test_no_value_leaves_the_ball_behind(layer: Layer, dtype: torch.dtype, seed: int) -> None:
    """cos(0) is not 0: the ball's rule does not lean on it."""
    random, rounding = np.random.default_rng(seed), Rounding.sound(dtype)
    size = float(10.0 ** random.uniform(-8, 1))
    centre = torch.from_numpy(random.standard_normal((1, 5)) * 10.0 ** random.uniform(-9, 4))
    centre = centre.float()
    moves = torch.from_numpy(random.standard_normal((200, 5)))
    points = centre + size * moves / moves.norm(dim=1, keepdim=True)
    radius = torch.tensor([size * (1 + 1e-6) + 1e-3 * size], dtype=F64)
    points = points.float().double()
    points = points[(points - centre.double()).norm(dim=1) <= radius]
    state = Enclosure(centre.to(dtype), radius, None, None, torch.ones(1, dtype=torch.bool))
    rule = rules_of(layer).forward
    assert rule is not None
    found = rule(GraphStep("f", layer, (0,), (5,)), [state], rounding)
    assert bool(found.valid)
    error = CURVES[type(layer)](layer).absolute
    away = ((apply_layer(layer, points) - found.centre.double()).abs() + error).norm(dim=1)
    assert bool((away <= found.radius).all())


@pytest.mark.parametrize("layer", WAVES, ids=lambda layer: str(layer.kind))
@torch.no_grad()
def test_beyond_the_range_nothing_is_concluded(layer: Layer) -> None:
    beyond = float(np.nextafter(np.float32(RANGE), np.float32(np.inf)))
    for low, high, within in ((-3.0, RANGE - 1.0, True), (RANGE - 1.0, beyond, False)):
        lower, upper = (torch.tensor([[end]], dtype=F64) for end in (low, high))
        for centre, radius in ((lower, math.inf), (0.5 * lower + 0.5 * upper, high - low)):
            state = Enclosure(
                centre,
                torch.tensor([radius], dtype=F64),
                lower,
                upper,
                torch.ones(1, dtype=torch.bool),
            )
            rule, relax = rules_of(layer).forward, rules_of(layer).relax
            assert rule is not None
            assert relax is not None
            rounding = Rounding.sound(F64)
            step = GraphStep("f", layer, (0,), (1,))
            assert bool(rule(step, [state], rounding).valid) == within
            lines = relax(layer, lower, upper, "crown", rounding)
            assert bool(torch.isfinite(lines.upper_intercept)) == within
            secants = rules_of(layer).secants
            assert secants is not None
            error = secants(layer, lower, upper, rounding).error
            assert error is not None
            assert bool(torch.isfinite(error)) == within


@given(
    layer=st.sampled_from([layer for layer in CURVED if rules_of(layer).secants]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(40), deadline=None)
@torch.no_grad()
def test_secants_hold_between_any_two_numbers_of_a_box(layer: Layer, seed: int) -> None:
    """f(b) - f(a) is between both slopes times b - a, up to what the deployed value may be off."""
    random = np.random.default_rng(seed)
    rule, curve = rules_of(layer).secants, CURVES[type(layer)](layer)
    assert rule is not None
    lower, upper = boxes(random, 64, F64)
    found = rule(layer, lower, upper, Rounding.sound(F64))
    assert found.error is not None
    shares = torch.from_numpy(random.random((2, 400, 64)) ** random.choice([1, 8]))
    a, b = (torch.lerp(lower, upper, share).clamp(lower, upper) for share in shares)
    moved = apply_layer(layer, b) - apply_layer(layer, a)
    off = curve.absolute + curve.per_input * b.abs() + curve.per_value * apply_layer(layer, b).abs()
    least = torch.minimum(found.low * (b - a), found.high * (b - a)) - found.error
    most = torch.maximum(found.low * (b - a), found.high * (b - a)) + found.error
    noise = 2.0**-48 * (1.0 + a.abs() + b.abs()) * max(1.0, curve.steepest)
    assert bool((moved + off <= most + noise).all())
    assert bool((moved - off >= least - noise).all())
    assert bool((found.low >= -curve.steepest).all() & (found.high <= curve.steepest).all())
