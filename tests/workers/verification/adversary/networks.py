"""Tiny networks of any layers, whose last one leaves a bound no room around the clean input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from models.layers.activations import (
    AtLeast,
    AtMost,
    Clip,
    MaxMin,
    ReLUTheta,
    Sigmoid,
    Softplus,
    Tanh,
)
from models.layers.joins import (
    Concat,
    Maximum,
    Minimum,
    Product,
    ReduceMean,
    ReduceSum,
    Slice,
)
from models.layers.kinds import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Divide,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Multiply,
    Normalize,
    Pad,
    Permute,
    ReLU,
    Reshape,
    Shift,
)
from tests.workers.verification.adversary.groups import Groups
from tests.workers.verification.adversary.growth import LARGEST

__all__ = ["Body"]


class Body(Groups):
    """Layers at random; a head whose two logits meet near the clean input ends it."""

    def linear(self) -> None:
        """A dense layer (or a 1x1 convolution), sometimes with duplicate or dead rows."""
        inputs = self.shape[0]
        out = int(self.random.integers(1, 4))
        image = len(self.shape) == 3
        kernel = (1, int(self.random.integers(1, 1 + min(2, self.shape[2])))) if image else ()
        weight = self.weights(out, inputs, *kernel)
        if out > 1 and self.random.integers(3) == 0:
            weight[1] = weight[0] * float(self.random.choice([1.0, -1.0]))
        make: Any = Conv2d if image else Linear
        with torch.no_grad():
            plain = make(weight)(self.value)
        self.add(make(weight, self.biases(out, plain)))

    def more_steps(self) -> None:
        """A dense layer."""
        self.linear()

    def elementwise(self) -> None:
        """A scale, a shift, a normalisation, a batch norm."""
        channels = self.shape[0]
        tail = [1] * (len(self.shape) - 1)
        kind = self.random.integers(5)
        if kind == 0:
            self.add(Multiply(self.weights(channels).reshape(-1, *tail)))
        elif kind == 1:
            value = self.weights(channels)
            self.add(Divide(torch.where(value == 0, 1.0, value).reshape(-1, *tail)))
        elif kind == 2:
            self.shift()
        elif kind == 3:
            std = self.weights(channels).abs()
            self.add(Normalize(self.levels().flatten(), torch.where(std == 0, 1.0, std)))
        else:
            self.add(
                BatchNorm(
                    self.weights(channels),
                    self.weights(channels),
                    self.levels().flatten(),
                    self.weights(channels).abs(),
                    eps=float(self.random.choice([1e-5, 1e-12, 1.0])),
                )
            )

    def activation(self) -> None:
        """One of all, kinks and limits next to values that are met; one of three is curved."""
        kind = self.random.integers(16)
        if kind <= 1:
            self.add(ReLU())
        elif kind == 2:
            slope = self.random.choice([0.0, 1e-30, 0.01, 0.3, 1.0, self.random.uniform(0, 1)])
            self.add(LeakyReLU(slope=float(slope)))
        elif kind <= 4:
            low, high = sorted((self.level(), self.level()))
            if low == high:
                high = float(np.nextafter(np.float32(high), np.float32(np.inf)))
            self.add(Clip(low=low, high=min(high, LARGEST)))
        elif kind == 5:
            self.add(AtLeast(self.levels()))
        elif kind == 6:
            self.add(AtMost(self.levels()))
        elif kind == 7:
            self.add(ReLUTheta(self.levels().abs()))
        elif kind == 8:
            self.add((Sigmoid, Tanh, Softplus)[int(self.random.integers(3))]())
        elif kind > 10:
            self.curve()
        elif self.shape[0] % 2 == 0:
            self.add(MaxMin())
        else:
            self.window()

    def shift(self) -> None:
        """By what nearly cancels the clean value."""
        levels = [self.tamed(-level) for level in self.levels().flatten().tolist()]
        self.add(Shift(torch.tensor(levels).reshape(-1, *([1] * (len(self.shape) - 1)))))

    def window(self) -> None:
        """AtLeast and AtMost: a box of denormal, narrow or ordinary width per channel."""
        low, high = self.levels(), self.levels()
        if self.random.integers(3):
            # In units of the least denormal number, or of 2^25 of them: 5e-38.
            unit = 2.0**-149 * float(self.random.choice([1.0, 1.0, 2.0**25]))
            places = tuple(low.shape)
            low = torch.from_numpy(np.floor(10.0 ** self.random.uniform(0, 5, places)))
            width = torch.from_numpy(np.floor(10.0 ** self.random.uniform(0, 1, places)))
            if self.random.integers(3) == 0:
                low = -torch.floor(width * float(self.random.uniform(0, 1)))
            low, high = (low * unit).float(), ((low + width) * unit).float()
        self.add(AtLeast(torch.minimum(low, high)))
        self.add(AtMost(torch.maximum(low, high)))

    def enlarge(self) -> None:
        """A dense layer (or 1x1 convolution) of huge weights."""
        inputs, out = self.shape[0], int(self.random.integers(1, 3))
        size = 10.0 ** self.random.uniform(20, 30 if self.safe else 37)
        weight = np.asarray(size * self.random.uniform(-1, 1, (out, inputs)), dtype=np.float32)
        tail = [1] * (2 if len(self.shape) == 3 else 0)
        make: Any = Conv2d if tail else Linear
        self.add(make(torch.from_numpy(weight).reshape(out, inputs, *tail)))

    def small_then_large(self) -> None:
        """Values of denormal size or width, what has a kink there, and huge weights behind it."""
        kind = self.random.integers(5)
        if kind <= 2:
            self.window()
        elif kind == 3:
            for _ in range(int(self.random.integers(1, 3))):
                shrink = 10.0 ** self.random.uniform(-29, -15)
                shape = (self.shape[0], *([1] * (len(self.shape) - 1)))
                self.add(Multiply(torch.full(shape, shrink)))
        kind = self.random.integers(5)
        if kind == 0:
            self.linear()
        elif kind == 1:
            self.join()
        if kind >= 1:
            if self.random.integers(2):
                self.shift()
            self.activation()
        self.enlarge()
        if self.random.integers(3) == 0:
            self.activation()

    def join(self) -> None:
        """A residual sum, a product or an extremum of two branches, a concatenation, a cut."""
        before = self.last
        kind = self.random.integers(9)
        if kind <= 1:
            self.elementwise()
            self.add(Add(), self.last, before)
        elif kind == 2:
            self.elementwise()
            self.add(Maximum() if self.random.integers(2) else Minimum(), self.last, before)
        elif kind == 3:
            self.elementwise()
            self.add(Concat(axis=0), before, self.last)
        elif kind == 4:
            self.arrangement()
        elif kind <= 6:
            for branch in (self.elementwise, self.activation):
                if self.random.integers(2):
                    branch()
            left, self.last = self.last, before
            if self.random.integers(2):
                self.activation()
            self.add(Product(), left, self.last)
        elif kind == 7 and self.shape[0] > 1:
            self.add(Slice(axis=0, start=int(self.random.integers(2)), stop=self.shape[0]))
        elif len(self.shape) == 1:
            mean = bool(self.random.integers(2))
            make = ReduceMean if mean else ReduceSum
            self.add(make(axes=(0,), keepdims=True))
        else:
            self.pool()

    def pool(self) -> None:
        """Pooling of an image, or padding."""
        width = min(2, self.shape[2])
        kind = self.random.integers(3)
        if kind == 0:
            self.add(Pad(padding=(0, 1, 0, 0), value=self.level()))
        elif kind == 1:
            self.add(MaxPool2d(kernel=(1, width), stride=1))
        else:
            self.add(AvgPool2d(kernel=(1, width), stride=1))

    def flatten(self) -> None:
        """[features]."""
        if len(self.shape) == 3:
            if self.random.integers(2):
                self.add(Permute(axes=(1, 2, 0)))
            self.add(Reshape(shape=(math.prod(self.shape),)))

    def tight_head(self) -> None:
        """One feature against its own least or largest value nearby: no bound has any room."""
        value = self.value
        unit = int(self.random.integers(value.shape[1]))
        column = value[: int(self.random.integers(2, len(value) + 1)), unit]
        sign = float(self.random.choice([-1.0, 1.0]))
        weight = torch.zeros(2, value.shape[1])
        weight[0, unit] = sign
        extreme = float((sign * column).nan_to_num(0.0).min())
        self.add(Linear(weight, torch.tensor([0.0, self.tamed(extreme)])))

    def head(self) -> None:
        """Two or three logits whose order changes between the clean input and a neighbour."""
        value = self.value
        moved = torch.isfinite(value) & (value != value[:1])
        places = moved.nonzero()
        features = value.shape[1]
        if len(places):
            # Rows are sorted by distance: a small power prefers near ones.
            row, unit = places[int(len(places) * self.random.random() ** 3)].tolist()
            if self.random.integers(4):
                # The extreme of all points up to some distance: a bound has no room at all.
                last = len(value) if self.random.integers(2) else row + 1
                column = torch.where(moved[:last, unit], value[:last, unit], value[0, unit])
                row = int(column.argmax() if self.random.integers(2) else column.argmin())
        else:
            row, unit = 0, 0
        here, there = np.float32(value[0, unit]), np.float32(value[row, unit])
        between = (
            there,
            there,
            np.nextafter(there, here),
            np.float32(0.5 * (np.float64(here) + there)),
            np.nextafter(here, there),
            np.float32(here + (np.float64(there) - here) * 10.0 ** self.random.uniform(-9, 0)),
        )[int(self.random.integers(6))]
        scale = 1.0 if self.random.integers(2) else self.scale() or 1.0
        weight = torch.zeros(2, features)
        weight[0, unit] = scale if self.random.integers(3) else -scale
        bias = torch.tensor([0.0, float(between) * float(weight[0, unit])])
        if self.random.integers(3) == 0:
            bias = torch.tensor([-float(bias[1]), 0.0])
        if self.random.integers(3) == 0 and features > 1:
            other = (unit + 1) % features
            weight[1, other] = self.scale()
            bias[1] -= float(weight[1, other]) * float(value[0, other])
        if self.random.integers(4) == 0:
            weight = torch.cat([weight, torch.zeros(1, features)])
            bias = torch.cat([bias, torch.tensor([-LARGEST / 10])])
        bias = bias.nan_to_num(0.0, 0.0, 0.0)
        if self.random.integers(3) == 0:
            # A backdoor: what exceeds the level, alone and enlarged.
            self.add(Shift(-torch.full((features,), float(between)).nan_to_num(0.0, 0.0, 0.0)))
            self.add(ReLU())
            weight = torch.zeros(2, features)
            weight[1, unit] = abs(self.scale()) or 1.0
            tiny = abs(self.scale()) if self.random.integers(2) else 1e-30
            bias = torch.tensor([tiny, 0.0])
        bias = torch.tensor([self.tamed(number) for number in bias.tolist()])
        self.add(Linear(weight, bias))
