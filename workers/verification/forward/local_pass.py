"""Ball and box with per-sample operator norms (Local-Lip, Huang et al., NeurIPS 2021).

Ball and box as in BCP, with the ball's radius after "affine map, activation" bounded by
``|diag(s) W diag(m)| R``: m is 0 where no input can change, s holds anchored slopes
(``LayerRules.slopes``). The radius found so far is used at once, in the
boxes of the next layers too. Why that holds for DEPLOYED float32 values, not only for real ones:

Let c be the verifier's computed centre, z' any deployed value of the input, |z' - c| <= R and
z'_i = c_i exactly where m_i = 0 (box without width, at the centre). Deployed a' = W z' + b + d',
|d'| <= g (|W| |z'| + |b|); computed a = W c + b + d, |d| <= g_own (|W| |c| + |b|). The box [l, u]
holds a' itself, rounding included, and a is the number that was computed, so the slope inequality
|phi(a'_i) - phi(a_i)| <= s_i |a'_i - a_i| needs no further rounding. Hence, elementwise,
    |phi(a') - phi(a)| <= s |W diag(m) (z' - c)| + s (|d'| + |d|)
(for sorted pairs in the norm of each pair, which has one slope), and in norm at most |diag(s) W
diag(m)| R + g | |W| | (|c| + R) + g_own | |W| | |c| + (g + g_own) |b|: ``ball_rule`` with the local
norm in the place of |W|. A deployed LeakyReLU may be off by 3 u |a'| and ours by 3 u_own |a|: its
own ``ball_rule`` (factor - 1) R_a + offset is added, with R_a the radius around a and |a'| <= |a| +
R_a.

Each norm is the least of several bounds that include the global one, and every radius and box is
intersected with BCP's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.enclosure import Enclosure
from workers.verification.forward.ball import (
    ball_rule,
    has_ball_rule,
    reads_norm,
    steepest_slope,
)
from workers.verification.forward.propagation import (
    AffineMap,
    ForwardPass,
    has_forward_rule,
    start,
)
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of
from workers.verification.norms.per_sample import (
    MaskedMap,
    forward_cost,
    multiplications,
    tally_min,
)
from workers.verification.numerics import (
    nonzero,
    per_sample,
    raised,
    rough_norm,
    rounding_error,
    up,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["Further", "LocalPass", "has_local_rule"]

#: Gram matrices may cost this many plain forward passes per sample, or this many multiplications.
GRAM_PASSES, GRAM_MIN = 80.0, 2.0**27
#: Power steps of the estimates that say whether expensive norms are worth it.
GRAM_GUESS, LANCZOS_GUESS = 12, 5
#: Lanczos may work on layers that make up this share of a forward pass (a step on each of them
#: counts some 130 times).
LANCZOS_SHARE = 0.15
#: What a Lanczos bound may exceed such an estimate by, and room for the estimate to be wrong.
INFLATION, SAFETY = 1.1, 0.97
#: (step index, map, slopes, least bounds so far) -> bounds [batch] on the norms of M.
Further = Callable[[int, MaskedMap, Tensor, Tensor], Tensor]


def has_local_rule(op: Affine | Layer) -> bool:
    """Whether the pass covers the step: slopes are used where there are any, on top of the ball."""
    return has_forward_rule(op) and (rules_of(op).slopes is None or has_ball_rule(op))


@dataclass
class _Mapped:
    """W diag(m) of step ``index``, and how the ball before it grows with a norm found for it."""

    masked: MaskedMap
    index: int
    radius: Tensor
    extra: float
    offset: Tensor | float

    def grown(self, norm: Tensor) -> Tensor:
        """Radius after the map if its norm is at most ``norm`` [batch], roundings included."""
        grown = raised(raised(norm + self.extra) * self.radius + self.offset)
        return torch.where(torch.isinf(self.radius), self.radius, grown)


@dataclass
class _AfterMap(Enclosure):
    """What an affine map gave; an activation that reads it brings its slopes to the norm."""

    mapped: _Mapped = field(kw_only=True)


@dataclass
class LocalPass(ForwardPass):
    """One propagation. ``exact``: Gram matrices too; ``further``: one more bound on norms;
    ``tally`` counts which bound was the least, per sample and layer; ``norms`` keeps them.
    ``keep``: maps and slopes are kept too, for ``potentials``. ``clock``: looked at
    before every step and every Gram matrix."""

    compiled: CompiledNetwork
    region: Region
    rounding: Rounding
    dtype: torch.dtype
    exact: bool = False
    further: Further | None = None
    tally: Counter[str] | None = None
    norms: dict[int, Tensor] = field(default_factory=dict)
    keep: bool = False
    parts: dict[int, tuple[MaskedMap, Tensor]] = field(default_factory=dict)
    clock: Clock = UNLIMITED

    def __post_init__(self) -> None:
        super().__init__(self.rounding, self.clock)
        budget = max(GRAM_PASSES * forward_cost(self.compiled), GRAM_MIN)
        self._budget = [budget] * self.region.x.shape[0]
        readers: dict[int, list[bool]] = {}
        for step in self.compiled.steps:
            for source in step.sources:
                readers.setdefault(source, []).append(rules_of(step.op).slopes is not None)
        # Values that are read by activations with slopes alone (and by at least one).
        self._only_activated = {value for value, kinds in readers.items() if all(kinds)}

    def run(self) -> Enclosure:
        """The enclosure before the head."""
        return self.through(self.compiled.steps, start(self.region, self.dtype))

    def affine(self, index: int, step: GraphStep, op: AffineMap, state: Enclosure) -> Enclosure:
        """Radius and box after W diag(m); the norm waits for slopes that alone read the value."""
        result = super().affine(index, step, op, state)
        if not isinstance(op, Dense | Convolution) or state.lower is None:
            return result
        masked = MaskedMap.of(op, state)
        _, offset = ball_rule(step, rough_norm(state.centre), self.rounding)
        sound = self.rounding.is_sound
        extra = op.deployed_rounding(step.norms, self.rounding)[0] if sound else 0.0
        mapped = _Mapped(masked, index, state.radius, extra, offset)
        if index + 1 not in self._only_activated:
            norm = self._norm(index, masked, torch.ones_like(result.centre))
            result.radius = torch.minimum(result.radius, mapped.grown(norm))
        if masked.masked and result.lower is not None and result.upper is not None:
            reach = self._reach(masked, result.centre, state)
            torch.maximum(result.lower, result.centre - reach, out=result.lower)
            torch.minimum(result.upper, result.centre + reach, out=result.upper)
        return _AfterMap(**vars(result), mapped=mapped)

    def layer(self, index: int, step: GraphStep, inputs: list[Enclosure]) -> Enclosure:
        """The radius after an activation by its anchored slopes."""
        result, before = super().layer(index, step, inputs), inputs[0]
        rule = rules_of(step.op).slopes
        if rule is None or before.lower is None or before.upper is None:
            return result
        steepest = steepest_slope(step)
        # A power of two: slopes in it are at most 1, and nothing is rounded.
        unit = 2.0 ** math.ceil(math.log2(steepest))
        slopes = rule(step.op, before.centre, before.lower, before.upper) / unit
        zeros = torch.zeros_like(before.radius)
        size = rough_norm(before.centre) if reads_norm(step.op) else zeros
        factor, offset = ball_rule(step, size, self.rounding)
        radius = slopes.flatten(1).amax(1).to(torch.float64) * before.radius * unit
        if isinstance(before, _AfterMap):
            mapped = before.mapped
            norm = self._norm(mapped.index, mapped.masked, slopes) * unit
            radius = torch.minimum(radius, mapped.grown(norm))
        # What rounding adds beyond the slopes; an activation that only shrinks adds nothing.
        extra = max(factor - steepest, 0.0)
        radius = raised(radius + extra * before.radius + offset)
        radius = torch.where(torch.isinf(before.radius), before.radius, radius)
        result.radius = torch.minimum(result.radius, radius)
        return result

    def _reach(self, masked: MaskedMap, centre: Tensor, before: Enclosure) -> Tensor:
        """|z'_i - c_i| <= |W_i m| R + (g + g_own) (|W_i| |c| + |b_i|) + g |W_i| R, see
        ``ForwardPass.reach``; coordinates that cannot change still round."""
        op, rounding = masked.op, self.rounding
        unit = unit_roundoff(centre.dtype)
        raise_by = up(15, centre.dtype)
        reach = masked.rows * per_sample(before.radius * (masked.scale * raise_by), centre)
        if not rounding.is_sound:
            return reach
        both = rounding.deployed_gamma(op.terms) + rounding.own_gamma(op.own_terms) + 32 * unit
        floor = rounding.underflow * op.floor
        constant = op.cast(
            f"ball constant {both}", centre, lambda: rounding_error(op.bias_magnitude, both) + floor
        )
        coefficient = both * (rough_norm(before.centre) + before.radius) * raise_by
        rows = op.bound_like("row_norms", centre)
        return reach.addcmul_(rows, per_sample(coefficient, centre)).add_(constant)

    def _norm(self, index: int, masked: MaskedMap, slopes: Tensor) -> Tensor:
        """Upper bound on |diag(s) W diag(m)| for every sample, [batch] float64."""
        steepest = slopes.flatten(1).amax(1).to(torch.float64)
        names = ["global", "frobenius"]
        bounds = [steepest * self.compiled.steps[index].norms.spectral, masked.frobenius(slopes)]
        bounds.append(masked.schur(slopes, torch.minimum(bounds[0], bounds[1])))
        names.append("schur")
        if self.exact:
            names.append("gram")
            bounds.append(self._gram(masked, slopes))
        if self.further is not None:
            least = torch.stack(bounds).amin(0)
            names.append("lanczos")
            bounds.append(self.further(index, masked, slopes, least))
        self.norms[index] = tally_min(names, bounds, self.tally)
        if self.keep:
            self.parts[index] = (masked, slopes)
        return self.norms[index]

    def potentials(self, rows: Tensor, *, gram: bool) -> dict[int, Tensor]:
        """Per layer an estimate [rows] of what its exact norm (``gram``: of small maps only) could
        save: a lower estimate of the norm over the bound in use, at most 1."""
        result = {}
        for index, (masked, slopes) in self.parts.items():
            if gram and not masked.gram_feasible():
                continue
            self.clock.check()
            guess = masked.guess(rows, slopes, GRAM_GUESS if gram else LANCZOS_GUESS)
            ratio = guess / nonzero(self.norms[index][rows])
            result[index] = ratio.nan_to_num(nan=1.0).clamp(1e-9, 1.0)
        return result

    def cheapest(self, potentials: dict[int, Tensor], needed: Tensor) -> dict[int, Tensor]:
        """Per layer [rows] bool: layers whose estimated savings reach ``needed`` [rows], those that
        save most per multiplication first; none where all that may be paid for do not reach it."""
        indices = list(potentials)
        hoped = -torch.stack([potentials[index] for index in indices]).log()
        gains = (hoped - math.log(INFLATION)).clamp_min(0.0)
        counts = [float(multiplications(self.parts[index][0].op)) for index in indices]
        costs = torch.tensor(counts, dtype=torch.float64, device=hoped.device)[:, None]
        order = (gains / costs).argsort(dim=0, descending=True, stable=True)
        ordered = gains.gather(0, order)
        before = ordered.cumsum(0) - ordered
        paid = costs.expand_as(gains).gather(0, order).cumsum(0)
        picked = (before < -(needed * SAFETY).log()) & (ordered > 0)
        picked &= paid <= LANCZOS_SHARE * costs.sum()
        chosen = torch.zeros_like(gains, dtype=torch.bool).scatter_(0, order, picked)
        chosen &= (hoped * chosen).sum(0) >= -needed.log()
        return dict(zip(indices, chosen, strict=True))

    def _gram(self, masked: MaskedMap, slopes: Tensor) -> Tensor:
        found = []
        for row in range(slopes.shape[0]):
            self.clock.check()
            norm, cost = masked.gram(row, slopes, self._budget[row])
            self._budget[row] -= cost
            found.append(norm)
        return torch.tensor(found, dtype=torch.float64, device=slopes.device)
