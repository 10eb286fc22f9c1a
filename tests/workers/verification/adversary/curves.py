"""Curved activations, gates and products at random, for the networks of the adversary."""

from __future__ import annotations

from models.layers.activations import Abs, Sigmoid, Tanh
from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    GELU_FORMS,
    LARGEST_FACTOR,
    SELU,
    Erf,
    HardSwish,
    Mish,
    Power,
    SiLU,
    Softsign,
)
from models.layers.euclidean import L2Pool2d, Sort
from models.layers.joins import Product
from models.layers.kinds import Layer, Multiply
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
