"""Ball and box with per-sample operator norms (Local-Lip, Huang et al., NeurIPS 2021).

Ball and box as in BCP, with the ball's radius after "affine map, activation" bounded by
``|diag(s) W diag(m)| R``: m is 0 where no input can change, s holds anchored slopes
(``LayerRules.slopes``; methods-lipschitz 2.1, 2.5). The radius found so far is used at once, in the
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
from workers.verification.forward.ball import ball_rule, has_ball_rule, reads_norm
from workers.verification.forward.propagation import carry, has_forward_rule
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
from workers.verification.numerics import per_sample, rough_norm
from workers.verification.region import Region
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["Further", "LocalPass", "has_local_rule"]

#: Gram matrices may cost this many plain forward passes per sample, or this many multiplications.
GRAM_PASSES, GRAM_MIN = 80.0, 2.0**27
#: Power steps of the estimates that say whether dear norms are worth it.
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
class LocalPass:
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
        budget = max(GRAM_PASSES * forward_cost(self.compiled), GRAM_MIN)
        self._budget = [budget] * self.region.x.shape[0]

    def run(self) -> Enclosure:
        """The enclosure before the head."""
        steps = self.compiled.steps
        values: list[Enclosure | None] = [self._start()]
        maps: dict[int, MaskedMap] = {}
        last_use = {source: i for i, step in enumerate(steps) for source in step.sources}
        only_active = self._only_activated()
        for index, step in enumerate(steps):
            self.clock.check()
            inputs = [values[source] for source in step.sources]
            states = [state for state in inputs if state is not None]
            assert len(states) == len(inputs)
            result = carry(step, states, self.rounding)
            if isinstance(step.op, Dense | Convolution) and states[0].lower is not None:
                masked = MaskedMap.of(step.op, states[0])
                maps[index + 1] = masked
                self._linear(index, masked, states[0], result, index + 1 in only_active)
            elif rules_of(step.op).slopes is not None:
                source = step.sources[0]
                before = None if source == 0 else values[steps[source - 1].sources[0]]
                self._activation(index, states[0], result, maps.get(source), before)
            values.append(result)
            self._drop(values, maps, last_use, index)
        final = values[-1]
        assert final is not None
        return final

    def _start(self) -> Enclosure:
        lower, upper = self.region.box(self.dtype)
        radius = self.region.radius(lower, upper)
        centre = self.region.x.to(self.dtype)
        is_round = self.region.norm == "l2"
        return Enclosure(centre, radius, lower, upper, torch.isfinite(radius), round=is_round)

    def _drop(
        self,
        values: list[Enclosure | None],
        maps: dict[int, MaskedMap],
        last_use: dict[int, int],
        index: int,
    ) -> None:
        """Forget what no later step reads (an activation reads its affine map's input too)."""
        for source in range(len(values) - 1):
            if last_use.get(source, -1) > index:
                continue
            maps.pop(source, None)
            producers = (
                value for value in maps if source in self.compiled.steps[value - 1].sources
            )
            if next(producers, None) is None:
                values[source] = None

    def _only_activated(self) -> set[int]:
        """Values that are read by activations with slopes alone (and by at least one)."""
        readers: dict[int, list[bool]] = {}
        for step in self.compiled.steps:
            for source in step.sources:
                readers.setdefault(source, []).append(rules_of(step.op).slopes is not None)
        return {value for value, kinds in readers.items() if all(kinds)}

    def _grown(self, step: GraphStep, norm: Tensor, before: Enclosure) -> Tensor:
        """Radius after an affine map whose norm is at most ``norm`` [batch], roundings included."""
        assert isinstance(step.op, Affine)
        assert step.norms is not None
        _, offset = ball_rule(step, rough_norm(before.centre), self.rounding)
        deployed = self.rounding.deployed_gamma(step.op.terms)
        extra = deployed * step.norms.absolute if self.rounding.is_sound else 0.0
        grown = ((norm + extra) * (1.0 + 1e-14) * before.radius + offset) * (1.0 + 1e-14)
        return torch.where(torch.isinf(before.radius), before.radius, grown)

    def _linear(
        self, index: int, masked: MaskedMap, before: Enclosure, result: Enclosure, activated: bool
    ) -> None:
        """Tighten radius and box after W diag(m)."""
        step = self.compiled.steps[index]
        if not activated:
            ones = torch.ones_like(result.centre)
            norm = self._norm(index, masked, ones)
            result.radius = torch.minimum(result.radius, self._grown(step, norm, before))
        if not masked.masked or result.lower is None or result.upper is None:
            return
        reach = self._reach(masked, result.centre, before)
        torch.maximum(result.lower, result.centre - reach, out=result.lower)
        torch.minimum(result.upper, result.centre + reach, out=result.upper)

    def _reach(self, masked: MaskedMap, centre: Tensor, before: Enclosure) -> Tensor:
        """|z'_i - c_i| <= |W_i m| R + (g + g_own) (|W_i| |c| + |b_i|) + g |W_i| R, see
        ``propagation._ball_reach``; coordinates that cannot change still round."""
        op, rounding = masked.op, self.rounding
        unit = unit_roundoff(centre.dtype)
        up = 1.0 + 32 * unit
        reach = masked.rows * per_sample(before.radius * (masked.scale * up), centre)
        if not rounding.is_sound:
            return reach
        both = rounding.deployed_gamma(op.terms) + rounding.own_gamma(op.terms) + 32 * unit
        floor = rounding.underflow * op.floor
        constant = op.cast(
            f"ball constant {both}", centre, lambda: op.bias_magnitude * both * 1.001 + floor
        )
        coefficient = both * (rough_norm(before.centre) + before.radius) * up
        rows = op.bound_like("row_norms", centre)
        return reach.addcmul_(rows, per_sample(coefficient, centre)).add_(constant)

    def _activation(
        self,
        index: int,
        before: Enclosure,
        result: Enclosure,
        masked: MaskedMap | None,
        source: Enclosure | None,
    ) -> None:
        """Tighten the radius after an activation by its anchored slopes."""
        step = self.compiled.steps[index]
        rule = rules_of(step.op).slopes
        if rule is None or before.lower is None or before.upper is None:
            return
        slopes = rule(step.op, before.centre, before.lower, before.upper)
        zeros = torch.zeros_like(before.radius)
        size = rough_norm(before.centre) if reads_norm(step.op) else zeros
        factor, offset = ball_rule(step, size, self.rounding)
        radius = slopes.flatten(1).amax(1).to(torch.float64) * before.radius
        if masked is not None and source is not None:
            affine = step.sources[0] - 1
            norm = self._norm(affine, masked, slopes)
            grown = self._grown(self.compiled.steps[affine], norm, source)
            radius = torch.minimum(radius, grown)
        # What rounding adds beyond the slopes; an activation that only shrinks adds nothing.
        extra = max(factor - 1.0, 0.0)
        radius = (radius + extra * before.radius + offset) * (1.0 + 1e-13)
        radius = torch.where(torch.isinf(before.radius), before.radius, radius)
        result.radius = torch.minimum(result.radius, radius)

    def _norm(self, index: int, masked: MaskedMap, slopes: Tensor) -> Tensor:
        """Upper bound on |diag(s) W diag(m)| for every sample, [batch] float64."""
        norms = self.compiled.steps[index].norms
        assert norms is not None
        steepest = slopes.flatten(1).amax(1).to(torch.float64)
        names = ["global", "frobenius"]
        bounds = [steepest * norms.spectral, masked.frobenius(slopes)]
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
            ratio = guess / self.norms[index][rows].clamp_min(1e-300)
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
