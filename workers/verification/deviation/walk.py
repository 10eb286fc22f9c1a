"""How far every value of the deployed network may be from the real one's, layer by layer.

For an input x' of the region let z be the values of the network in real arithmetic and z' those of
any float32 execution: z'_i+1 = f_i(z') + e_i, where |e_i| <= d_i is what step i itself rounds. The
deviation z' - z obeys
    (z' - z)_i+1 = s_i (z' - z) + e_i,
exactly: s_i is W of an affine step, and of an elementwise one the slope of a secant between z and
z', which is one number wherever the box around both has no kink.

THE INVARIANT, after every step: for every input of the region and every execution there,
    z in [lower, upper],   |z' - z| <= far (elementwise),   |z' - z|_2 <= length.
It holds at the input (far = 0: both networks read the same float32 numbers). Affine: far <- |W| far
+ d and length <- |W|_2 length + |d|_2, with d = g (|W| max |z'| + |b|) and |z'| <= max(-lower,
upper) + far; the lesser of far and |W_i| length + d counts. Elementwise: far <- max |s| far + error
for the secants between lower - far and upper + far, which hold z and z'.

These products of |W| grow by far more than the deviation itself, so they only decide for most
neurons that they are far from a kink (and a row is never worth more than |c|_2 length). Where a
kink is near, ``far`` is found by a row of its own
(``deviation.rows``): c . (z' - z) for fixed c is carried back,
    c . (z' - z)_i+1 = (m c) . (z' - z) + c . e + ((s - m) c) . (z' - z),
with the middle m of the possible s, so that |c| (d + (high - low) / 2 far) is paid at each step and
nothing else. Stable neurons pay nothing but d: the sum over all layers of |derivative| d.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.backward.adjoint import fan_out, has_adjoint
from workers.verification.backward.intermediate_bounds import (
    from_input,
    plain_bound,
    rows_at_once,
    unit_forms,
    widest,
)
from workers.verification.deviation.rows import DeviationRows, Passage
from workers.verification.enclosure import Enclosure
from workers.verification.forward.sections import section_error
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of
from workers.verification.layers.rules import Ball, Differences, Secants
from workers.verification.norms.per_sample import costliest
from workers.verification.numerics import (
    FEW,
    MANY,
    euclidean_norm,
    raised,
    rounding_error,
    slack,
)
from workers.verification.rounding import Rounding, overflow_ceiling, unit_roundoff

__all__ = ["DeviationWalk", "secants_of"]

#: Neurons whose secants differ by no more than this get no row of their own, and of a value and a
#: sample no more than so many do: those that would pay most. A row costs about a forward pass.
WORTH_A_ROW = 1.0 / 16.0
ROWS_AT_MOST = 256


def secants_of(step: GraphStep, lower: Tensor, upper: Tensor, rounding: Rounding) -> Secants | None:
    """The secants of an elementwise layer over the box; None where no rule has them."""
    rules = rules_of(step.op)
    if rules.secants is not None:
        secants: Secants = rules.secants(step.op, lower, upper, rounding)
        return secants
    if rules.two_lines is None:
        return None
    lines = rules.two_lines(step.op, lower, upper, rounding)
    below, above = (
        torch.as_tensor(slope, dtype=lower.dtype, device=lower.device).expand_as(lower)
        for slope in (lines.below, lines.above)
    )
    low = torch.where(
        lower >= 0, above, torch.where(upper <= 0, below, torch.minimum(below, above))
    )
    high = torch.where(
        lower >= 0, above, torch.where(upper <= 0, below, torch.maximum(below, above))
    )
    return Secants(low, high, lines.error)


def _few(places: Tensor, weight: Tensor) -> Tensor:
    """``places`` [batch, *shape] bool, of each sample at most ``ROWS_AT_MOST``: the heaviest."""
    flat = places.flatten(1)
    if int(flat.sum(1).amax()) <= ROWS_AT_MOST:
        return places
    heavy = torch.where(flat, weight.flatten(1), -torch.inf)
    chosen = torch.zeros_like(flat)
    chosen.scatter_(1, heavy.topk(ROWS_AT_MOST, dim=1).indices, value=True)
    return (chosen & flat).reshape(places.shape)


@dataclass
class DeviationWalk:
    """One way through the steps; afterwards ``rows`` bounds any row on any value.

    values: enclosures [batch, *shape] of the REAL network's values over the region, float64 (value
    i + 1 is step i's result). valid [batch]: where no deployed step may overflow float32.
    """

    rows: DeviationRows
    values: list[Enclosure]
    valid: Tensor
    rounding: Rounding = field(default_factory=lambda: Rounding.sound(torch.float64))

    @property
    def compiled(self) -> CompiledNetwork:
        """The network."""
        return self.rows.compiled

    def run(self) -> None:
        """Through all steps. Raises OutOfTime."""
        start = self.values[0].centre
        self.rows.hold(torch.zeros_like(start), start.new_zeros(len(start)))
        for index, step in enumerate(self.compiled.steps):
            self.rows.clock.check()
            passage, far, length = self._step(index, step)
            far = far.nan_to_num(torch.inf, torch.inf)
            length = self._over_section(step, length).nan_to_num(torch.inf, torch.inf)
            self.rows.add(passage, far, torch.fmin(length, raised(euclidean_norm(far))))

    def reach(self, value: int) -> Tensor:
        """Largest |z'| and |z|, [batch, *shape]."""
        state = self.values[value]
        assert state.lower is not None
        assert state.upper is not None
        size = torch.maximum(-state.lower, state.upper)
        return raised(size + self.rows.far[value], 1)

    def _size(self, value: int) -> Tensor:
        """Largest |z'|_2, [batch]."""
        state = self.values[value]
        within = euclidean_norm(state.centre) + state.radius + self.rows.lengths[value]
        return raised(torch.fmin(euclidean_norm(self.reach(value)), within))

    def _step(self, index: int, step: GraphStep) -> tuple[Passage, Tensor, Tensor]:
        if isinstance(step.op, Affine):
            return self._affine(index, step, step.op)
        rules = rules_of(step.op)
        # A layer that copies makes a deviation longer, and sums of its rows' coefficients round.
        copies = step.overlap > 1
        if rules.linear is not None and rules.backward is not None and not copies:
            return self._linear(index, step)
        if rules.differences is not None and rules.ball is not None:
            return self._sorted(step, rules.differences, rules.ball)
        if len(step.sources) == 1:
            made = self._elementwise(step)
            if made is not None:
                return made
        return self._unknown(step)

    def _affine(self, index: int, step: GraphStep, op: Affine) -> tuple[Passage, Tensor, Tensor]:
        (source,) = step.sources
        far, length = self.rows.far[source], self.rows.lengths[source]
        reach = self.reach(source)
        size = op.absolute(reach) + op.bound_like("bias_magnitude", reach)
        self._keep_valid(size, op.terms)
        largest = reach.flatten(1).amax(1)
        self._keep_valid(op.inner.gain * largest + op.inner.shift, op.terms)
        carried = rounding_error(op.absolute(far), terms=op.own_terms)
        # W z' of the deployed z': the real W z, and what W makes of the deviation.
        sums = raised(self._largest_sums(index, op) + carried, 1)
        local = op.output_rounding(reach, sums, self.rounding)
        local = local + self.rounding.underflow * op.floor
        rows = op.row_norms_like(local)
        ball = rows * length.reshape(-1, *([1] * (local.dim() - 1)))
        result = raised(torch.fmin(carried, ball) + local)
        norm = step.norms.spectral
        grown = torch.where(length > 0, norm * length, 0.0)
        if step.section is not None and step.section.whole is not None:
            # What is laid around an image rounds nothing.
            started = self.rows.lengths[step.section.start]
            grown = torch.fmin(grown, raised(step.section.norm * started))
        length = raised(grown + self._rounded(step, op, local, length), MANY)
        own = Rounding.sound(self.rows.dtype).own_gamma(max(op.own_terms, fan_out(op)))
        if not has_adjoint(op):
            return Passage(result, ends=True), result, length
        return Passage(raised(local + own * carried)), result, length

    def _rounded(self, step: GraphStep, op: Affine, local: Tensor, length: Tensor) -> Tensor:
        """At least |d|_2, d <= ``local``: around the centre c each output rounds what its products
        there say, and z' - c in all outputs together what is said of its length."""
        state = self.values[step.sources[0]]
        assert step.norms is not None
        at_centre = op.linear(state.centre).abs()
        size = op.absolute(state.centre.abs())
        sums = raised(at_centre + rounding_error(size, self.rounding.own_gamma(op.own_terms)))
        reach = self.reach(step.sources[0])
        at_centre = op.output_rounding(reach, sums, self.rounding, exact=state.centre)
        at_centre = euclidean_norm(at_centre + self.rounding.underflow * op.floor)
        unit = self.rounding.deployed
        share = op.rounding_share(step.norms, unit, op.terms, op.summation)
        beside = share * (state.radius + length)
        return torch.fmin(euclidean_norm(local), raised(at_centre + beside, MANY))

    def _over_section(self, step: GraphStep, length: Tensor) -> Tensor:
        """The length behind a part that is known as a whole and ends here, if that is less."""
        section, steps = step.section, self.compiled.steps
        if section is None or section.whole is not None:
            return length
        inside = {source for index in section.steps for source in steps[index].sources}
        sizes = {value: self._size(value) for value in inside}
        error = section_error(section, steps, sizes, self.rounding)
        return torch.fmin(length, raised(section.norm * self.rows.lengths[section.start] + error))

    def _largest_sums(self, index: int, op: Affine) -> Tensor:
        """At least |W z| of the real network, [batch, *shape]."""
        state = self.values[index + 1]
        assert state.lower is not None
        assert state.upper is not None
        bias = op.bias_like(state.lower)
        least, most = state.lower - bias, state.upper - bias
        # Differences are off by a roundoff of their parts' size.
        size = torch.maximum(state.lower.abs(), state.upper.abs()) + bias.abs()
        return torch.maximum(-least, most) + raised(size) * (4 * unit_roundoff(size.dtype))

    def _linear(self, index: int, step: GraphStep) -> tuple[Passage, Tensor, Tensor]:
        part = rules_of(step.op).linear
        ball = rules_of(step.op).ball
        assert part is not None
        carried = part.change(step.op, *(self.rows.far[source] for source in step.sources))
        carried = raised(carried)
        local = torch.zeros_like(carried)
        if part.rounds:
            state = self.values[index + 1]
            assert state.lower is not None
            assert state.upper is not None
            size = raised(torch.maximum(-state.lower, state.upper) + carried, 1)
            local = slack(size, self.rounding.single_operation, self.rounding)
            local = local + 4 * self.rounding.underflow
            self._keep_valid(size, 2)
        lengths = [self.rows.lengths[source] for source in step.sources]
        joined = torch.stack(lengths).sum(0) if ball is None else ball.join.radius(lengths)
        length = raised(joined + euclidean_norm(local))
        return Passage(local), raised(carried + local, 1), length

    def _elementwise(self, step: GraphStep) -> tuple[Passage, Tensor, Tensor] | None:
        (source,) = step.sources
        secants = self._secants(step)
        if secants is None:
            return None
        apart = secants.high - secants.low
        if self._refined(source, apart > WORTH_A_ROW, apart * self.rows.far[source]):
            secants = self._secants(step)
            assert secants is not None
        far, length = self.rows.far[source], self.rows.lengths[source]
        steepest = torch.maximum(secants.low.abs(), secants.high.abs())
        error = torch.zeros_like(far) if secants.error is None else secants.error
        middle = ((secants.low + secants.high) * 0.5).to(self.rows.dtype).to(far.dtype)
        rest = torch.maximum(secants.high - middle, middle - secants.low)
        # Each product of a coefficient with a slope is off by a roundoff.
        rest = rest + middle.abs() * (4 * unit_roundoff(self.rows.dtype))
        paid = raised(rest * far + error, FEW)
        result = raised(steepest * far + error)
        length = raised(steepest.flatten(1).amax(1) * length + euclidean_norm(error))
        return Passage(paid, slopes=middle), result, length

    def _sorted(
        self, step: GraphStep, rule: Differences, ball: Ball
    ) -> tuple[Passage, Tensor, Tensor]:
        shares = rule.shares(step.op, [self._deployed_box(source) for source in step.sources])
        places, refined = rule.open(shares, len(step.sources)), False
        for source in dict.fromkeys(step.sources):
            refined |= self._refined(source, places, self.rows.far[source])
        if refined:
            boxes = [self._deployed_box(source) for source in step.sources]
            shares = rule.shares(step.op, boxes)
        unit = unit_roundoff(self.rows.dtype)
        far = [self.rows.far[source] for source in step.sources]
        paid, result = rule.carried(shares, far, unit)
        length = ball.join.radius([self.rows.lengths[source] for source in step.sources])
        return Passage(paid, slopes=shares), result, length

    def _refined(self, source: int, near: Tensor, weight: Tensor) -> bool:
        """Gives neurons of a value rows of their own, the heaviest of those that are ``near`` a
        kink; False: there are none."""
        if not source or from_input(self.compiled, source) is not None:
            return False
        far = self.rows.far[source]
        near = near & (far > 0) & torch.isfinite(far) & self._shaped_valid(near)
        near = _few(near, weight)
        if not bool(near.any()):
            return False
        self._refine(source, near)
        return True

    def _deployed_box(self, value: int) -> tuple[Tensor, Tensor]:
        """What holds both z and z'."""
        state, far = self.values[value], self.rows.far[value]
        assert state.lower is not None
        assert state.upper is not None
        low, high = state.lower - far, state.upper + far
        # Outward: differences are off by a roundoff of their size.
        more = (low.abs() + high.abs()) * (4 * unit_roundoff(far.dtype))
        return low - more, high + more

    def _secants(self, step: GraphStep) -> Secants | None:
        (source,) = step.sources
        return secants_of(step, *self._deployed_box(source), self.rounding)

    def _unknown(self, step: GraphStep) -> tuple[Passage, Tensor, Tensor]:
        """By the ball's rule: a real execution is one of those that it holds for."""
        ball = rules_of(step.op).ball
        shape = (len(self.valid), *step.shape)
        if ball is None:
            nothing = torch.full(shape, torch.inf, dtype=torch.float64, device=self.valid.device)
            return Passage(nothing, ends=True), nothing, nothing.flatten(1)[:, 0]
        size = torch.stack([self._size(source) for source in step.sources]).sum(0)
        if ball.reads_norm:
            self._keep_valid(size, 2)
        self.valid = self.valid & (size < ball.largest_input)
        joined = ball.join.radius([self.rows.lengths[source] for source in step.sources])
        length = ball.grown(step, joined, size, self.rounding)
        far = length.reshape(-1, *([1] * len(step.shape))).expand(shape)
        return Passage(far, ends=True), far, length

    def _refine(self, value: int, places: Tensor) -> None:
        """Rows of their own for single neurons [batch, *shape] bool of a value."""
        rows, compiled = self.rows, self.compiled
        chosen = places.nonzero(as_tuple=True)
        width = rows_at_once(widest(compiled), costliest(compiled), places.device, plain_bound)
        rows.windows.clear()
        for start in range(0, chosen[0].numel(), width):
            some = tuple(axis[start : start + width] for axis in chosen)
            source, unit, _, paid = unit_forms(rows, value, some)
            found = raised(rows.most(source, unit) + paid)
            rows.far[value][some] = torch.fmin(rows.far[value][some], found)
        rows.windows.clear()

    def _keep_valid(self, size: Tensor, terms: float) -> None:
        largest = size.flatten(1).amax(1) if size.dim() > 1 else size
        self.valid = self.valid & (largest < overflow_ceiling(terms))

    def _shaped_valid(self, like: Tensor) -> Tensor:
        return self.valid.reshape(-1, *([1] * (like.dim() - 1)))
