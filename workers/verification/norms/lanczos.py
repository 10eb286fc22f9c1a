"""Norms of masked operators by Lanczos from random starts: valid with a PROVED probability.

Only used when ``deterministic`` is off. For A = M^T M with largest eigenvalue L and eigenvector v,
a start q_1 uniform on the sphere of R^n has |v.q_1| >= t with probability at least
1 - t sqrt(2 n / pi) (Dixon 1983). Lanczos gives numbers a_j, b_j and vectors q_j with
    A q_j = b_(j-1) q_(j-1) + a_j q_j + b_j q_(j+1) + r_j,
so y_j = v.q_j obeys b_j y_(j+1) = (L - a_j) y_j - b_(j-1) y_(j-1) - v.r_j. Whatever rounding did,
|r_j| <= phi_j is known: its computed norm plus the error of the product with A. Nothing is assumed
of the q_j but |q_j| <= 1.0001, so |y_j| <= 1.0001 as well. If L exceeded a number x above the
eigenvalues of the tridiagonal matrix, the recurrence started at t, less the same recurrence started
at 0 and driven by phi, would exceed that: for such x their quotient falls in x (interlacing), so
one x at which it does bounds L (van Dorsselaer, Hochstenbach, van der Vorst 1999, with rounding).

One start cannot reach 1e-15 in float64, since rounding hides components that small: ``STARTS``
independent starts are taken and the largest result counts, which fails only if all of them do.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.verification.block_sizes import VECTOR_BYTES
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.per_sample import MaskedMap
from workers.verification.numerics import MANY, SECOND_ORDER, nonzero, raised
from workers.verification.region import Region
from workers.verification.rounding import gamma, unit_roundoff

__all__ = ["FailureBudget", "Tridiagonal", "lanczos_norms", "largest_root", "tridiagonal"]

STARTS, STEPS = 2, 32
#: Norms that one sample may ask for, per layer: epsilons and bisection steps in all arithmetic.
TRIES = 4096
#: Vectors of at most so many numbers are reorthogonalised.
SHORT = 1024
#: Vectors of a start held at once, about.
VECTORS = 8
U64 = unit_roundoff(torch.float64)
#: What |q_j| may exceed 1 by, generously.
_LENGTH = 1.0001
_GRID = 64
#: The start itself is rounded: its component on the eigenvector is at least KEPT t - LOST.
KEPT, LOST = 0.999999, 1e-14
#: The next vector's length is taken as at least this share of A q, and never as zero. Any positive
#: number will do: what it leaves out is part of the residual.
MIN_SHARE, MIN_LENGTH = 1e-13, 1e-290
#: The logarithm above 0 that proves: what the logarithms of the recurrence may be off by, and more.
PROVED = 1e-3


@dataclass
class FailureBudget:
    """Random starts and what they may fail with: ``per_sample`` for each sample that used any.

    Starts are hashed from ``key``, the whole network, sample, norm, epsilon, layer and arithmetic:
    repeatable, and the same whatever the batch or shard. Each of at most layers x ``TRIES`` norms
    of a sample gets an equal part, fixed in advance, so stopping early or late changes nothing.
    """

    per_sample: float = 1e-10
    key: bytes = b"certserve"
    steps: int = STEPS
    used: dict[bytes, int] = field(default_factory=dict)

    @property
    def failure_probability(self) -> float:
        """Union bound over the samples of which a norm was found with random starts."""
        return min(1.0, self.per_sample * len(self.used))

    def norms(
        self,
        compiled: CompiledNetwork,
        region: Region,
        layers: dict[int, Tensor],
        index: int,
        masked: MaskedMap,
        slopes: Tensor,
        least: Tensor,
        *,
        clock: Clock = UNLIMITED,
    ) -> Tensor:
        """Bounds [batch] on |diag(s) W diag(m)|; infinite where it was not tried.

        layers: step index -> samples [batch] bool for which it may be tried at all.
        """
        result = torch.full_like(least, torch.inf)
        norms = compiled.steps[index].norms
        assert norms is not None
        maps = sum(isinstance(step.op, Dense | Convolution) for step in compiled.steps)
        wanted = layers[index].to(least.device) & (least > 0) & torch.isfinite(least)
        rows, starts = [], []
        for row in wanted.nonzero().flatten().tolist():
            sample = hashlib.sha256(region.x[row].cpu().contiguous().numpy().tobytes()).digest()
            if self.used.get(sample, 0) >= maps * TRIES:
                continue
            self.used[sample] = self.used.get(sample, 0) + 1
            rows.append(row)
            starts.append(self._seed(compiled, region, sample, row, index, slopes))
        if not rows:
            return result
        picked = torch.tensor(rows, device=slopes.device)
        result[picked] = lanczos_norms(
            masked.op,
            masked.mask[picked],
            slopes[picked],
            starts,
            least[picked],
            absolute=norms.absolute,
            delta=self.per_sample / (maps * TRIES),
            steps=self.steps,
            clock=clock,
        )
        return result

    def _seed(
        self,
        compiled: CompiledNetwork,
        region: Region,
        sample: bytes,
        row: int,
        index: int,
        like: Tensor,
    ) -> bytes:
        """Of everything that mask and slopes depend on: no network can be fitted to its starts."""
        names = f"{compiled.digest} {region.norm} {region.clip} ".encode()
        text = struct.pack("<dqq", float(region.epsilon[row]), index, like.element_size())
        return hashlib.blake2b(sample + text + names, key=self.key[:64], digest_size=32).digest()


def lanczos_norms(
    op: Dense | Convolution,
    mask: Tensor,
    slopes: Tensor,
    seeds: list[bytes],
    least: Tensor,
    *,
    absolute: float,
    delta: float,
    steps: int = STEPS,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Bounds [batch] on |diag(s) W diag(m)|, each valid with probability 1 - ``delta``, or inf.

    absolute: bound on the norm of |W|; least [batch]: a valid bound (nothing above it is of use).
    """
    numbers = mask[0].numel() * VECTORS * STARTS * 8
    width = max(1, VECTOR_BYTES // numbers)
    found = []
    for first in range(0, len(seeds), width):
        part = slice(first, first + width)
        one = STARTS * [mask[part].to(torch.float64)]
        m, s = torch.cat(one), torch.cat(STARTS * [slopes[part].to(torch.float64)])
        begin = torch.stack(
            [
                torch.from_numpy(
                    np.random.default_rng(int.from_bytes(seed, "little") + number).standard_normal(
                        tuple(mask.shape[1:])
                    )
                )
                for number in range(STARTS)
                for seed in seeds[part]
            ]
        ).to(mask.device)
        ceiling = least[part].square().repeat(STARTS)
        active = m.flatten(1).sum(1)
        small = delta ** (1.0 / STARTS) * torch.sqrt(math.pi / (2.0 * active.clamp_min(1.0)))
        terms = op.own_terms + op.weight[:, 0].numel() + 16
        product = gamma(terms, U64) * absolute**2 * SECOND_ORDER
        system = tridiagonal(op, m, s, begin, steps, product, clock=clock)
        root = largest_root(system, small, ceiling).reshape(STARTS, -1).amax(0)
        found.append(raised(root.sqrt()))
    return torch.cat(found)


@dataclass
class Tridiagonal:
    """a, b [steps, batch] and bounds phi on the residuals' norms."""

    a: Tensor
    b: Tensor
    phi: Tensor


def tridiagonal(
    op: Dense | Convolution,
    m: Tensor,
    s: Tensor,
    start: Tensor,
    steps: int,
    product: float,
    *,
    clock: Clock = UNLIMITED,
) -> Tridiagonal:
    """Lanczos on A = diag(m) W^T diag(s)^2 W diag(m) in float64, three vectors at a time.

    product: bound on the error of one computed A q for |q| <= 1. The proof needs no orthogonality,
    which in so few steps is lost only once the largest value has been found. Short vectors get
    there, and what follows would hang on the last bits: they are reorthogonalised.
    """
    square = s.square()
    shape = (-1, *m.shape[1:])
    q = (start * m).flatten(1)
    q = q / nonzero(q.norm(dim=1, keepdim=True))
    basis = [q] if q.shape[1] <= SHORT else []
    earlier = torch.zeros_like(q)
    before = torch.zeros(len(q), dtype=torch.float64, device=m.device)
    a: list[Tensor] = []
    b: list[Tensor] = []
    phi: list[Tensor] = []
    for _ in range(steps):
        clock.check()
        with torch.enable_grad():
            x = q.reshape(shape).clone().requires_grad_()
            image = op.linear(x * m)
            (w_full,) = torch.autograd.grad(image, x, image.detach() * square)
        w = w_full.flatten(1)
        size = w.norm(dim=1)
        rest = torch.addcmul(w, earlier, before[:, None], value=-1)
        a.append((rest * q).sum(1))
        rest = rest.addcmul_(q, a[-1][:, None], value=-1)
        for vector in basis + basis:
            rest = rest - (rest * vector).sum(1, keepdim=True) * vector
        b.append(torch.maximum(rest.norm(dim=1), size * MIN_SHARE).clamp_min(MIN_LENGTH))
        following = rest / b[-1][:, None]
        left = torch.addcmul(w, q, a[-1][:, None], value=-1)
        left.addcmul_(following, b[-1][:, None], value=-1)
        left.addcmul_(earlier, before[:, None], value=-1)
        lost = 8 * U64 * (size + a[-1].abs() + b[-1] + before)
        phi.append(raised(left.norm(dim=1), MANY) + lost + product)
        earlier, q, before = q, following, b[-1]
        if basis:
            basis.append(q)
    return Tridiagonal(torch.stack(a), torch.stack(b), torch.stack(phi))


def largest_root(system: Tridiagonal, small: Tensor, ceiling: Tensor) -> Tensor:
    """The least number found in (max a, ceiling] that exceeds the largest eigenvalue unless the
    start had a component below ``small`` on its eigenvector; inf where none was. [batch]"""
    small = small * KEPT - LOST
    low = torch.minimum(system.a.amax(0).clamp_min(MIN_LENGTH), ceiling)
    high = ceiling
    share = torch.linspace(0, 1, _GRID + 1, dtype=torch.float64, device=low.device)[:, None]
    best = torch.full_like(ceiling, torch.inf)
    for _ in range(2):
        grid = low * (high / low) ** share
        proved = _exceeds(system, small, grid)
        first = proved.to(torch.int8).argmax(0)
        some = proved.any(0)
        value = grid.gather(0, first[None])[0]
        best = torch.where(some, torch.minimum(best, value), best)
        high = torch.where(some, value, high)
        low = torch.where(some, grid.gather(0, (first - 1).clamp_min(0)[None])[0], low)
    return raised(best)


def _exceeds(system: Tridiagonal, small: Tensor, x: Tensor) -> Tensor:
    """Whether x [grid, batch] is proved to exceed the largest eigenvalue.

    p_j: the recurrence from 1; kept as ratio p_(j+1) / p_j (positive exactly while x exceeds all
    eigenvalues so far), log p_j, and the driven recurrence over p_j. Rounding here is that of a
    recurrence with slightly other coefficients, so it counts as residual too.
    """
    log_p = torch.zeros_like(x)
    driven, driven_before = torch.zeros_like(x), torch.zeros_like(x)
    ratio = torch.ones_like(x)
    good = torch.ones_like(x, dtype=torch.bool)
    proved = torch.zeros_like(good)
    before = torch.zeros_like(system.b[0])
    for a, b, phi in zip(system.a, system.b, system.phi, strict=True):
        force = phi + 16 * U64 * (x + a.abs() + b + before)
        step = ((x - a) - before / ratio) / b
        good = good & (step > 0)
        safe = torch.where(good, step, torch.ones_like(step))
        pushed = (x - a) * driven - before * driven_before / ratio + force * torch.exp(-log_p)
        driven, driven_before = pushed / (b * safe), driven
        log_p = log_p + torch.log(safe)
        room = small - raised(driven, MANY)
        proved = proved | (good & (room > 0) & (log_p + torch.log(nonzero(room)) > PROVED))
        ratio, before = safe, b
    return proved
