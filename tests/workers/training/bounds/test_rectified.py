"""ReLU on middle and half width: numbers and gradients are those of ReLU at both ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.training.bounds.graphs import generator
from workers.training.bounds import rectified

#: Exact in float32, and so are their sums: ends at 0, boxes of one point, and all three states.
EXACT = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


def by_ends(middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper = torch.relu(middle - half), torch.relu(middle + half)
    return (upper + lower) / 2, (upper - lower) / 2


def boxes(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, 16, 3, 5, 5, generator=generator(3)).to(dtype)
    return drawn[0].requires_grad_(), drawn[1].abs().requires_grad_()


@given(middle=EXACT, half=EXACT.filter(lambda value: value >= 0), above=EXACT, beside=EXACT)
@settings(max_examples=100)
def test_it_is_relu_at_both_ends_and_so_are_its_gradients_at_ends_of_zero_too(
    middle: float, half: float, above: float, beside: float
) -> None:
    inputs = [torch.full((1, 1), value, requires_grad=True) for value in (middle, half)]
    weights = [torch.full((1, 1), value) for value in (above, beside)]
    results = [function(*inputs) for function in (rectified.rectified, by_ends)]
    assert results[0] == results[1]
    found, expected = (torch.autograd.grad(result, inputs, weights) for result in results)
    assert found == expected


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str
)
def test_drawn_boxes_and_gradients_agree_but_for_rounding(
    dtype: torch.dtype, tolerance: float
) -> None:
    inputs = boxes(dtype)
    weights = [torch.randn(16, 3, 5, 5, generator=generator(seed)).to(dtype) for seed in (4, 5)]
    found, expected = rectified.rectified(*inputs), by_ends(*inputs)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    ours, theirs = (torch.autograd.grad(result, inputs, weights) for result in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_differences() -> None:
    assert torch.autograd.gradcheck(rectified.rectified, boxes(torch.float64))


def test_inputs_and_incoming_gradients_stay_as_they_are() -> None:
    inputs = boxes(torch.float32)
    before = [tensor.detach().clone() for tensor in inputs]
    weight = torch.ones_like(before[0])
    torch.autograd.grad(rectified.rectified(*inputs), inputs, [weight, weight])
    assert torch.equal(weight, torch.ones_like(weight))
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor.detach(), copy)


def test_what_is_no_number_stays_none() -> None:
    nan = torch.full((1, 1), torch.nan)
    for inputs in ((nan, torch.ones(1, 1)), (torch.ones(1, 1), nan)):
        assert all(bool(result.isnan().all()) for result in rectified.rectified(*inputs))


def test_large_boxes_go_through_by_some_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last piece is a smaller one; numbers and gradients are those of one piece."""
    inputs, weights = boxes(torch.float64), boxes(torch.float64)
    whole = rectified.rectified(*inputs)
    expected = torch.autograd.grad(whole, inputs, weights)
    monkeypatch.setattr(rectified, "WHOLE", 75 * 8 // torch.get_num_threads())
    monkeypatch.setattr(rectified, "PIECE", 75 * 3 // torch.get_num_threads())
    pieces = list(rectified._pieces(*inputs))
    assert {len(first) for first, _ in pieces} == {3, 1}
    found = rectified.rectified(*inputs)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, weights), expected)
