"""Rows of linear coefficients on one value of the network, dense or as patches of a feature map.

A backward pass starts with one row per neuron to be bounded. A neuron of a convolutional layer sees
only a patch of the earlier maps, so its row is kept as that patch, with its place; patches grow
with each convolution passed and become dense where they would cover most of the map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LinearForm", "PatchGrid"]

#: Windows of at most so many numbers are kept for the next rows.
KEPT_WINDOWS = 2**20
#: Patches of at least this share of the map become dense rows: those need no windows cut out of
#: values, no mask, and for a single sample no copies of what they are multiplied with.
DENSE_SHARE = 2 / 3

Shape = tuple[int, ...]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Where patches lie: row r's top left corner is at step * (i[r], j[r]) + origin of the map.

    i, j [rows]: the neuron's place on its own map of size ``grid``; size: of the map that the
    patches lie on (they may reach beyond it); extent: (height, width) of a patch.
    """

    i: Tensor
    j: Tensor
    grid: Pair
    step: Pair
    origin: Pair
    extent: Pair
    size: Pair
    #: Windows of values already cut out for these rows: both signs of a row use the same ones.
    _picked: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _moved: dict[tuple[object, ...], PatchGrid] = field(default_factory=dict)
    #: All windows of a value, kept for other grids of the same geometry (other rows).
    windows: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def moved(
        self, stride: Pair, padding: Pair, dilation: Pair, kernel: Pair, size: Pair
    ) -> PatchGrid:
        """The patch grid on the input of a convolution whose output the patches lie on."""
        key = (stride, padding, dilation, kernel, size)
        if key not in self._moved:
            axes = range(2)
            self._moved[key] = PatchGrid(
                self.i,
                self.j,
                self.grid,
                (self.step[0] * stride[0], self.step[1] * stride[1]),
                (self.origin[0] * stride[0] - padding[0], self.origin[1] * stride[1] - padding[1]),
                tuple(  # type: ignore[arg-type]
                    (self.extent[a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1
                    for a in axes
                ),
                size,
                windows=self.windows,
            )
        return self._moved[key]

    def overhang(self) -> tuple[Pair, Pair]:
        """How far patches may reach beyond the map: (before, after) per axis."""
        result = []
        for axis in range(2):
            last = self.step[axis] * (self.grid[axis] - 1) + self.origin[axis] + self.extent[axis]
            result.append((max(0, -self.origin[axis]), max(0, last - self.size[axis])))
        return (result[0], result[1])

    def pick(self, values: Tensor, sample: Tensor | None) -> Tensor:
        """Patches [rows, c, h, w] of values [batch, c, *size], 0 outside the map."""
        known = self._picked.get(id(values))
        if known is not None:
            return known[1]
        flat = self._windows_of(values)
        place = self.i * self.grid[1] + self.j
        if sample is not None:
            place = place + sample * (self.grid[0] * self.grid[1])
        picked = flat.index_select(0, place)
        self._picked[id(values)] = (values, picked)
        return picked

    def pick_shared(self, value: Tensor, shape: Shape) -> Tensor:
        """The same of one value for all samples, which broadcasts to ``shape``."""
        # Windows are known by the very tensor that they were cut from.
        key = ("shared", id(value), shape)
        if key not in self.windows:
            self.windows[key] = (value, value.expand(shape)[None])
        return self.pick(self.windows[key][1], None)

    def inside(self, like: Tensor) -> Tensor:
        """1 inside the map and 0 outside, [rows, 1, h, w] in ``like``'s dtype."""
        key = ("ones", self.size, like.dtype)
        if key not in self.windows:
            ones = torch.ones(1, 1, *self.size, dtype=like.dtype, device=like.device)
            self.windows[key] = (ones, ones)
        return self.pick(self.windows[key][1], None)

    def _windows_of(self, values: Tensor) -> Tensor:
        """The patches of all places of the grid, [batch * grid, c, h, w]."""
        key = (id(values), self.grid, self.step, self.origin, self.extent)
        known = self.windows.get(key)
        if known is not None:
            return known[1]
        (low_h, high_h), (low_w, high_w) = self.overhang()
        padded = F.pad(values, (low_w, high_w, low_h, high_h))
        padded = padded[:, :, max(0, self.origin[0]) :, max(0, self.origin[1]) :]
        windows = padded.unfold(2, self.extent[0], self.step[0])
        windows = windows.unfold(3, self.extent[1], self.step[1])
        windows = windows[:, :, : self.grid[0], : self.grid[1]].permute(0, 2, 3, 1, 4, 5)
        flat = windows.reshape(-1, *windows.shape[3:])
        if flat.numel() <= KEPT_WINDOWS:
            self.windows[key] = (values, flat)
        return flat


@dataclass(frozen=True, eq=False)
class LinearForm:
    """coefficients [rows, *shape], or [rows, c, h, w] of the patches that ``patch_grid`` places.

    sample [rows]: which sample of the batch each row belongs to; None: the batch has one sample.
    """

    coefficients: Tensor
    shape: Shape
    sample: Tensor | None
    patch_grid: PatchGrid | None = None

    @property
    def is_patch(self) -> bool:
        """Whether the coefficients are patches."""
        return self.patch_grid is not None

    def pick(self, values: Tensor) -> Tensor:
        """values [batch, *shape] where the coefficients are: broadcastable to them, 0 outside."""
        if self.patch_grid is not None:
            return self.patch_grid.pick(values, self.sample)
        return values if self.sample is None else values.index_select(0, self.sample)

    def pick_constant(self, value: Tensor) -> Tensor:
        """The same for one value [*shape] (or broadcastable to it) shared by all samples."""
        if self.patch_grid is None:
            return value.expand(self.shape)
        if value.dim() == 0 or (value.dim() == 3 and value.shape[1:] == (1, 1)):
            return value
        return self.patch_grid.pick_shared(value, self.shape)

    def of_samples(self, values: Tensor) -> Tensor:
        """values [batch] for each row, [rows] (or [1] for a single sample)."""
        return values if self.sample is None else values[self.sample]

    def with_coefficients(self, coefficients: Tensor) -> LinearForm:
        """The same rows with other coefficients of the same form."""
        return replace(self, coefficients=coefficients)

    def masked(self) -> LinearForm:
        """Coefficients outside the map set to zero."""
        if self.patch_grid is None or not any(any(pair) for pair in self.patch_grid.overhang()):
            return self
        return self.with_coefficients(self.coefficients * self.patch_grid.inside(self.coefficients))

    def dense(self) -> LinearForm:
        """The same rows over the whole map."""
        patch_grid = self.patch_grid
        if patch_grid is None:
            return self
        (low_h, high_h), (low_w, high_w) = patch_grid.overhang()
        count, channels, height, width = self.coefficients.shape
        full_h, full_w = self.shape[1] + low_h + high_h, self.shape[2] + low_w + high_w
        device = patch_grid.i.device
        top = patch_grid.i * patch_grid.step[0] + (patch_grid.origin[0] + low_h)
        left = patch_grid.j * patch_grid.step[1] + (patch_grid.origin[1] + low_w)
        rows = top[:, None, None] + torch.arange(height, device=device)[:, None]
        columns = left[:, None, None] + torch.arange(width, device=device)
        place = (rows * full_w + columns).reshape(count, 1, -1).expand(-1, channels, -1)
        full = self.coefficients.new_zeros(count, channels, full_h * full_w)
        full = full.scatter(2, place, self.coefficients.reshape(count, channels, -1))
        full = full.reshape(count, channels, full_h, full_w)
        full = full[:, :, low_h : low_h + self.shape[1], low_w : low_w + self.shape[2]]
        return LinearForm(full.contiguous(), self.shape, self.sample)

    def compact(self) -> LinearForm:
        """Dense where patches would be nearly as large as the map; 0 outside the map."""
        if self.patch_grid is None:
            return self
        numbers = math.prod(self.patch_grid.extent)
        if numbers >= DENSE_SHARE * math.prod(self.shape[1:]):
            return self.dense()
        return self.masked()

    def plus(self, other: LinearForm) -> LinearForm:
        """Sum of two sets of rows on the same value."""
        if self.patch_grid is None and other.patch_grid is None:
            return self.with_coefficients(self.coefficients + other.coefficients)
        if self.patch_grid is not None and other.patch_grid is not None:
            merged = _merged(self, self.patch_grid, other, other.patch_grid)
            if merged is not None:
                return merged
        return self.dense().plus(other.dense())


def _merged(
    first: LinearForm, one: PatchGrid, second: LinearForm, two: PatchGrid
) -> LinearForm | None:
    """Two sets of patches on one grid, where their places differ by the same offset everywhere."""
    if one.step != two.step:
        return None
    dy, dx = two.origin[0] - one.origin[0], two.origin[1] - one.origin[1]
    (h1, w1), (h2, w2) = one.extent, two.extent
    top, left = min(0, dy), min(0, dx)
    bottom, far = max(h1, dy + h2), max(w1, dx + w2)
    padded = F.pad(first.coefficients, (-left, far - w1, -top, bottom - h1))
    other = F.pad(second.coefficients, (dx - left, far - dx - w2, dy - top, bottom - dy - h2))
    patch_grid = replace(
        one,
        origin=(one.origin[0] + top, one.origin[1] + left),
        extent=(bottom - top, far - left),
        _picked={},
        _moved={},
    )
    return LinearForm(padded + other, first.shape, first.sample, patch_grid)
