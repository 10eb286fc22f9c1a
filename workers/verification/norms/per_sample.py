"""Norms of per-sample masked operators M = diag(s) W diag(m): upper bounds, each rounded up.

m is 0 where an input cannot change, s in [0, 1] holds anchored slopes (Local-Lip, Huang et al.
NeurIPS 2021, has 0 and 1 alone; proof in ``forward.local_pass``).
Every bound is valid by itself, so the least counts: the global norm times the largest slope,
Frobenius (one product with W^2), Schur (two products with |W|), and the exact Gram matrix of what
is active. No power iteration.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.enclosure import Enclosure
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.backward_errors import gram_error
from workers.verification.norms.spectral import materialize
from workers.verification.numerics import euclidean_norm, lost_in_sums, nonzero, raised, up

__all__ = ["GRAM_SIDE", "MaskedMap", "costliest", "forward_cost", "moving", "multiplications"]

#: Largest number of active rows or columns (the fewer) of which a Gram matrix is formed.
GRAM_SIDE = 1500
#: Convolutions of at most this many numbers as a matrix are materialised once for Gram matrices.
MATRIX_SIZE = 2**23
#: Samples of which at least this share of inputs moves are treated as if all moved.
FULL = 0.98
#: Lost to underflow per sum, relative to the largest weight.
FLOOR = 2.0**-100
#: Lost to underflow per square of a number in [-1, 1], float64.
LOST_SQUARE = 1e-300

Linear = Dense | Convolution


def moving(state: Enclosure, dtype: torch.dtype) -> Tensor:
    """1 where a deployed value may differ from the centre, 0 where both are one known number."""
    assert state.lower is not None
    assert state.upper is not None
    fixed = (state.lower == state.upper) & (state.centre == state.lower)
    return (~fixed).to(dtype)


def multiplications(op: Linear) -> int:
    """Multiplications of one application."""
    if isinstance(op, Dense):
        return op.weight.numel()
    return op.weight.numel() * op.out_shape[1] * op.out_shape[2]


def forward_cost(compiled: CompiledNetwork) -> int:
    """Multiplications of one sample's forward pass."""
    ops = [step.op for step in compiled.steps]
    return sum(multiplications(op) for op in ops if isinstance(op, Dense | Convolution))


def costliest(compiled: CompiledNetwork) -> int:
    """Multiplications of one row in the most expensive step."""
    ops = [step.op for step in compiled.steps]
    return max([multiplications(op) for op in ops if isinstance(op, Dense | Convolution)] or [1])


def _scale(op: Linear) -> float:
    """A power of two just above the largest weight: squares then neither over- nor underflow."""

    def largest() -> Tensor:
        return torch.tensor(_power_above(float(op.weight.abs().max())), dtype=torch.float64)

    return op.scalar("peak scale", largest)


def _power_above(value: float) -> float:
    if not math.isfinite(value):
        return math.nan
    return 2.0 ** math.frexp(value)[1] if value > 0 else 1.0


def _fan_out(op: Linear) -> int:
    """Terms of one sum of the transposed map, at most."""
    return op.weight[:, 0].numel()


@dataclass
class MaskedMap:
    """W diag(m) for every sample of a block.

    mask [batch, *in_shape] in {0, 1}; rows [batch or 1, *out_shape]: norms of its rows divided by
    ``scale``, rounded up; masked: whether ``rows`` is per sample; active [batch]: inputs that move.
    """

    op: Linear
    mask: Tensor
    rows: Tensor
    scale: float
    active: Tensor
    masked: bool

    @classmethod
    def of(cls, op: Linear, state: Enclosure) -> MaskedMap:
        """The map on what may change in ``state``."""
        like = state.centre
        mask = moving(state, like.dtype)
        scale = _scale(op)
        # Counted by rows, in float64: exact.
        active = mask.flatten(1).sum(1, dtype=torch.float64)
        full = op.cast(
            "scaled rows",
            like,
            lambda: raised(op.row_norms() / scale, 3, torch.float32) + FLOOR**0.5,
        )[None]
        sparse = (active < FULL * mask[0].numel()).nonzero().flatten()
        if not sparse.numel():
            return cls(op, mask, full, scale, active, False)
        whole = sparse.numel() == mask.shape[0]
        squares = _squares(op, mask if whole else mask[sparse], scale)
        norms = squares.mul_(up(op.own_terms + 15, like.dtype)).add_(FLOOR).sqrt_()
        if whole:
            rows = norms
        else:
            rows = full.expand(mask.shape[0], *full.shape[1:]).clone()
            rows[sparse] = norms
        return cls(op, mask, rows, scale, active, True)

    def frobenius(self, slopes: Tensor | None) -> Tensor:
        """Frobenius norm of M, [batch] float64: norm of the vector of row norms."""
        rows = self.rows if slopes is None else self.rows * slopes
        norm = raised(euclidean_norm(rows) * self.scale, 7, torch.float32)
        return norm.expand(self.mask.shape[0])

    def schur(self, slopes: Tensor, best: Tensor) -> Tensor:
        """sqrt(largest row sum times largest column sum) of |M|, [batch]; inf where hopeless.

        Hopeless: |w| <= scale, so the row sums are at least the squared row norms (over scale) and
        the largest column sum is at least their mean over the columns; no product is needed then.
        """
        least = (slopes * self.rows).mul_(self.rows).flatten(1)
        total = least.sum(1, dtype=torch.float64)
        floor = least.amax(1).to(torch.float64) * total / self.active.clamp_min(1.0)
        result = torch.full_like(best, torch.inf)
        rows = (floor * self.scale**2 < best.square()).nonzero().flatten()
        if rows.numel():
            result[rows] = _schur(self.op, self.mask[rows], slopes[rows], self.scale)
        return result

    def gram_feasible(self) -> bool:
        """Whether the map is small enough to be written as a matrix."""
        op = self.op
        size = math.prod(op.in_shape) * math.prod(op.out_shape)
        return isinstance(op, Dense) or size <= MATRIX_SIZE

    def guess(self, rows: Tensor, slopes: Tensor, steps: int) -> Tensor:
        """LOWER estimates [rows] of the norms by power steps: only for what is worth trying."""
        mask, square = self.mask[rows], slopes[rows].square()
        x = mask
        for _ in range(steps):
            length = nonzero(x.flatten(1).norm(dim=1))
            x = x / length.reshape(-1, *([1] * (x.dim() - 1)))
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                image = self.op.linear(x)
                (back,) = torch.autograd.grad(image, x, image.detach() * square)
            x = back * mask
        return x.flatten(1).norm(dim=1).to(torch.float64).sqrt()

    def gram(self, row: int, slopes: Tensor, budget: float) -> tuple[float, float]:
        """(norm, cost) of one sample's M from its active Gram matrix; (inf, 0) beyond ``budget``.

        cost in multiplications (decomposing counts 10 n^3). See ``_gram_norm`` for the slack.
        """
        op = self.op
        outputs = slopes[row].flatten().nonzero().flatten()
        inputs = self.mask[row].flatten().nonzero().flatten()
        small, large = sorted((outputs.numel(), inputs.numel()))
        cost = float(small * small * large + 10 * small**3)
        if small == 0:
            return 0.0, 0.0
        if small > GRAM_SIDE or cost > budget or not self.gram_feasible():
            return math.inf, 0.0
        matrix = op.cast("matrix", slopes.new_empty(0, dtype=torch.float64), lambda: _matrix(op))
        part = matrix if outputs.numel() == matrix.shape[0] else matrix[outputs]
        part = part if inputs.numel() == matrix.shape[1] else part[:, inputs]
        scaled = slopes[row].flatten()[outputs].to(torch.float64) / self.scale
        return _gram_norm(part * scaled[:, None]) * self.scale, cost


def _gram_norm(matrix: Tensor) -> float:
    """Upper bound on a norm, entries in [-1, 1]: the eigenvalues of the smaller Gram matrix plus
    their backward error, as in ``dense.dense_norm``."""
    matrix = matrix.cpu()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    trace = float(gram.diagonal().sum())
    if not math.isfinite(trace):
        return math.inf
    small, large = sorted(matrix.shape)
    square = float(torch.linalg.eigvalsh(gram)[-1])
    square = max(square, 0.0) + gram_error(small, large, trace)
    # What underflow in the squares may have hidden, and the roundings of the scaling.
    return raised(math.sqrt(square + small * large * LOST_SQUARE))


def _squares(op: Linear, mask: Tensor, scale: float) -> Tensor:
    """(W / scale)^2 m."""
    weight = op.cast("scaled squares", mask, lambda: (op.weight / scale).square())
    if isinstance(op, Dense):
        return mask.flatten(1) @ weight.T
    return op.geometry.apply(mask, weight)


def _schur(op: Linear, mask: Tensor, slopes: Tensor, scale: float) -> Tensor:
    with torch.enable_grad():
        x = mask.detach().clone().requires_grad_()
        sums = op.absolute(x)
        # The derivative of |W| m is |W| itself: its adjoint on the slopes are the column sums.
        (columns,) = torch.autograd.grad(sums, x, slopes)
    lost = FLOOR * scale + lost_in_sums(mask.dtype)
    rows = (sums.detach() * slopes).flatten(1).amax(1).to(torch.float64)
    rows = raised(rows, op.own_terms + 15, mask.dtype) + lost
    widest = (columns * mask).flatten(1).amax(1).to(torch.float64)
    widest = raised(widest, _fan_out(op) + 15, mask.dtype) + lost
    return raised((rows * widest).sqrt())


def _matrix(op: Linear) -> Tensor:
    if isinstance(op, Dense):
        return op.weight
    return materialize(op.linear, op.in_shape).T


def tally_min(names: list[str], bounds: list[Tensor], tally: Counter[str] | None) -> Tensor:
    """The least of the bounds, [batch] (NaN stays), counting which one it was."""
    stacked = torch.stack(bounds)
    if tally is not None:
        for position in stacked.argmin(0).tolist():
            tally[names[position]] += 1
    return stacked.amin(0)
