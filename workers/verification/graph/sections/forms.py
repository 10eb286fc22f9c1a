"""Linear maps in a form whose norm is known: moves of numbers, factors, convolutions, matrices.

``circular``: the window goes around the image. Exporters write such a padding as slices that are
joined, where step by step every border counts twice; as one circulant convolution its norm is
exactly the largest over the frequencies of the image.

A form's numbers are computed in float64: ``error`` is at least the norm of what the exact map is
off by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.norms.circulant import periodic_norm, polyphase
from workers.verification.norms.dense import dense_norm
from workers.verification.norms.spectral import ConvGeometry, conv_norm
from workers.verification.numerics import MANY, raised, sum_error

__all__ = ["Factors", "Form", "Kernel", "Matrix", "Moves", "added", "schur"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Moves:
    """Every number of the result is one of the input's, or constant.

    places: int64 in the result's shape: 1 + the place among the input's numbers, 0 for a constant.
    """

    places: Tensor
    in_shape: Shape

    @property
    def is_identity(self) -> bool:
        """Whether the result is the input, seen in its own shape or another one."""
        count = math.prod(self.in_shape)
        flat = self.places.flatten()
        return len(flat) == count and torch.equal(flat, torch.arange(1, count + 1))

    def norm(self, clock: Clock = UNLIMITED) -> float:
        """The root of how often one number is taken, at most: exactly the norm."""
        counts = torch.bincount(self.places.flatten(), minlength=2)[1:]
        most = int(counts.max())
        return 1.0 if most <= 1 else raised(math.sqrt(most))

    def wrapping(self) -> tuple[int, int, int, int] | None:
        """(top, left, bottom, right) if the result is the image with its own numbers around it."""
        if len(self.in_shape) != 3 or self.places.dim() != 3:
            return None
        (channels, height, width), (out, rows, columns) = self.in_shape, self.places.shape
        first = int(self.places[0, 0, 0]) - 1
        if out != channels or first < 0 or rows < height or columns < width:
            return None
        top, left = -(first // width % height) % height, -(first % width) % width
        row = (torch.arange(rows) - top) % height
        column = (torch.arange(columns) - left) % width
        expected = (torch.arange(channels)[:, None, None] * height + row[:, None]) * width + column
        if not torch.equal(self.places, expected + 1):
            return None
        return (top, left, rows - height - top, columns - width - left)


@dataclass(frozen=True)
class Factors:
    """Every number of the input times a factor of its own: factors [numbers], float64."""

    factors: Tensor
    in_shape: Shape
    error: float = 0.0

    def norm(self, clock: Clock = UNLIMITED) -> float:
        """The largest factor: exactly the norm, beside the error."""
        return raised(float(self.factors.abs().max()) + self.error)

    def scaled(self, rows: Tensor) -> Factors:
        """The map with every number of its result times a number [numbers]."""
        factors = self.factors * rows
        most = float(rows.abs().max())
        error = raised(self.error * most + sum_error(2) * float(factors.abs().max()), MANY)
        return replace(self, factors=factors, error=error)


@dataclass(frozen=True)
class Kernel:
    """A convolution [out, in, h, w] on images [in, *size]; ``padding`` is zeros, or circular.

    padding: (top, left, bottom, right).
    """

    weight: Tensor
    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    circular: bool = False
    error: float = 0.0

    @property
    def geometry(self) -> ConvGeometry:
        """On the image as it is padded."""
        if not self.circular:
            return ConvGeometry(self.size, self.stride, self.padding)
        top, left, bottom, right = self.padding
        return ConvGeometry((self.size[0] + top + bottom, self.size[1] + left + right), self.stride)

    @property
    def output_size(self) -> tuple[int, int]:
        """[h, w] of the result."""
        return self.geometry.output_size((self.weight.shape[2], self.weight.shape[3]))

    @property
    def takes_once(self) -> bool:
        """Whether the window goes around the image and each of its taps takes every number at one
        place at most: places are less than the image's side apart, and no number's of another."""
        sides = zip(self.size, self.output_size, self.stride, strict=True)
        return self.circular and all(
            size % stride == 0 and out <= size // stride for size, out, stride in sides
        )

    def norm(self, clock: Clock = UNLIMITED) -> float:
        """Upper bound on the operator norm; infinite where none is known."""
        if not self.circular:
            return raised(conv_norm(self.weight, self.geometry, clock) + self.error)
        if not self.takes_once:
            return math.inf
        grid = [size // stride for size, stride in zip(self.size, self.stride, strict=True)]
        largest = float(self.weight.abs().max())
        if not 0.0 < largest < math.inf:
            return self.error if largest == 0.0 else math.inf
        # A power of two, so that squares neither overflow nor underflow.
        scale = 2.0 ** math.frexp(largest)[1]
        blocks = polyphase(self.weight / scale, self.stride, (1, 1))
        return raised(periodic_norm(blocks, (grid[0], grid[1]), clock) * scale + self.error)

    def adjoint(self) -> Kernel | None:
        """The adjoint map in the same form; None where it has none."""
        height, width = self.weight.shape[2:]
        (top, left, _, _), (rows, columns) = self.padding, self.output_size
        if self.stride != (1, 1):
            return None
        above, before = height - 1 - top, width - 1 - left
        below = self.size[0] - rows + height - 1 - above
        behind = self.size[1] - columns + width - 1 - before
        if self.circular:
            if (rows, columns) != self.size:
                return None
            above, before = above % rows, before % columns
            below, behind = height - 1 - above, width - 1 - before
        padding = (above, before, below, behind)
        if min(padding) < 0:
            return None
        weight = self.weight.transpose(0, 1).flip(2, 3).contiguous()
        return replace(self, weight=weight, size=(rows, columns), padding=padding)

    def scaled(self, rows: Tensor) -> Kernel:
        """The map with every channel of its result times a number [out]."""
        weight = self.weight * rows[:, None, None, None]
        error = raised(self.error * float(rows.abs().max()) + sum_error(2) * schur(weight), MANY)
        return replace(self, weight=weight, error=error)

    def like(self, other: Kernel) -> bool:
        """Whether both read the same windows of the same images."""
        mine = (self.size, self.stride, self.padding, self.circular)
        theirs = (other.size, other.stride, other.padding, other.circular)
        return self.weight.shape == other.weight.shape and mine == theirs

    def framed(self, padding: tuple[int, int, int, int]) -> Kernel:
        """The same map in a window that reaches out to ``padding``, which is no less anywhere."""
        more = [new - old for new, old in zip(padding, self.padding, strict=True)]
        top, left, bottom, right = more
        return replace(self, weight=F.pad(self.weight, (left, right, top, bottom)), padding=padding)


@dataclass(frozen=True)
class Matrix:
    """A matrix [out, in] on flat values."""

    weight: Tensor
    error: float = 0.0

    def norm(self, clock: Clock = UNLIMITED) -> float:
        """Upper bound on the operator norm."""
        return raised(dense_norm(self.weight, clock) + self.error)

    def adjoint(self) -> Matrix:
        """The adjoint map."""
        return replace(self, weight=self.weight.T.contiguous())

    def scaled(self, rows: Tensor) -> Matrix:
        """The map with every number of its result times a number [out]."""
        weight = self.weight * rows[:, None]
        error = raised(self.error * float(rows.abs().max()) + sum_error(2) * schur(weight), MANY)
        return replace(self, weight=weight, error=error)

    def like(self, other: Matrix) -> bool:
        """Whether both have as many rows and columns."""
        return self.weight.shape == other.weight.shape


Form = Moves | Factors | Kernel | Matrix


def schur(weight: Tensor) -> float:
    """Upper bound on the norm of the entrywise absolute value of a kernel or matrix, by its largest
    sums over rows and over columns (Schur's test)."""
    if weight.numel() == 0:
        return 0.0
    size = weight.abs().flatten(2).sum(2) if weight.dim() == 4 else weight.abs()
    return raised(math.sqrt(float(size.sum(0).max()) * float(size.sum(1).max())), MANY)


def added(first: Form, second: Form) -> Form | None:
    """The sum of two maps of the same input as one form; None where it has none."""
    pair = [_factors(form) for form in (first, second)]
    if pair[0] is None:
        first, second, pair = second, first, pair[::-1]
    diagonal, more = pair
    if diagonal is not None and more is not None:
        size = float(diagonal.factors.abs().max()) + float(more.factors.abs().max())
        error = raised(diagonal.error + more.error + sum_error(2) * size, MANY)
        return replace(diagonal, factors=diagonal.factors + more.factors, error=error)
    if diagonal is not None:
        return _with_factors(second, diagonal)
    if isinstance(first, Matrix) and isinstance(second, Matrix):
        if not first.like(second):
            return None
        return Matrix(first.weight + second.weight, _lost(first, second))
    if not (isinstance(first, Kernel) and isinstance(second, Kernel)):
        return None
    same = (first.size, first.stride, first.output_size, first.circular)
    if same != (second.size, second.stride, second.output_size, second.circular):
        return None
    top, left, bottom, right = (
        max(a, b) for a, b in zip(first.padding, second.padding, strict=True)
    )
    wide, other = (kernel.framed((top, left, bottom, right)) for kernel in (first, second))
    if wide.weight.shape != other.weight.shape:
        return None
    return replace(wide, weight=wide.weight + other.weight, error=_lost(wide, other))


def _factors(form: Form) -> Factors | None:
    """The form as factors; the identity has ones."""
    if isinstance(form, Moves) and form.is_identity:
        ones = torch.ones(math.prod(form.in_shape), dtype=torch.float64)
        return Factors(ones, form.in_shape)
    return form if isinstance(form, Factors) else None


def _with_factors(form: Form, diagonal: Factors) -> Form | None:
    """The sum of a map with factors."""
    if isinstance(form, Matrix):
        if form.weight.shape[0] != form.weight.shape[1]:
            return None
        weight = form.weight + torch.diag(diagonal.factors)
        size = schur(form.weight) + float(diagonal.factors.abs().max())
        return Matrix(weight, raised(form.error + diagonal.error + sum_error(2) * size, MANY))
    if not isinstance(form, Kernel) or len(diagonal.in_shape) != 3:
        return None
    channels = diagonal.factors.reshape(diagonal.in_shape[0], -1)
    if not bool((channels == channels[:, :1]).all()):
        return None
    weight = torch.diag(channels[:, 0])[:, :, None, None]
    kernel = Kernel(weight, form.size, circular=form.circular, error=diagonal.error)
    return added(form, kernel)


def _lost(first: Kernel | Matrix, second: Kernel | Matrix) -> float:
    """What a sum of two maps is off by."""
    size = schur(first.weight) + schur(second.weight)
    return raised(first.error + second.error + sum_error(2) * size, MANY)
