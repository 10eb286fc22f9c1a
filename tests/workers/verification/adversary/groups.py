"""Norms, softmax and products of two activations at random, for the networks of the adversary."""

from __future__ import annotations

import math

import torch

from models.layers.joins import Product, ReduceSum
from models.layers.kinds import Add, Layer, Linear, Multiply, Reshape, Shift
from models.layers.normalization import EPSILONS, Centre, Softmax, Standardize
from models.layers.shapes import Expand
from tests.workers.verification.adversary.curves import Curves

__all__ = ["Groups"]

#: Most numbers of a matrix product: a tiny network stays tiny.
WIDEST = 9


class Groups(Curves):
    """What works on groups of numbers: layer norm and the one by root mean squares, softmax, matrix
    products of two activations, all three together."""

    def group(self) -> None:
        """One of these, its numbers scaled or moved beforehand as a rule."""
        if self.random.integers(2):
            self.more_numbers()
        kind = int(self.random.integers(8))
        if kind <= 2:
            self.before_norm()
            self.norm()
        elif kind <= 4:
            self.before_softmax()
            self.softmax()
        elif kind == 5:
            self.matmul()
        elif kind == 6:
            self.attention()
        else:
            before = self.last
            self.norm()
            self.add(Product() if self.random.integers(2) else Add(), before, self.last)

    def constants(self, *, signed: bool = True) -> torch.Tensor:
        """One weight per channel, broadcastable to the shape."""
        weights = self.weights(self.shape[0]).reshape(-1, *([1] * (len(self.shape) - 1)))
        return weights if signed else weights.abs()

    def more_numbers(self) -> None:
        """A dense layer to two or three numbers: groups of one are what most bodies have."""
        if len(self.shape) == 1:
            inputs = self.shape[0]
            out = int(self.random.integers(2, 4))
            weight = self.weights(out, inputs)
            with torch.no_grad():
                plain = Linear(weight)(self.value)
            self.add(Linear(weight, self.biases(out, plain)))

    def before_norm(self) -> None:
        """Numbers of another size, or far from 0 and close together: their variance cancels."""
        kind = int(self.random.integers(8))
        if kind == 0:
            self.add(Multiply(self.constants()))
        elif kind <= 4:
            self.enlarged(1e-6, 1e-3, 0.1, 1.0, 10.0, 1e9)
        if kind == 1 or kind == 5:
            size = self.tamed(float(10.0 ** self.random.uniform(-3, 9)))
            self.add(Shift(torch.full((1,) * len(self.shape), size)))
        elif kind == 2 or kind == 6:
            levels = [self.tamed(-level) for level in self.levels().flatten().tolist()]
            self.add(Shift(torch.tensor(levels).reshape(-1, *([1] * (len(self.shape) - 1)))))

    def axes(self) -> tuple[int, ...]:
        """All axes, or one."""
        rank = len(self.shape)
        if rank == 1 or self.random.integers(3) == 0:
            return tuple(range(rank))
        return (int(self.random.choice([0, rank - 1])),)

    def norm(self) -> None:
        """Less the mean or not, over the root; by the operator or by nodes; a scale behind it."""
        low, high = EPSILONS
        odd = 10.0 ** self.random.uniform(math.log10(low), math.log10(high))
        eps = float(self.random.choice([low, 1e-6, 1e-5, 1.0, high, odd, odd]))
        axes, before = self.axes(), self.last
        centred = bool(self.random.integers(3))
        if centred:
            self.add(Centre(axes=axes))
        beside = before if centred and self.random.integers(2) else self.last
        self.add(Standardize(axes=axes, eps=eps), self.last, beside)
        if self.random.integers(3) == 0:
            self.add(Multiply(self.constants()))

    def before_softmax(self) -> None:
        """Differences that exp loses, that matter, or that leave nothing but one number."""
        kind = int(self.random.integers(4))
        if kind == 0:
            self.add(Multiply(self.constants()))
        elif kind <= 2:
            self.enlarged(0.1, 1.0, 3.0, 20.0, 90.0, 105.0, 1000.0)

    def enlarged(self, *sizes: float) -> None:
        """All numbers by one factor: their moves around the clean input get one of these sizes."""
        moves = (self.value - self.value[:1]).abs()
        moves = moves[torch.isfinite(moves) & (moves > 0)]
        size = float(moves.median()) if moves.numel() else 1.0
        factor = self.tamed(min(float(self.random.choice(sizes)) / size, 1e30))
        self.add(Multiply(torch.full((1,) * len(self.shape), factor)))

    def softmax(self) -> None:
        """Over one axis, or over all."""
        self.add(Softmax(axes=self.axes()))
        if self.random.integers(3) == 0:
            self.add(Multiply(self.constants()))

    def matrix(self, rows: int, columns: int, value: str) -> str:
        """An earlier value of rows x columns numbers, as a matrix."""
        return self.add(Reshape(shape=(rows, columns)), value)

    def times(self, left: str, right: str) -> str:
        """left @ right of [m, k] and [k, n], as files are read: products and their sums."""
        (m, k), n = self.values[left].shape[1:], self.values[right].shape[2]
        sides = []
        for shape, value in (((m, k, 1), left), ((1, k, n), right)):
            side = self.add(Reshape(shape=shape), value)
            sides.append(self.add(Expand(shape=(m, k, n)), side) if shape != (m, k, n) else side)
        self.add(Product(), *sides)
        return self.add(ReduceSum(axes=(1,)))

    def branch(self, size: int) -> str:
        """The same numbers, scaled by an activation of theirs, or moved; as a vector."""
        self.add(Reshape(shape=(size,)))
        kind = int(self.random.integers(4))
        if kind == 0:
            self.add(Multiply(self.constants()))
        elif kind == 1:
            self.curve()
        elif kind == 2:
            levels = [self.tamed(-level) for level in self.levels().flatten().tolist()]
            self.add(Shift(torch.tensor(levels)))
        return self.last

    def flat(self) -> None:
        """The last value as a vector, which all other layers take."""
        self.add(Reshape(shape=(math.prod(self.shape),)))

    def matmul(self) -> None:
        """A scalar product of two branches, all their products, or a square matrix by a vector."""
        before, size = self.last, math.prod(self.shape)
        left = self.branch(size)
        self.last = before
        right = self.branch(size)
        if size * size <= WIDEST and self.random.integers(2):
            self.times(self.matrix(size, 1, left), self.matrix(1, size, right))
        else:
            self.times(self.matrix(1, size, left), self.matrix(size, 1, right))
        self.flat()

    def attention(self) -> None:
        """Softmax of a branch's products with another, times a third: each number is a token."""
        before, size = self.last, math.prod(self.shape)
        if size * size > WIDEST:
            self.matmul()
            return
        made = []
        for _ in range(3):
            self.last = before
            made.append(self.branch(size))
        scores = self.times(self.matrix(size, 1, made[0]), self.matrix(1, size, made[1]))
        layer: Layer = Softmax(axes=(int(self.random.integers(2)),))
        weights = self.add(layer, scores)
        self.times(weights, self.matrix(size, 1, made[2]))
        self.flat()
        if self.random.integers(2):
            residual = self.add(Reshape(shape=(size,)), before)
            self.add(Add(), self.rows[-2][0], residual)
