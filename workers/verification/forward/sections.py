"""How a ball grows over a part of the graph whose Lipschitz constant is known as a whole.

Let f be the part in real arithmetic, |f(z) - f(c)| <= L |z - c|. The deployed value at z' and the
verifier's at its centre c differ by at most L |z' - c| + E, where E is what the roundings of both
evaluations have become at the end of the part. Step by step, with K the Lipschitz constant of a
step's real function in all its inputs, the error e of its result obeys
    e <= K (sum of its inputs' errors) + rho(|z'|) + rho_own(|c|),
rho and rho_own what the step itself rounds for inputs of such a size. ``ball_rule`` for a centre of
the size |c| + R says no less: its factor is at least K and its offset at least the two roundings,
which grow with the size. Errors of several inputs are summed, not joined otherwise, because each of
them is itself the sum of two.

A convolution C around the image itself (``Section.whole``): the numbers that are laid around it
round nothing, and the leaves of all sums together, each a weight times a number of the image, have
the norm |t|^2 <= s^2 |z|^2, z the image WITHOUT what lies around it and s the convolution's largest
column, because no tap takes a number twice; the sums of groups of channels |C P_g z| <= |C| |P_g
z|, because channels stay what they are. So the roundings are those of one map of the norm |C| for
inputs of the size |z| (``summation``): of a 4 x 4 image with its border that is 1.5 times as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workers.verification.enclosure import Enclosure
from workers.verification.forward.ball import ball_rule
from workers.verification.graph.graph_step import GraphStep, Section
from workers.verification.numerics import raised, rough_norm
from workers.verification.rounding import Rounding

__all__ = ["KnownParts", "inner_values", "section_error"]


def inner_values(steps: Sequence[GraphStep]) -> frozenset[int]:
    """The values whose sizes ``section_error`` asks for, in all parts that are known."""
    return frozenset(
        source
        for step in steps
        if step.section is not None
        for index in step.section.steps
        for source in steps[index].sources
    )


def section_error(
    section: Section,
    steps: Sequence[GraphStep],
    sizes: Mapping[int, Tensor],
    rounding: Rounding,
) -> Tensor:
    """E [batch] float64: what the roundings inside the part may add at its end.

    sizes: at least |z'| of every deployed value between and of the verifier's own, [batch].
    """
    if section.whole is not None:
        last = replace(steps[section.steps[-1]], norms=section.whole)
        return raised(
            torch.zeros_like(sizes[section.start])
            + ball_rule(last, sizes[section.start], rounding)[1]
        )
    errors = {section.start: torch.zeros_like(sizes[section.start])}
    for index in section.steps:
        step = steps[index]
        size, error = (
            torch.stack([found[source] for source in step.sources]).sum(0)
            for found in (sizes, errors)
        )
        factor, offset = ball_rule(step, size, rounding)
        errors[index + 1] = raised(factor * error + offset)
    return errors[section.steps[-1] + 1]


class KnownParts:
    """What is known of parts of the graph as a whole, for a pass that goes through its steps."""

    def __init__(self, steps: Sequence[GraphStep], rounding: Rounding) -> None:
        self.steps, self.rounding = steps, rounding
        self.wanted = inner_values(steps)
        self.sizes: dict[int, Tensor] = {}
        self.radii: dict[int, Tensor] = {}

    @classmethod
    def of(cls, steps: Sequence[GraphStep], rounding: Rounding) -> KnownParts | None:
        """None where no part is known, as in training: a pass has nothing to do for them."""
        for step in steps:
            if step.section is not None:
                return cls(steps, rounding)
        return None

    def read(self, step: GraphStep, inputs: Sequence[Enclosure]) -> None:
        """Keep the sizes of what a step reads."""
        for source, state in zip(step.sources, inputs, strict=True):
            if source in self.wanted and source not in self.sizes:
                self.radii[source] = state.radius
                self.sizes[source] = raised(rough_norm(state.centre) + state.radius)

    def tighten(self, step: GraphStep, result: Enclosure) -> None:
        """The radius behind a part that ends here, if that is less."""
        section = step.section
        if section is None:
            return
        error = section_error(section, self.steps, self.sizes, self.rounding)
        radius = raised(section.norm * self.radii[section.start] + error)
        result.radius = torch.fmin(result.radius, radius)
