"""Curved activations: pieces as claimed, lines, boxes and slopes that hold, kernels as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import iv
from torch import Tensor

from benchmarks.verification.kernels import KERNELS, largest_errors
from benchmarks.verification.kernels import relative as relative_size
from models.layers.curves import (
    GELU,
    Cos,
    HardSwish,
    Mish,
    Power,
    SiLU,
    Sin,
)
from models.layers.kinds import Layer
from tests.extent import examples
from tests.workers.verification.layers.boxes import CURVED, DTYPES, boxes, grid
from workers.verification.enclosure import Enclosure
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import anchored_slopes, apply_layer, rules_of
from workers.verification.layers.rules import LinearRelaxation
from workers.verification.layers.smooth.curves import CURVES, KERNEL_ERROR
from workers.verification.layers.smooth.steep import KERNEL_ROUNDINGS
from workers.verification.rounding import Rounding


def boxes_around(
    turn: float, random: np.random.Generator, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Boxes that end at, or a few numbers from, where a curve is least; and denormal ones."""
    least = np.float32(turn)
    near = [least]
    for _ in range(3):
        near += [np.nextafter(near[0], np.float32(-9)), np.nextafter(near[-1], np.float32(9))]
        near.sort()
    ends = random.choice([*near, -3.0, 3.0, -1e-40, 0.0, 1e-45, 1e-38, 0.5], (2, 64))
    lower, upper = np.sort(ends.astype(np.float32), 0)
    return torch.from_numpy(lower).to(dtype)[None], torch.from_numpy(upper).to(dtype)[None]


def allowed(layer: Layer, z: Tensor, values: Tensor) -> Tensor:
    """How far a deployed value may be off."""
    curve = CURVES[type(layer)](layer)
    return curve.absolute + curve.per_input * z.abs() + curve.per_value * values.abs()


@given(
    layer=st.sampled_from(CURVED),
    dtype=st.sampled_from(DTYPES),
    rule=st.sampled_from(["crown", "cap"]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(30), deadline=None)
@torch.no_grad()
def test_lines_boxes_and_slopes_hold_over_the_whole_box(
    layer: Layer, rule: str, dtype: torch.dtype, seed: int
) -> None:
    random, rules = np.random.default_rng(seed), rules_of(layer)
    turn = CURVES[type(layer)](layer).turn
    drawn = boxes(random, 64, dtype), boxes_around(turn or 0.0, random, dtype)
    lower, upper = (torch.cat(ends, 1) for ends in zip(*drawn, strict=True))
    z = grid(lower, upper)
    values = apply_layer(layer, z)
    assert rules.relax is not None
    for rounding in (Rounding.sound(dtype), Rounding.ignored()):
        lines = rules.relax(layer, lower, upper, rule, rounding)
        error = allowed(layer, z, values) if rounding.is_sound else torch.zeros_like(z)
        assert lines.lower_intercept is not None
        for slope, intercept, side in (
            (lines.upper_slope, lines.upper_intercept, 1),
            (lines.lower_slope, lines.lower_intercept, -1),
        ):
            line = slope.double() * z
            # The line is evaluated here with an error of a few units in float64.
            noise = (2.0**-50 if rounding.is_sound else 2.0**-18) * (
                1.0 + values.abs() + z.abs() + line.abs()
            )
            assert bool((side * (line + intercept.double() - values) + noise >= error).all())
    boxed = forward(layer, lower, upper, Rounding.sound(dtype))
    within = (z.abs().amax(0) < CURVES[type(layer)](layer).largest)[None]
    assert boxed.lower is not None
    assert boxed.upper is not None
    error = allowed(layer, z, values)
    assert bool(
        ((values - error >= boxed.lower) & (values + error <= boxed.upper))[:, within[0]].all()
    )
    assert bool(boxed.valid) == bool(within.all())
    centre = torch.lerp(lower, upper, torch.from_numpy(random.random(lower.shape)).to(dtype))
    slopes = anchored_slopes(layer, centre, lower, upper)
    if slopes is not None:
        moved = (values - apply_layer(layer, centre.double())).abs()
        room = 2.0**-49 * (1.0 + values.abs() + centre.double().abs())
        assert bool((moved <= slopes.double() * (z - centre.double()).abs() + room).all())


def forward(layer: Layer, lower: Tensor, upper: Tensor, rounding: Rounding) -> Enclosure:
    """The enclosure of a layer over one box of many numbers, from its rule."""
    rule = rules_of(layer).forward
    assert rule is not None
    step = GraphStep("f", layer, (0,), tuple(lower.shape[1:]))
    radius = torch.full((1,), torch.inf, dtype=torch.float64)
    state = Enclosure(lower, radius, lower, upper, torch.ones(1, dtype=torch.bool))
    return rule(step, [state], rounding)


def gap(layer: Layer, low: float, high: float) -> float:
    """Widest distance between the lines over a box."""
    lower, upper = (torch.full((1, 1), end, dtype=torch.float64) for end in (low, high))
    relax = rules_of(layer).relax
    assert relax is not None
    lines: LinearRelaxation = relax(layer, lower, upper, "crown", Rounding.ignored())
    z = torch.cat([lower, upper])
    assert lines.lower_intercept is not None
    below = lines.lower_slope * z + lines.lower_intercept
    return float((lines.upper_slope * z + lines.upper_intercept - below).max())


@pytest.mark.parametrize("layer", CURVED, ids=lambda layer: f"{layer.kind}{layer.config()}")
@torch.no_grad()
def test_lines_are_tight(layer: Layer) -> None:
    """Second order in the width of a small box; of a wide one not more than chord and tangent."""
    for middle in (-4.0, -1.5, -0.7, 0.3, 2.4):
        assert gap(layer, middle - 0.005, middle + 0.005) < 1e-3
    if not isinstance(layer, Power):
        assert gap(layer, -3.0, 3.0) < 3.3
        # Far above 0 gates and exponentials are lines; of many periods the range is left.
        assert gap(layer, 50.0, 90.0) < (2.0 + 1e-9 if isinstance(layer, Sin | Cos) else 1e-2)


@torch.no_grad()
def test_boxes_are_the_images() -> None:
    """The least value is inside, and no more than rounding beside it."""
    low, high = torch.full((1, 1), -3.0), torch.full((1, 1), 1.0)
    for layer in (SiLU(), GELU(), HardSwish(), Mish(), Power()):
        z = torch.linspace(-3, 1, 40_001, dtype=torch.float64)
        values = apply_layer(layer, z)
        found = forward(layer, low.double(), high.double(), Rounding.sound(torch.float64))
        assert found.lower is not None
        assert found.upper is not None
        assert -1e-5 < float(found.lower) - float(values.min()) <= 1e-9
        assert 0.0 <= float(found.upper) - float(values.max()) < 1e-5


def second(layer: Layer, z: object) -> object:
    """f'' of Mish as an interval, up to a factor > 0 (``curves``)."""
    e = iv.exp(z)
    return 2 * (e + 1) * (e * e + 2 * e + 2) - z * (2 * e**3 + 3 * e * e - 2 * e - 2)


def test_mish_turns_its_bend_twice() -> None:
    """The sign of f'' by interval arithmetic everywhere between -45 and 45, but next to both."""
    bends = [piece.start for piece in CURVES[Mish](Mish()).pieces[2:4]]
    open_, proved = [(-45.0, 45.0)], 0
    while open_:
        low, high = open_.pop()
        if any(bend - 1e-9 <= low and high <= bend + 1e-9 for bend in bends):
            continue
        found = second(Mish(), iv.mpf([low, high]))
        inside = bends[0] <= low and high <= bends[1]
        outside = high <= bends[0] or low >= bends[1]
        if (inside and found > 0) or (outside and found < 0):
            proved += 1
            continue
        assert high - low > 1e-12, "no sign is found"
        cut = next((b for b in bends if low < b < high), 0.5 * (low + high))
        open_ += [(low, cut), (cut, high)]
    assert proved > 10


def test_slopes_and_bends_are_as_stated() -> None:
    """On a fine grid: f'' changes its sign at the bends alone, |f'| is nowhere above ``steepest``,
    f is nowhere below its value at ``turn``."""
    for layer in CURVED:
        curve = CURVES[type(layer)](layer)
        z = torch.linspace(-12, 12, 20_000, dtype=torch.float64)
        slopes, values = curve.slope(z), curve.value(z)
        assert float(slopes.abs().max()) <= curve.steepest
        if curve.turn is not None:
            assert bool((values >= curve.value(torch.tensor(curve.turn).double()) - 1e-15).all())
        chords = (values[1:] - values[:-1]) / (z[1:] - z[:-1])
        middle = curve.slope(0.5 * (z[1:] + z[:-1]))
        assert float((chords - middle).abs().median()) < 1e-6
        for number, piece in enumerate(curve.pieces):
            start, end = curve.ends(number)
            within = (z[:-1] > start) & (z[1:] < end)
            rise = (slopes[1:] - slopes[:-1])[within]
            if piece.bend == 0:
                assert bool((rise.abs() <= 1e-14).all())
            else:
                assert bool((piece.bend * rise >= -1e-14).all())


@pytest.mark.parametrize("name", KERNELS)
def test_the_runtimes_keep_the_stated_error(name: str) -> None:
    """One float32 number in 20,011 (docs/results.md has many more). Of what is said relative to a
    value less is allowed (``steep``)."""
    relative = KERNELS[name].over is relative_size
    allowed = KERNEL_ROUNDINGS * 2.0**-24 if relative else KERNEL_ERROR
    for error, z in largest_errors(KERNELS[name], inside=20_011, outside=20_011).values():
        assert error <= 0.7 * allowed, z


def test_every_curve_is_tried() -> None:
    assert {type(layer) for layer in CURVED} == set(CURVES)
    assert math.isinf(CURVES[Power](Power()).steepest)
