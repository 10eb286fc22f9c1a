"""An attack's gradient to the pixels is the convolution's, by other means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.affine import Conv2d
from tests.workers.training.bounds.graphs import generator
from workers.training import transposed
from workers.training.transposed import pixel_convolution, reads_pixels


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transposed, "THREADS", torch.get_num_threads())


def normal(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return drawn.requires_grad_()


def conv(channels: int, kernel: tuple[int, int] = (3, 3), **options: object) -> Conv2d:
    weight, bias = normal(5, channels, *kernel, seed=1), normal(5, seed=2)
    return Conv2d(weight.detach(), bias.detach(), **options)  # type: ignore[arg-type]


@given(
    channels=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(6, 9), st.integers(6, 9)),
)
@settings(max_examples=40)
def test_values_and_all_gradients_are_those_of_the_convolution(
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    size: tuple[int, int],
) -> None:
    layer = conv(channels, kernel, stride=stride, padding=padding, dilation=dilation)
    inputs = normal(2, channels, *size), *(t.detach().requires_grad_() for t in layer.parameters())
    assert reads_pixels(layer, inputs[0])
    found, expected = pixel_convolution(layer, *inputs), layer.apply_weight(*inputs)
    assert torch.equal(found, expected)
    height = normal(*found.shape, seed=3).detach()
    ours, theirs = (torch.autograd.grad(value, inputs, height) for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_differences_and_have_none_themselves() -> None:
    layer = conv(2, stride=2, padding=1)
    inputs = normal(1, 2, 5, 5), *(t.detach().requires_grad_() for t in layer.parameters())
    assert torch.autograd.gradcheck(lambda *tensors: pixel_convolution(layer, *tensors), inputs)
    value = pixel_convolution(layer, *inputs).square().sum()
    (slope,) = torch.autograd.grad(value, inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_it_is_for_pixels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = normal(2, 2, 6, 6)
    assert reads_pixels(conv(2), pixels)
    assert not reads_pixels(conv(2), pixels.detach())
    assert not reads_pixels(conv(5), normal(2, 5, 6, 6))
    assert not reads_pixels(conv(2, padding=(0, 0, 1, 1)), pixels)
    assert not reads_pixels(Conv2d(normal(4, 1, 3, 3).detach(), groups=2), pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert not reads_pixels(conv(2), pixels)
    monkeypatch.setattr(transposed, "THREADS", torch.get_num_threads() - 1)
    assert not reads_pixels(conv(2), pixels)
