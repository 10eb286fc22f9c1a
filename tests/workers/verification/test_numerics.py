"""Slacks at denormal scale against exact values: nothing may be lost before it is multiplied.

Numbers are float32 here, so that float64 holds their products and the ends of the lines exactly.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.layers.activations import AtLeast, AtMost, Clip, ReLUTheta
from models.layers.kinds import Layer, LeakyReLU, Linear, PReLU, ReLU
from models.network import Network
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.linear_form import LinearForm
from workers.verification.forward.box_ball import quick_maximum
from workers.verification.forward.propagation import Enclosure, rounded_interval
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.layers.clamp import clamp
from workers.verification.layers.pairs.sorting import maximum_planes, minimum_planes
from workers.verification.layers.registry import rules_of
from workers.verification.numerics import (
    FEW,
    MANY,
    euclidean_norm,
    floor,
    lost_in_norm,
    lowered,
    min_normal,
    nonzero,
    per_sample,
    raised,
    rough_norm,
    rounded_down,
    rounded_up,
    rounding_error,
    slack,
    sum_error,
)
from workers.verification.region import Region
from workers.verification.rounding import FLOAT32_MAX, Rounding, overflow_ceiling, unit_roundoff

F32, F64 = torch.float32, torch.float64
ULP = 2.0**-149
SOUND = Rounding.sound(F32)
#: Larger than every weight that the float32 pass is trusted with.
WEIGHT = 2.0**100


def boxes(
    rng: np.random.Generator, shape: tuple[int, ...], *, around_zero: bool = False
) -> tuple[Tensor, Tensor]:
    """Boxes a few least denormal numbers wide, float32."""
    low = np.floor(10.0 ** rng.uniform(0, 5, shape))
    width = np.floor(10.0 ** rng.uniform(0, 1, shape))
    if around_zero:
        low = -np.floor(width * rng.uniform(0, 1, shape))
    return torch.from_numpy(low * ULP).float(), torch.from_numpy((low + width) * ULP).float()


def one_layer(
    rng: np.random.Generator, inputs: int, outputs: int
) -> tuple[CompiledNetwork, Tensor]:
    """A compiled dense layer of huge weights (its head is the identity), and the weights."""
    weight = torch.from_numpy(rng.uniform(-1, 1, (outputs, inputs)) * WEIGHT / 2).float()
    layers = [("a", Linear(weight), ("input",)), ("b", ReLU(), ("a",))]
    return CompiledNetwork.compile(Network((inputs,), layers).eval()), weight


def test_images_of_denormal_boxes_hold_every_corner(rng: np.random.Generator) -> None:
    for _ in range(40):
        compiled, weight = one_layer(rng, 3, 16)
        low, high = boxes(rng, (8, 3))
        middle, half = rounded_interval(compiled.steps[0].affine, low, high, SOUND)
        lower, upper = middle - half, middle + half
        ends = torch.stack([low.double(), high.double()])
        products = ends[:, :, None, :] * weight.double()
        least_value, most = products.amin(0).sum(2), products.amax(0).sum(2)
        assert bool((lower.double() <= least_value * (1 - 1e-15 * least_value.sign())).all())
        assert bool((upper.double() >= most * (1 - 1e-15 * most.sign())).all())


LAYERS: tuple[Layer, ...] = (
    ReLU(),
    LeakyReLU(slope=0.3),
    LeakyReLU(slope=0.01),
    PReLU(torch.tensor(0.3)),
    Clip(low=0.0, high=3 * ULP),
    Clip(low=-2 * ULP, high=ULP),
    AtLeast(torch.tensor([ULP])),
    AtMost(torch.tensor([2 * ULP])),
    ReLUTheta(torch.tensor([4 * ULP])),
)


@pytest.mark.parametrize("rule", ["crown", "cap"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.kind)
def test_lines_over_denormal_boxes_keep_their_side(
    layer: Layer, rule: str, rng: np.random.Generator
) -> None:
    low, high = boxes(rng, (1, 4000), around_zero=True)
    relax = rules_of(layer).relax
    assert relax is not None
    lines = relax(layer, low, high, rule, SOUND)
    for share in torch.linspace(0, 1, 21):
        z = torch.clamp(torch.round((low + (high - low) * share) / ULP) * ULP, low, high)
        exact = z.double()
        if isinstance(layer, ReLU):
            value = exact.clamp_min(0)
        elif isinstance(layer, LeakyReLU | PReLU):
            slope = torch.as_tensor(layer.slope).detach().double()
            value = torch.where(exact > 0, exact, slope * exact)
        else:
            value = clamp(layer, exact)
        above = lines.upper_slope.double() * exact + lines.upper_intercept.double()
        below = lines.lower_slope.double() * exact
        if lines.lower_intercept is not None:
            below = below + lines.lower_intercept.double()
        assert bool((above >= value).all())
        assert bool((below <= value).all())


@pytest.mark.parametrize("make", [maximum_planes, minimum_planes])
def test_planes_over_denormal_boxes_keep_their_side(make: Any, rng: np.random.Generator) -> None:
    a, b = (boxes(rng, (1, 4000), around_zero=True) for _ in range(2))
    planes = make(*a, *b, SOUND)
    best = torch.maximum if make is maximum_planes else torch.minimum
    for first in a:
        for second in b:
            one, two = first.double(), second.double()
            value = best(one, two)
            above = planes.upper_first.double() * one + planes.upper_second.double() * two
            below = planes.lower_first.double() * one + planes.lower_second.double() * two
            assert bool((above + planes.upper_intercept.double() >= value).all())
            assert bool((below + planes.lower_intercept.double() <= value).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_least_values_over_denormal_regions(norm: str, rng: np.random.Generator) -> None:
    """A region cut by the pixel box a few denormal numbers beside the centre."""
    for _ in range(60):
        compiled, _ = one_layer(rng, 3, 2)
        x = torch.from_numpy(np.floor(10.0 ** rng.uniform(0, 1, (1, 3))) * ULP).float()
        epsilon = torch.tensor([float(rng.integers(1, 9)) * ULP], dtype=F64)
        region = Region(x, epsilon, norm, clip=True)
        lower, upper = region.box(F32)
        start = Enclosure(x, region.radius(lower, upper), lower, upper, torch.ones(1).bool())
        backward = BackwardPass(compiled, region, [start], SOUND, F32)
        rows = torch.from_numpy(rng.uniform(-1, 1, (16, 3)) * WEIGHT).float()
        found = backward.lower_bound(0, LinearForm(rows, (3,), None))
        low = torch.maximum(x.double() - epsilon, torch.zeros(1).double())
        high = x.double() + epsilon
        corner = torch.minimum(rows.double() * low, rows.double() * high).sum(1)
        if norm == "l2":
            # The farthest point of one coordinate alone is inside ball and box.
            moves = torch.minimum(rows.double() * (low - x), rows.double() * (high - x)).amin(1)
            corner = (rows.double() * x.double()).sum(1) + moves
        assert bool((found <= corner + 1e-15 * corner.abs()).all())


@pytest.mark.parametrize("dtype", [F32, F64])
def test_magnitudes_are_never_rounded_to_nothing(dtype: torch.dtype) -> None:
    size = torch.tensor([0.0, min_normal(dtype) * 2.0**-20, min_normal(dtype), 1.0], dtype=dtype)
    rounding = Rounding.sound(dtype)
    for share in (2.0**-24, 1e-3, 1.0):
        stored = slack(size, share, rounding)
        assert bool((stored >= min_normal(dtype)).all())
        assert bool((stored >= size * share).all())
    assert bool((slack(size, 0.5, Rounding.ignored()) == size * 0.5).all())
    assert floor(dtype, Rounding.ignored()) == 0.0


def test_conversions_go_outward(rng: np.random.Generator) -> None:
    sizes = 10.0 ** rng.uniform(-60, 38, 20_000) * rng.choice([-1.0, 1.0], 20_000)
    x = torch.from_numpy(sizes)
    assert bool((rounded_down(x, F32).double() <= x).all())
    assert bool((rounded_up(x, F32).double() >= x).all())
    raised = per_sample(x.abs(), torch.zeros(1, 1, dtype=F32))
    assert bool((raised[:, 0].double() >= x.abs()).all())


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-22, 1.0, 1e18])
@pytest.mark.parametrize("count", [1, 3, 300])
def test_norms_of_any_scale_are_upper_bounds(
    scale: float, count: int, rng: np.random.Generator
) -> None:
    x = torch.from_numpy(rng.normal(size=(5, count)) * scale).float()
    exact = (x.double() / scale).norm(dim=1) * scale * (1 - 1e-14)
    for norm in (euclidean_norm, rough_norm):
        assert bool((norm(x) >= exact).all())
    assert lost_in_norm(count, F32) >= (count * 2.0**-126) ** 0.5


def test_the_quick_maximum_holds_its_own_point(rng: np.random.Generator) -> None:
    """Wide boxes beside tiny balls, huge and denormal coefficients."""
    for _ in range(200):
        scale = 10.0 ** rng.uniform(-40, 30)
        w = torch.from_numpy(rng.normal(size=(4, 3)) * scale).float()
        reach = torch.from_numpy(10.0 ** rng.uniform(-44, 20, (4, 3))).float()
        lower, upper = -reach, reach.flip(1)
        rho = torch.from_numpy(10.0 ** rng.uniform(-44, 20, 4))
        far = torch.maximum(-lower, upper).double().norm(dim=1) * 1.001
        found, _ = quick_maximum(w, lower, upper, rho, far, 2)
        corner = torch.where(w > 0, upper, lower).double()
        length = corner.norm(dim=1).clamp_min(1e-300)
        point = corner * torch.minimum(torch.ones(4).double(), rho / length)[:, None]
        value = (w.double() * point).sum(1)
        assert bool((found >= value * (1 - 1e-14)).all())


def worst(exact: float, operations: int, dtype: torch.dtype, *, above: bool) -> Tensor:
    """The number of ``dtype`` farthest from ``exact`` that so many operations may end at."""
    u = Fraction(unit_roundoff(dtype))
    factor = (1 + u if above else 1 - u) ** operations
    bound = Fraction(exact) * factor
    found = torch.tensor(float(bound), dtype=dtype)
    step = torch.tensor(-torch.inf if above else torch.inf, dtype=dtype)
    while (Fraction(float(found)) > bound) if above else (Fraction(float(found)) < bound):
        found = torch.nextafter(found, step)
    return found


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("operations", [0, 1, 2, 3, 7, 64, 1000, FEW])
def test_a_raised_number_is_not_below_the_exact_one(
    operations: int, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    for _ in range(40):
        exact = float(torch.tensor(10.0 ** rng.uniform(-3, 3), dtype=dtype))
        low = worst(exact, operations, dtype, above=False)
        assert float(raised(low, operations, dtype)) >= exact
        high = worst(exact, operations, F64, above=True)
        assert float(lowered(high, operations)) <= exact


def test_a_raise_costs_little_and_says_so_where_it_cannot_help() -> None:
    assert raised(1.0) <= 1.0 + 2e-12
    assert raised(1.0, MANY) <= 1.0 + 2e-9
    assert raised(1.0, 2**23, F32) == np.inf
    assert lowered(-1.0) < 0.0
    assert nonzero(0.0) > 0.0
    assert bool((nonzero(torch.zeros(2, dtype=F32)) > 0).all())


@pytest.mark.parametrize("count", [3, 2**15, 2**17, 2**21])
def test_a_sum_may_lose_a_roundoff_with_each_of_its_terms(count: int) -> None:
    assert math.expm1(count * math.log1p(unit_roundoff(F64))) <= sum_error(count)


@pytest.mark.parametrize("terms", [1, 200, 20_000, 100_000])
def test_an_error_bound_covers_its_own_error(terms: int) -> None:
    """Computed in float32 from a magnitude that lost a roundoff with each of its terms."""
    size = worst(1.0, terms, F32, above=False)
    assert float(rounding_error(size, 2.0**-20, terms=terms)) >= 2.0**-20


def test_no_partial_sum_overflows_below_the_ceiling() -> None:
    for terms in (1, 100, 100_000):
        share = Fraction(1) + 2 * terms * Fraction(2.0**-24)
        assert Fraction(overflow_ceiling(terms)) * share * Fraction(1.001) < Fraction(FLOAT32_MAX)


#: Where errors are stated; everything else calls these.
STATED = ("numerics.py", "rounding.py", "norms/backward_errors.py")
VERIFICATION = Path(__file__).parents[3] / "workers" / "verification"


def slacks(source: str) -> Iterator[int]:
    """Lines that raise or lower by a literal: x * (1.0 + 1e-12), x * 1.001, 1.0 + 8 * unit."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.BinOp):
            continue
        left, right = (
            side.value if isinstance(side, ast.Constant) else None
            for side in (node.left, node.right)
        )
        names = {n.id for n in ast.walk(node.right) if isinstance(n, ast.Name)}
        small = isinstance(right, float) and 0 < right < 1e-3
        powers = any(isinstance(n, ast.Pow) for n in ast.walk(node.right))
        units = bool(names & {"unit", "U64", "unit_roundoff", "gamma"})
        if isinstance(node.op, ast.Add | ast.Sub) and left == 1.0 and (small or powers or units):
            yield node.lineno
        if isinstance(node.op, ast.Mult | ast.Add) and any(
            isinstance(value, float) and 1.0 < value < 1.1 for value in (left, right)
        ):
            yield node.lineno


def test_no_proof_has_a_slack_of_its_own() -> None:
    """Every raise is a call of ``numerics``, where its error is stated."""
    assert list(slacks("a = b * (1.0 + 1e-12)")) == [1]
    assert list(slacks("a = b * 1.001 + (1.0 + 8 * unit)")) == [1, 1]
    found = [
        f"{path.relative_to(VERIFICATION)}:{line}"
        for path in sorted(VERIFICATION.rglob("*.py"))
        if str(path.relative_to(VERIFICATION)) not in STATED
        for line in slacks(path.read_text())
    ]
    assert found == []
