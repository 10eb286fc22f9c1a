"""Affine maps as bounds need them: apply, apply the entrywise absolute value, norms, rounding.

An affine map here is y = W x + b in exact arithmetic, with W and b held in float64, together with
what the DEPLOYED float32 evaluation of it may add: ``terms`` rounding steps on a magnitude of at
most |W| |x| + bias_magnitude. Adjacent maps of the graph are fused (input normalisation, batch
norm); the fused map's terms and magnitude cover the deployed, unfused evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.norms.spectral import absolute_norm, power_iteration_norm
from workers.verification.numerics import MANY, raised, rounding_error
from workers.verification.rounding import Rounding, gamma
from workers.verification.summation import Leaves, Summation, beyond_first_order

__all__ = ["FLOAT32_SAFE", "Affine", "Inner", "Norms", "Shape"]

Shape = tuple[int, ...]
#: Weights outside this range (zero apart) are not trusted to a float32 copy: it could underflow.
FLOAT32_SAFE = (2.0**-100, 2.0**100)
#: Rounding steps (about the inputs of one output) from which a product with the box of a ball is
#: not worth it: the ball alone is tighter.
ROUND_TERMS = 16
#: Range of the numbers of maps that may be fused (zero apart).
FUSIBLE = (2.0**-40, 2.0**40)


@dataclass(frozen=True)
class Norms:
    """Operator norms of W and of |W| (entrywise): upper bounds, or estimates if asked for."""

    spectral: float
    absolute: float


@dataclass(frozen=True)
class Inner:
    """The intermediate numbers of the deployed evaluation, which |W| |x| + |b| does not bound.

    For inputs of at most s in size those numbers are at most gain s + shift (before rounding).
    lost: what underflow there may change in one output, in units of ``rounding.UNDERFLOW``.
    """

    gain: float = 0.0
    shift: float = 0.0
    lost: float = 0.0

    def max_input(self, ceiling: float) -> float:
        """The largest s at which nothing in between exceeds ``ceiling``."""
        if self.gain == 0.0:
            return math.inf if self.shift < ceiling else -math.inf
        return (ceiling - self.shift) / self.gain


@dataclass(frozen=True, eq=False)
class Affine:
    """Common part of the affine maps: y = W x + b from ``in_shape`` to ``out_shape``.

    bias, bias_magnitude: float64, broadcastable to out_shape; terms: rounding steps of the deployed
    evaluation of one output; inner: what that evaluation holds in between; least_own_terms: what
    the verifier's own evaluation takes, where that is more than ``terms``. summation: the trees by
    which the deployed evaluation adds up one output (``terms`` counts them and the factors beside);
    None: only ``terms`` is known. bias_square: the sum of the squares of those leaves that do not
    depend on x, where it is less than bias_magnitude squared, in float64, rounded up.
    """

    in_shape: Shape
    out_shape: Shape
    bias: Tensor
    bias_magnitude: Tensor
    terms: float
    inner: Inner = field(default_factory=Inner, kw_only=True)
    least_own_terms: float = field(default=0.0, kw_only=True)
    summation: Summation | None = field(default=None, kw_only=True)
    bias_square: Tensor | None = field(default=None, kw_only=True)
    _cache: dict[tuple[str, torch.dtype, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )
    _scalars: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def linear(self, x: Tensor) -> Tensor:
        """W x for x [batch, *in_shape] in float32 or float64."""
        raise TypeError

    def absolute(self, x: Tensor) -> Tensor:
        """|W| x for x >= 0."""
        raise TypeError

    def weights(self) -> list[Tensor]:
        """The float64 tensors that W is made of."""
        raise TypeError

    def row_norms_square(self) -> Tensor:
        """Squared Euclidean norms of W's rows, broadcastable to out_shape, float64, rounded up."""
        raise TypeError

    def entrywise(self, name: str, x: Tensor) -> Tensor | None:
        """W x with w^2 (``squares``), w |w| (``signed squares``), or 1 where w is not 0 and 0 where
        it is (``present``), in place of w; None: not known."""
        return None

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        """Upper bound on the operator norm of W."""
        raise TypeError

    def largest_column(self) -> float:
        """Upper bound on max_j |W e_j|_2; infinite where it is not known."""
        return math.inf

    def norms(self, clock: Clock = UNLIMITED) -> Norms:
        """Sound upper bounds on |W|_2 and | |W| |_2. Raises OutOfTime."""
        return Norms(self.spectral(clock), self.absolute_norm(clock))

    def absolute_norm(self, clock: Clock = UNLIMITED) -> float:
        """Upper bound on the operator norm of the entrywise absolute value."""
        return absolute_norm(self.absolute, self.in_shape, clock)

    def estimated_norms(self, clock: Clock = UNLIMITED) -> Norms:
        """Power-iteration values, as the papers' code has them: not bounds."""
        return Norms(power_iteration_norm(self.linear, self.in_shape, clock=clock), 0.0)

    def row_norms(self) -> Tensor:
        """Euclidean norms of W's rows, [*out_shape], float64, rounded up."""
        key = ("row_norms", torch.float64, torch.device("cpu"))
        if key not in self._cache:
            norms = raised(self.row_norms_square().sqrt())
            self._cache[key] = norms.expand(self.out_shape).contiguous()
        return self._cache[key]

    def bias_norm(self) -> float:
        """Euclidean norm of the bias magnitude over the whole output, rounded up."""
        return self.scalar(
            "bias_norm", lambda: raised(self.bias_magnitude.expand(self.out_shape).norm(), MANY)
        )

    @property
    def leaf_squares(self) -> Tensor:
        """``bias_square``, or what it is at most."""
        if self.bias_square is None:
            return raised(self.bias_magnitude.square())
        return self.bias_square

    def deployed_rounding(self, norms: Norms, rounding: Rounding) -> tuple[float, float]:
        """(share, constant): the deployed W x + b is off by at most share |x| + constant in the
        Euclidean norm, underflow apart: the lesser of gamma_n (||W||_2 |x| + |b|), ||W|| the
        entrywise absolute value, and the bound of ``summation``."""
        unit, terms, size = rounding.deployed, self.terms, self.bias_norm()
        least = rounding.deployed_gamma(terms)
        constant = least * size
        if self.summation is not None and constant > 0.0:
            trees = self.summation
            # A shift behind the sums is no leaf of theirs, and meets what is behind them.
            beside = (trees.ahead + trees.behind) * size
            first = unit * (trees.whole() * self._bias_spread() + beside)
            constant = min(constant, raised(first + beyond_first_order(terms, unit) * size))
        return self.rounding_share(norms, unit, terms, self.summation), constant

    def output_rounding(
        self, reach: Tensor, sums: Tensor, rounding: Rounding, *, exact: Tensor | None = None
    ) -> Tensor:
        """What the deployed evaluation may be off by in each output, [batch, *out_shape], underflow
        apart: the lesser of gamma_n (|W| reach + |b|) and what ``summation`` says of one output.

        reach [batch, *in_shape]: at least |x|, 0 where x is 0; sums: at least |W x|. float64. exact
        [batch, *in_shape]: instead, what one x adds to this. The trees are those of an execution
        within ``reach``.
        """
        unit, terms, own = rounding.deployed, self.terms, self.own_terms
        size = reach if exact is None else exact.abs()
        shift = self.bound_like("bias_magnitude", size)
        total = rounding_error(self.absolute(size) + shift, terms=own)
        least = gamma(terms, unit) * total
        trees, squares = self.summation, self.entrywise("squares", size.square())
        if trees is None or squares is None:
            return raised(least)
        side = squares
        if exact is not None:
            # Of squares with the signs of their leaves: the greater of both sides.
            signed = self.entrywise("signed squares", exact * size)
            assert signed is not None
            side = (squares + signed.abs()) * 0.5
        # Squares of so small numbers that they are lost are far below what underflow costs.
        norm, side = (rounding_error(square, terms=own).sqrt() for square in (squares, side))
        count = self.entrywise("present", (reach > 0).to(reach))
        count = None if count is None else count + (shift > 0)
        shifts = self.bound_like("leaf_norms", size)
        whole = trees.of_output(Leaves(total, sums, norm, side, shift, shifts, count))
        whole = unit * whole + beyond_first_order(terms, unit) * total
        return rounding_error(torch.fmin(least, whole))

    def own_rounding(self, norms: Norms, rounding: Rounding) -> tuple[float, float]:
        """The same for the verifier's own evaluation."""
        least, size = rounding.own_gamma(self.own_terms), self.bias_norm()
        terms = self.own_terms + Rounding.BOOKKEEPING
        return self.rounding_share(norms, rounding.own, terms, self.own_summation), least * size

    @property
    def own_summation(self) -> Summation | None:
        """``summation`` of the verifier's own evaluation: known where it is the deployed one. All
        its factors that are no sums' count as ahead of them."""
        trees = self.summation
        if self.least_own_terms or trees is None:
            return None
        return replace(trees, ahead=trees.factors_beside(self.own_terms + Rounding.BOOKKEEPING))

    def rounding_share(
        self, norms: Norms, unit: float, terms: float, trees: Summation | None
    ) -> float:
        """What an evaluation of W x by ``trees``, with so many terms in all, may be off for
        |x| = 1."""
        least = gamma(terms, unit)
        if trees is None or least == 0.0:
            return least * norms.absolute
        # No column is longer than the norm.
        column = min(self._largest_column(), norms.spectral)
        first = unit * trees.of_map(column, norms.spectral)
        whole = raised(first + beyond_first_order(terms, unit) * norms.absolute)
        return min(least * norms.absolute, whole)

    def _largest_column(self) -> float:
        return self.scalar(
            "column", lambda: torch.tensor(self.largest_column(), dtype=torch.float64)
        )

    def _bias_spread(self) -> float:
        def made() -> Tensor:
            return raised(self.leaf_squares.expand(self.out_shape).sum().sqrt(), MANY)

        return self.scalar("bias_spread", made)

    def largest_bias(self) -> float:
        """Largest bias magnitude."""
        return self.scalar("largest_bias", lambda: self.bias_magnitude.abs().max())

    def largest_row_sum(self) -> float:
        """Largest sum of |W| over a row, rounded up."""
        ones = torch.ones(1, *self.in_shape, dtype=torch.float64)
        return self.scalar("row_sum", lambda: raised(self.absolute(ones).max(), MANY))

    @property
    def own_terms(self) -> float:
        """Rounding steps of the verifier's own evaluation of one output."""
        return max(self.terms, self.least_own_terms)

    @property
    def floor(self) -> float:
        """What underflow may change in one output, in units of ``rounding.UNDERFLOW``."""
        return self.terms + 1.0 + self.inner.lost

    @property
    def wide(self) -> bool:
        """Whether the ball alone is as good as ball and box where the box is the ball's own."""
        return self.own_terms >= ROUND_TERMS

    def scalar(self, name: str, make: Callable[[], Tensor]) -> float:
        """A number of this map, computed once."""
        if name not in self._scalars:
            self._scalars[name] = float(make())
        return self._scalars[name]

    def moderate(self) -> bool:
        """Whether every number is of a size at which products of two maps neither over- nor
        underflow float32: only such maps may be fused, because a fused map forgets what the
        deployed, unfused evaluation holds in between."""
        low, high = FUSIBLE
        for tensor in (*self.weights(), self.bias, self.bias_magnitude):
            size = tensor.abs()
            if bool(((size > 0) & (size < low)).any()) or bool((size > high).any()):
                return False
        return True

    def float32_safe(self) -> bool:
        """Whether a float32 copy of W and b loses no more than one rounding each."""
        low, high = FLOAT32_SAFE
        for tensor in (*self.weights(), self.bias, self.bias_magnitude):
            size = tensor.abs()
            if bool(((size > 0) & (size < low)).any()) or bool((size > high).any()):
                return False
        return True

    def cast(self, name: str, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """A tensor in ``like``'s dtype on its device, made once."""
        key = (name, like.dtype, like.device)
        if key not in self._cache:
            self._cache[key] = make().to(device=like.device, dtype=like.dtype).contiguous()
        return self._cache[key]

    def places(self, name: str, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """Integers (an order of elements) on ``device``, made once."""
        key = (name, torch.int64, device)
        if key not in self._cache:
            self._cache[key] = make().to(device).contiguous()
        return self._cache[key]

    def bias_like(self, like: Tensor) -> Tensor:
        """The bias in ``like``'s dtype, without a batch axis."""
        return self.cast("bias", like, lambda: self.bias)

    def apply(self, x: Tensor) -> Tensor:
        """W x + b."""
        return self.linear(x).add_(self.bias_like(x))

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and half the width of a box's image in real arithmetic: W m + b and |W| r."""
        return self.apply((lower + upper).mul_(0.5)), self.absolute((upper - lower).mul_(0.5))

    def row_norms_like(self, like: Tensor) -> Tensor:
        """``row_norms`` in ``like``'s dtype, rounded up."""
        return self.bound_like("row_norms", like)

    def bound_like(self, name: str, like: Tensor) -> Tensor:
        """``row_norms``, ``bias_magnitude`` or ``leaf_norms`` (the root of ``leaf_squares``) in
        ``like``'s dtype, rounded up, as [*out_shape]."""

        def make() -> Tensor:
            if name == "leaf_norms":
                tensor = self.leaf_squares.sqrt()
            else:
                tensor = self.row_norms() if name == "row_norms" else self.bias_magnitude
            return raised(raised(tensor), 1, like.dtype).expand(self.out_shape)

        return self.cast(name, like, make)
