"""Networks built to be certified falsely: the nearest wrong input is known before any bound runs.

A case is a tiny network of any layers, at any scale from denormal to 1e38, whose last layer is put
between what the body computes at a clean input and at one of its neighbours. The nearest wrong
float32 input found (by ONNX Runtime, on a grid around the clean one) is then held against every
bound, in every arithmetic: whoever proves that distance lies.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.layers.activations import AtLeast, AtMost, Clip, MaxMin, ReLUTheta, Sigmoid, Tanh
from models.layers.joins import Concat, Maximum, Minimum, ReduceMean, ReduceSum, Slice
from models.layers.kinds import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Divide,
    Layer,
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
from models.network import INPUT, Network
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.graph.affine import FLOAT32_SAFE
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Bound, Budget
from workers.verification.region import Region
from workers.verification.results import CertificationRequest

__all__ = ["ASKED", "FALSE", "Case", "Tally", "ask", "find_case"]

#: Asked shares of the distance to the nearest wrong input; from ``FALSE`` on each proof is false.
ASKED = (0.01, 0.5, 0.9, 1.0, 1.5, 30.0)
FALSE = 3

#: Bounds from this cost on are asked less often where not everything is asked.
EXPENSIVE = 5_000

NORMS = ("l2", "linf")
#: Arithmetics (None: as the cascade runs), and how much more often than ``share`` each is asked.
ASKED_IN: dict[torch.dtype | None, float] = {torch.float32: 2.0, torch.float64: 1.0, None: 1.0}
CPU = torch.device("cpu")
_LARGEST = float(np.finfo(np.float32).max)

Points = NDArray[np.float32]


@dataclass
class Case:
    """A network, a clean input, its label, and the nearest wrong input by (norm, clip)."""

    network: Network
    deployed: OnnxRuntimeModel
    x: Points
    label: int
    logits: Points
    wrong: dict[tuple[str, bool], tuple[float, Points]]


class Body:
    """Grows a network layer by layer and knows its values at the points around the clean input."""

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
        number = float(np.float32(np.clip(number, -_LARGEST, _LARGEST)))
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
        level = np.float32(np.nan_to_num(level, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST))
        for _ in range(int(self.random.integers(3))):
            level = np.nextafter(level, np.float32(self.random.choice([-np.inf, np.inf])))
        return float(level) if np.isfinite(level) else 0.0

    def levels(self) -> Tensor:
        """One ``level`` per channel, broadcastable to the shape."""
        levels = [self.level() for _ in range(self.shape[0])]
        return torch.tensor(levels).reshape(-1, *([1] * (len(self.shape) - 1)))

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
        """One of all, kinks and limits next to values that are met."""
        kind = self.random.integers(11)
        if kind <= 1:
            self.add(ReLU())
        elif kind == 2:
            slope = self.random.choice([0.0, 1e-30, 0.01, 0.3, 1.0, self.random.uniform(0, 1)])
            self.add(LeakyReLU(slope=float(slope)))
        elif kind <= 4:
            low, high = sorted((self.level(), self.level()))
            if low == high:
                high = float(np.nextafter(np.float32(high), np.float32(np.inf)))
            self.add(Clip(low=low, high=min(high, _LARGEST)))
        elif kind == 5:
            self.add(AtLeast(self.levels()))
        elif kind == 6:
            self.add(AtMost(self.levels()))
        elif kind == 7:
            self.add(ReLUTheta(self.levels().abs()))
        elif kind == 8:
            self.add(Sigmoid() if self.random.integers(2) else Tanh())
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
        """A residual sum, a maximum or a minimum of two branches, a concatenation, a cut."""
        before = self.last
        kind = self.random.integers(6)
        if kind <= 1:
            self.elementwise()
            self.add(Add(), self.last, before)
        elif kind == 2:
            self.elementwise()
            self.add(Maximum() if self.random.integers(2) else Minimum(), self.last, before)
        elif kind == 3:
            self.elementwise()
            self.add(Concat(axis=0), before, self.last)
        elif kind == 4 and self.shape[0] > 1:
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
            bias = torch.cat([bias, torch.tensor([-_LARGEST / 10])])
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


def clean_input(shape: tuple[int, ...], random: np.random.Generator, *, pixels: bool) -> Points:
    """Ordinary pixels, 0, 1, the least denormal; without ``pixels`` any finite number too."""
    x = random.random((1, *shape)).astype(np.float32)
    denormal = random.integers(4) == 0
    for place in np.ndindex(x.shape):
        kind = 2 if denormal else random.integers(8 if pixels else 10)
        if kind == 0:
            x[place] = 0.0
        elif kind == 1:
            x[place] = 1.0
        elif kind == 2:
            x[place] = np.float32(2.0**-149 * np.floor(10.0 ** random.uniform(0, 3)))
        elif kind == 3:
            x[place] = 10.0 ** random.uniform(-44, 0)
        elif kind >= 8:
            x[place] = random.choice([-1.0, 1.0]) * 10.0 ** random.uniform(-44, 36)
    return x


def neighbours(x: Points, random: np.random.Generator) -> Points:
    """Points around x [1, *shape], x itself first, the others sorted by distance."""
    flat = x.reshape(-1).astype(np.float64)
    size = flat.size
    moves = np.concatenate([10.0 ** np.linspace(-45, 1, 70), 10.0 ** np.linspace(-8, 0, 25)])
    points = [flat]
    for place in range(size):
        for sign in (-1.0, 1.0):
            near = np.float32(flat[place])
            for _ in range(3):
                near = np.nextafter(near, np.float32(sign * np.inf))
                points.append(np.where(np.arange(size) == place, float(near), flat))
            for move in moves:
                points.append(flat + sign * move * (np.arange(size) == place))
    for _ in range(0 if size == 1 else 8):
        signs = random.choice([-1.0, 0.0, 1.0], size)
        points += [flat + signs * move for move in moves]
    points += [flat + random.normal(size=size) * 10.0 ** random.uniform(-9, 0) for _ in range(40)]
    points += [*random.random((40, size))]
    stacked = np.unique(np.clip(np.stack(points), -_LARGEST, _LARGEST).astype(np.float32), axis=0)
    distance = np.abs(stacked.astype(np.float64) - flat).max(1)
    stacked = stacked[np.argsort(distance, kind="stable")]
    return np.ascontiguousarray(stacked.reshape(-1, *x.shape[1:]))


def denormal_grid(x: Points) -> Points:
    """Every point a few least denormal numbers around x, itself first, sorted by distance."""
    reach = {1: 12, 2: 6}.get(x.size, 3)
    steps = np.arange(-reach, reach + 1) * 2.0**-149
    moves = np.stack(np.meshgrid(*[steps] * x.size, indexing="ij"), axis=-1).reshape(-1, x.size)
    moves = moves[np.argsort(np.abs(moves).max(1), kind="stable")]
    points = (x.reshape(1, -1).astype(np.float64) + moves).astype(np.float32)
    return np.ascontiguousarray(points.reshape(-1, *x.shape[1:]))


def distances(points: Points, x: Points, norm: str) -> NDArray[np.float64]:
    """At least the exact distances (a relative 1e-14 above), [points]."""
    moves = points.reshape(len(points), -1).astype(np.float64) - x.reshape(1, -1)
    size = np.abs(moves).max(1)
    if norm == "l2":
        unit = np.where(size > 0, size, 1.0)
        size = np.sqrt(np.square(moves / unit[:, None]).sum(1)) * size
    return size * (1.0 + 1e-14)


def wrong_rows(logits: Points, label: int) -> NDArray[np.bool_]:
    """Where the label's logit is not strictly the largest, or something is not finite."""
    others = np.delete(logits, label, axis=1).max(1)
    return ~((logits[:, label] > others) & np.isfinite(logits).all(1))


def nearest(
    deployed: OnnxRuntimeModel, x: Points, label: int, points: Points, norm: str
) -> tuple[float, Points] | None:
    """The nearest wrong point, sharpened by cutting the way to it; None where there is none."""
    found: tuple[float, Points] | None = None
    for _ in range(4):
        wrong = points[wrong_rows(deployed(points), label)]
        if not len(wrong):
            break
        distance = distances(wrong, x, norm)
        best = int(distance.argmin())
        if found is not None and distance[best] >= found[0]:
            break
        found = (float(distance[best]), wrong[best : best + 1])
        share = np.linspace(0.0, 1.0, 65).reshape(-1, *([1] * (x.ndim - 1)))
        way = x + share * (found[1].astype(np.float64) - x)
        points = np.ascontiguousarray(way.astype(np.float32))
    return found


@np.errstate(all="ignore")
def find_case(seed: int, *, dimension: int | None = None) -> Case | None:
    """The case of this seed, or None where the network gives no answer or no wrong input."""
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 4)) if dimension is None else dimension
    shapes: list[tuple[int, ...]] = [(size,), (size,), (1, 1, size), (size, 1, 1)]
    shape = shapes[int(random.integers(4))]
    pixels = bool(random.integers(4))
    x = clean_input(shape, random, pixels=pixels)
    tight = random.integers(3) == 0
    if tight:
        least = 0 if pixels else -8
        x = np.asarray(random.integers(least, 9, x.shape) * 2.0**-149, dtype=np.float32)
    points = denormal_grid(x) if tight else neighbours(x, random)
    if tight and pixels:
        points = points[(points.reshape(len(points), -1) >= 0).all(1)]
    body = Body(shape, np.ascontiguousarray(np.concatenate([x, points])), random)
    staged = tight or bool(random.integers(2))
    if tight:
        body.safe = True
        for _ in range(int(random.integers(1, 3))):
            body.join() if random.integers(4) == 0 else body.activation()
        body.enlarge()
    elif staged:
        body.small_then_large()
    for _ in range(0 if tight else int(random.integers(not staged, 2 if staged else 5))):
        kind = random.integers(8)
        if kind <= 2:
            body.linear()
        elif kind == 3:
            body.elementwise()
        elif kind <= 5:
            body.activation()
        elif kind == 6:
            body.join()
        else:
            body.window()
    body.flatten()
    if tight:
        body.tight_head()
    else:
        body.head()
    network = Network(shape, body.rows).eval()
    deployed = OnnxRuntimeModel(export_onnx(network), shape)
    logits = deployed(x)
    label = int(logits[0].argmax())
    if bool(wrong_rows(logits, label)[0]):
        return None
    wrong: dict[tuple[str, bool], tuple[float, Points]] = {}
    for clip in (False, True) if pixels else (False,):
        flat = points.reshape(len(points), -1)
        allowed = points[((flat >= 0) & (flat <= 1)).all(1)] if clip else points
        for norm in NORMS:
            found = nearest(deployed, x, label, allowed, norm)
            if found is not None:
                wrong[norm, clip] = found
    if not wrong:
        return None
    return Case(network, deployed, x, label, logits, wrong)


@dataclass
class Tally:
    """What was asked and answered."""

    graphs: int = 0
    questions: int = 0
    #: Proofs of distances at which nothing wrong is known, and of how many such questions.
    proved: int = 0
    allowed: int = 0
    #: Of those at a hundredth of the distance.
    near: int = 0
    false: list[str] = field(default_factory=list)
    asked_of: dict[str, int] = field(default_factory=dict)
    proved_of: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, proved: list[bool]) -> bool:
        """Count one bound's answers to ``ASKED``; whether one of them is false."""
        self.questions += len(proved)
        self.allowed += FALSE
        self.proved += sum(proved[:FALSE])
        self.near += proved[0]
        self.asked_of[name] = self.asked_of.get(name, 0) + 1
        self.proved_of[name] = self.proved_of.get(name, 0) + proved[0]
        return any(proved[FALSE:])


def ask(case: Case, tally: Tally, name: str, *, seed: int = 0, share: float = 1.0) -> None:
    """Bounds in every arithmetic, and the cascade's radius: what is false goes to the tally.

    ``name`` is how the case is called there. share: of the ways to ask (norm, pixel box,
    arithmetic) that are tried, chosen by ``seed``; of the dearest bounds and of the cascade, which
    repeat what others prove, a quarter of that.
    """
    random = np.random.default_rng(seed)
    tally.graphs += 1
    compiled = CompiledNetwork.compile(case.network)
    x, labels = torch.from_numpy(case.x), torch.tensor([case.label])
    others = np.delete(case.logits.astype(np.float64), case.label, axis=1).max()
    margin = torch.tensor([float(case.logits[0, case.label]) - float(others)], dtype=torch.float64)
    for ((norm, clip), (distance, _)), dtype in itertools.product(case.wrong.items(), ASKED_IN):
        if random.random() >= share * ASKED_IN[dtype]:
            continue
        problem = Problem(compiled, True, CPU, dtype)
        epsilons = [portion * distance for portion in ASKED]
        for bound in BOUNDS.values():
            if norm not in bound.norms or (
                share < 1.0 and bound.expected_passes >= EXPENSIVE and random.random() > 0.25
            ):
                continue
            proved = _proved(problem, bound, x, labels, epsilons, margin, norm=norm, clip=clip)
            if tally.count(f"{bound.name} {norm}", proved):
                tally.false.append(f"{name}: {bound.name}, {norm}, clip {clip}, {dtype}")
    for (norm, clip), (distance, _) in case.wrong.items():
        if random.random() >= share / 4:
            continue
        cheap = [method for method in BOUNDS if BOUNDS[method].expected_passes < EXPENSIVE]
        methods = ["auto", *BOUNDS] if share >= 1.0 else cheap
        method = methods[int(random.integers(len(methods)))]
        asked = (Fraction(distance), Fraction(1, 10))
        found = certify_samples(
            case.network,
            case.x,
            np.array([case.label]),
            np.array([0]),
            CertificationRequest(norm, asked, method, clip=clip, attack=None),
            deployed=case.deployed,
            deployed_logits=case.logits,
            device=CPU,
        )
        tally.questions += 1
        if found.radius[0] >= distance or found.certified[0, 0]:
            tally.false.append(f"{name}: radius by {method}, {norm}, clip {clip}")


def _proved(
    problem: Problem,
    bound: Bound,
    x: Tensor,
    labels: Tensor,
    epsilons: list[float],
    margin: Tensor,
    *,
    norm: str,
    clip: bool,
) -> list[bool]:
    """The bound's answer at every distance."""
    count = len(epsilons)
    reach = torch.tensor(epsilons, dtype=torch.float64)
    region = Region(x.expand(count, *x.shape[1:]).contiguous(), reach, norm, clip)
    budget = Budget(margin.expand(count))
    return bound.attempt(problem, region, labels.expand(count), budget).proved.tolist()
