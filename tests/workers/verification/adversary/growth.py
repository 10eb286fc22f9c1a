"""A network that grows layer by layer, and the numbers that its layers are made of.

Weights, biases and levels of any scale from denormal to 1e38, chosen with an eye on the values
that the network has around one clean input: they cancel, or meet a kink to within a few ulps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.layers.kinds import Layer
from models.network import INPUT
from workers.verification.graph.affine import FLOAT32_SAFE

__all__ = ["LARGEST", "Growth", "Points"]

LARGEST = float(np.finfo(np.float32).max)
Points = NDArray[np.float32]


class Growth:
    """Rows of a network so far, and its values at the points around the clean input."""

    def __init__(self, shape: tuple[int, ...], points: Points, random: np.random.Generator) -> None:
        self.input_shape = shape
        self.random = random
        self.rows: list[tuple[str, Layer, tuple[str, ...]]] = []
        self.values: dict[str, Tensor] = {INPUT: torch.from_numpy(points)}
        self.last = INPUT
        # Within what the float32 pass is trusted with, as a rule: it is the one with least room.
        self.safe = bool(random.integers(4))

    @property
    def value(self) -> Tensor:
        """[points, *shape]; row 0 is the clean input."""
        return self.values[self.last]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the last value."""
        return tuple(self.value.shape[1:])

    def add(self, layer: Layer, *inputs: str) -> str:
        """One more layer; its name."""
        inputs = inputs or (self.last,)
        name = f"n{len(self.rows)}"
        with torch.no_grad():
            self.values[name] = layer(*(self.values[source] for source in inputs))
        self.rows.append((name, layer, inputs))
        self.last = name
        return name

    def tamed(self, number: float) -> float:
        """A float32, in the range of ``FLOAT32_SAFE`` where this body keeps to it."""
        number = float(np.float32(np.clip(number, -LARGEST, LARGEST)))
        if self.safe and number != 0.0:
            low, high = FLOAT32_SAFE
            number = math.copysign(min(max(abs(number), low), high), number)
        return number

    def scale(self) -> float:
        """A number of ``drawn_scale``, tamed."""
        return self.tamed(self.drawn_scale())

    def drawn_scale(self) -> float:
        """1e-38 to 1e38, log-uniform, or such that the clean value becomes ordinary; any sign."""
        sign = float(self.random.choice([-1.0, 1.0]))
        kind = self.random.integers(8)
        if kind == 0:
            return 0.0
        if kind == 1:
            return sign
        if kind == 2:
            return sign * float(np.float32(2.0 ** self.random.integers(-149, 128)))
        if kind == 3:
            return sign * float(np.float32(10.0 ** self.random.uniform(-45, 38)))
        if kind == 4:
            return sign * float(np.float32(10.0 ** self.random.uniform(-3, 3)))
        # The change around the clean input, or its value, becomes this large.
        size = float(self.value[0].abs().max())
        moves = (self.value - self.value[:1]).abs()
        moves = moves[torch.isfinite(moves) & (moves > 0)]
        if kind > 5 and moves.numel():
            size = float(moves.min())
        if not 0 < size < math.inf:
            size = 1.0
        wanted = 10.0 ** self.random.choice([self.random.uniform(-40, 30), 0.0, 0.0])
        return sign * float(np.float32(min(wanted / size, 1e38)))

    def weights(self, *shape: int) -> Tensor:
        """Random numbers of one scale or of several, with duplicates and cancelling pairs."""
        result = torch.zeros(shape)
        flat = result.view(-1)
        common = self.scale()
        for place in range(flat.numel()):
            kind = self.random.integers(6)
            if place and kind == 0:
                flat[place] = -flat[place - 1]
            elif place and kind == 1:
                flat[place] = float(np.nextafter(np.float32(-flat[place - 1]), np.float32(np.inf)))
            elif place and kind == 2:
                flat[place] = flat[place - 1]
            elif kind == 3:
                flat[place] = self.scale()
            else:
                flat[place] = common * float(self.random.uniform(-1, 1))
            flat[place] = self.tamed(float(flat[place]))
        return result

    def biases(self, size: int, before: Tensor) -> Tensor:
        """None, up to 1e9, or what nearly cancels the clean value (to a few ulps)."""
        result = torch.zeros(size)
        for place in range(size):
            kind = self.random.integers(4)
            if kind == 0:
                result[place] = self.scale()
            elif kind == 1:
                result[place] = float(self.random.uniform(-1e9, 1e9))
            elif kind == 2:
                row = before[:, place].flatten(1) if before.dim() > 2 else before[:, place, None]
                result[place] = -row[self.near(), 0]
        result = result.nan_to_num(0.0, 0.0, 0.0)
        return torch.tensor([self.tamed(number) for number in result.tolist()])

    def near(self) -> int:
        """A row of the points, one near the clean input as a rule."""
        last = len(self.value) - 1
        return int(self.random.integers(0, last + 1)) if self.random.integers(2) else 0

    def level(self) -> float:
        """A number at, or a few ulps beside, some value around the clean input."""
        row = self.value[self.near()].flatten()
        level = np.float32(row[int(self.random.integers(row.numel()))])
        level = np.float32(np.nan_to_num(level, nan=0.0, posinf=LARGEST, neginf=-LARGEST))
        for _ in range(int(self.random.integers(3))):
            level = np.nextafter(level, np.float32(self.random.choice([-np.inf, np.inf])))
        return float(level) if np.isfinite(level) else 0.0

    def levels(self) -> Tensor:
        """One ``level`` per channel, broadcastable to the shape."""
        levels = [self.level() for _ in range(self.shape[0])]
        return torch.tensor(levels).reshape(-1, *([1] * (len(self.shape) - 1)))
