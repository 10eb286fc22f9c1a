"""The last layer: a dual bound that is never below the primal and meets it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from workers.verification.forward.box_ball import ball_box_maximum, dual_value, primal_point


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    size = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    w = random.standard_normal((1, size)) * 10.0 ** random.uniform(-4, 4, (1, size))
    lower = -np.abs(random.standard_normal((1, size))) * 10.0 ** random.uniform(-3, 1, (1, size))
    upper = np.abs(random.standard_normal((1, size))) * 10.0 ** random.uniform(-3, 1, (1, size))
    # Dead neurons: boxes without width, under large weights.
    dead = random.random((1, size)) < draw(st.sampled_from([0.0, 0.3, 0.9]))
    lower[dead] = upper[dead] = 0.0
    w[dead] *= draw(st.sampled_from([1.0, 1e4]))
    rho = np.array([10.0 ** random.uniform(-4, 2)])
    return tuple(torch.from_numpy(value) for value in (w, lower, upper, rho))  # type: ignore[return-value]


@given(problems())
@settings(max_examples=300, deadline=None)
def test_dual_is_at_least_the_primal_and_equal_to_1e_9(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    w, lower, upper, rho = problem
    bound = float(ball_box_maximum(w, lower, upper, rho)[0])
    point, _ = primal_point(w, lower, upper, rho)
    assert bool(((point >= lower) & (point <= upper)).all())
    shrink = min(1.0, float(rho) / max(float(point.norm()), 1e-300))
    primal = float((w * point).sum()) * shrink
    scale = float((w.abs() * torch.maximum(-lower, upper)).sum()) + 1e-290
    assert bound >= primal - 1e-12 * scale
    assert bound - primal <= 1e-9 * max(abs(primal), scale * 1e-3)


@given(problems(), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_every_multiplier_is_valid_in_exact_arithmetic(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], seed: int
) -> None:
    """Rational arithmetic: no point of ball and box exceeds dual_value(a), whatever a is."""
    w, lower, upper, rho = problem
    random = np.random.default_rng(seed)
    a = torch.from_numpy(random.standard_normal(w.shape)) * w.abs()
    bound = Fraction(float(dual_value(w, a, lower, upper, rho)[0]))
    point, _ = primal_point(w, lower, upper, rho)
    d = [Fraction(float(value)) for value in point[0]]
    square = sum(value * value for value in d)
    limit = Fraction(float(rho))
    if square > limit * limit:
        shrink = limit * limit / square
        d = [value * shrink for value in d]
    assert sum(value * value for value in d) <= limit * limit
    exact = sum(Fraction(float(weight)) * value for weight, value in zip(w[0], d, strict=True))
    assert exact <= bound


def test_optimum_agrees_with_a_general_solver() -> None:
    random = np.random.default_rng(1)
    for _ in range(5):
        w = random.standard_normal(6)
        lower, upper = -random.random(6), random.random(6)
        solved = minimize(
            lambda d, w=w: -w @ d,
            np.zeros(6),
            jac=lambda d, w=w: -w,
            bounds=list(zip(lower, upper, strict=True)),
            constraints={"type": "ineq", "fun": lambda d: 0.64 - d @ d, "jac": lambda d: -2 * d},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        tensors = [torch.from_numpy(v)[None] for v in (w, lower, upper)]
        bound = float(ball_box_maximum(*tensors, torch.tensor([0.8], dtype=torch.float64))[0])
        assert abs(bound + solved.fun) < 1e-6


def test_an_infinite_ball_leaves_the_box_and_a_point_leaves_nothing() -> None:
    w = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    lower, upper = torch.tensor([[-1.0, -3.0]]).double(), torch.tensor([[2.0, 1.0]]).double()
    infinite = torch.tensor([torch.inf], dtype=torch.float64)
    assert abs(float(ball_box_maximum(w, lower, upper, infinite)[0]) - 8.0) < 1e-12
    zero = torch.zeros(1, dtype=torch.float64)
    assert abs(float(ball_box_maximum(w, lower, upper, zero)[0])) < 1e-12
