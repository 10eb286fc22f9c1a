"""Curved and steep activations, steps, gates, products at random, for the adversary's networks."""

from __future__ import annotations

import numpy as np
import torch

from models.layers.activations import Abs, Ceil, Floor, Round, Sigmoid, Sign, Softplus, Tanh
from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    GELU_FORMS,
    LARGEST_FACTOR,
    SELU,
    Atan,
    Cos,
    Erf,
    Exp,
    HardSwish,
    Log,
    Mish,
    Power,
    Reciprocal,
    SiLU,
    Sin,
    Softsign,
    Sqrt,
)
from models.layers.euclidean import L2Pool2d, Sort
from models.layers.joins import Product
from models.layers.kinds import Layer, Multiply, Shift
from models.layers.shapes import Expand
from tests.workers.verification.adversary.growth import Growth

__all__ = ["Curves"]


class Curves(Growth):
    """What ``models.layers.curves`` has, numbers times gates of themselves, and powers."""

    def factor(self) -> float:
        """A factor of an exponential activation: 1, an ordinary one, or the ends of the range."""
        ends = [1.0, 1.0, 0.5, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR, self.random.uniform(0.01, 3)]
        return min(max(float(self.random.choice(ends)), 1.001e-3), LARGEST_FACTOR)

    def curve(self) -> None:
        """One curved activation, or a number times a gate of its own."""
        kind = int(self.random.integers(14))
        made: Layer
        if kind <= 2:
            made = (ELU, CELU)[kind % 2](alpha=self.factor())
        elif kind == 3:
            made = SELU(alpha=self.factor(), gamma=self.factor())
        elif kind == 4:
            made = Power(exponent=int(self.random.integers(2, 4)))
        elif kind == 5:
            made = GELU(approximate=GELU_FORMS[int(self.random.integers(2))])
        elif kind <= 11:
            made = (Softsign, Erf, SiLU, HardSwish, Mish, Abs)[kind - 6]()
        else:
            self.gate()
            return
        self.add(made)

    def steep(self, random: np.random.Generator) -> None:
        """An exponential, a bell, a logarithm, root or reciprocal, or a quotient by one of these;
        of numbers above 0 as a rule. Up to where float32 ends, and beyond."""
        before, kind = self.last, int(random.integers(6))
        moves = (self.value - self.value[:1]).abs()
        moves = moves[torch.isfinite(moves) & (moves > 0)]
        move = float(moves.median()) if moves.numel() else 1.0
        sizes = [0.1, 1.0, 10.0, 88.0]
        size = min(float(random.choice(sizes)) / max(move, 1e-30), 1e30)
        one = (1,) * len(self.shape)
        if random.integers(4):
            self.add(Multiply(torch.full(one, self.tamed(size))))
        if kind == 0:
            self.add(Exp())
            return
        if kind == 1:
            self.add(Power())
            self.add(Multiply(torch.full(one, self.tamed(-float(10.0 ** random.uniform(-3, 3))))))
            self.add(Exp())
            return
        if random.integers(4):
            self.add((Softplus, Exp, Power, Abs)[int(random.integers(4))]())
            if random.integers(2):
                shift = self.tamed(float(10.0 ** random.uniform(-30, 3)))
                self.add(Shift(torch.full(one, shift)))
        self.add((Log, Sqrt, Reciprocal, Reciprocal)[kind - 2]())
        if kind == 5:
            self.add(Product(), before, self.last)

    def wave(self, random: np.random.Generator) -> None:
        """A sine, cosine or inverse tangent of numbers that move by a share of a period, by many,
        or by next to nothing beside their size; up to where the range ends, and beyond."""
        moves = (self.value - self.value[:1]).abs()
        moves = moves[torch.isfinite(moves) & (moves > 0)]
        move = float(moves.median()) if moves.numel() else 1.0
        size = min(float(random.choice([0.01, 1.0, 3.0, 100.0, 1e6])) / max(move, 1e-30), 1e30)
        one = (1,) * len(self.shape)
        if random.integers(4):
            self.add(Multiply(torch.full(one, self.tamed(size))))
        if random.integers(3) == 0:
            shift = float(random.choice([0.5, 1.0, -1.0, 1e3, 2.0**19])) * np.pi
            self.add(Shift(torch.full(one, self.tamed(shift))))
        self.add((Sin, Cos, Sin, Cos, Atan)[int(random.integers(5))]())

    def jump(self, random: np.random.Generator) -> None:
        """A step or two, whose input is next to a jump at the clean input or near it as a rule."""
        for _ in range(int(random.integers(1, 3))):
            kinds = [Sign(), Sign(at_zero=1), Sign(at_zero=-1), Floor(), Ceil(), Round()]
            made = kinds[int(random.integers(len(kinds)))]
            if random.integers(4):
                levels = [self.tamed(-level) for level in self.levels().flatten().tolist()]
                self.add(Shift(torch.tensor(levels).reshape(-1, *([1] * (len(self.shape) - 1)))))
            if not isinstance(made, Sign):
                moves = (self.value - self.value[:1]).abs()
                moves = moves[torch.isfinite(moves) & (moves > 0)]
                move = float(moves.median()) if moves.numel() else 1.0
                size = min(float(10.0 ** random.uniform(-1, 1)) / max(move, 1e-30), 1e30)
                self.add(Multiply(torch.full((1,) * len(self.shape), self.tamed(size))))
            self.add(made)
            if random.integers(2):
                self.more_steps()

    def more_steps(self) -> None:
        """What mixes the numbers between two steps."""

    def gate(self) -> None:
        """c x sigmoid(c x) or c x tanh(x), as two values and their product."""
        before = self.last
        if self.random.integers(2):
            scale = self.weights(1).reshape(1, *([1] * (len(self.shape) - 1)))
            before = self.add(Multiply(scale))
        self.add(Sigmoid() if self.random.integers(2) else Tanh())
        self.add(
            Product(), *((before, self.last) if self.random.integers(2) else (self.last, before))
        )

    def arrangement(self) -> None:
        """Sorted channels, channels repeated, or the lengths of windows."""
        kind = int(self.random.integers(3))
        if kind == 0 and self.shape[0] == 1:
            self.add(Expand(shape=(2, *self.shape[1:])))
        elif kind == 1 and len(self.shape) == 3:
            width = min(2, self.shape[2])
            eps = float(self.random.choice([0.0, 1e-12, 1.0]))
            self.add(L2Pool2d(kernel=(1, width), stride=(1, width), eps=eps))
        else:
            self.add(Sort(axis=0, descending=bool(self.random.integers(2))))
