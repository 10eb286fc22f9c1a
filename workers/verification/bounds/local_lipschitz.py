"""Margins by local Lipschitz bounds (Local-Lip, Huang et al., NeurIPS 2021): ``local-lip``.

Ball and box with per-sample operator norms (``local_pass``, where the proof stands), in stages:
cheap norms for all samples, Gram matrices for those still open, and Lanczos from random starts only
if that is asked for. What stays open by a little is tried with BCP itself, whose radii are never
smaller but by rounding: whatever BCP proves, this bound proves.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from workers.verification.bounds.bcp import bcp_margins
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.forward.local_pass import Further, LocalPass
from workers.verification.forward.margins import certified, margin_lower_bounds
from workers.verification.forward.propagation import Enclosure
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.lanczos import FailureBudget
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["local_margins", "randomized_local_margins"]

#: BCP itself is asked where a local margin lacks at most this share of the centre's margin.
NEAR = 0.05

#: A stage is left out for samples whose margin it would have to raise by more than this many times
#: the margin at the centre: Gram matrices, Lanczos.
HOPE = {"gram": 2.0, "lanczos": 1.0}


def local_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    exact: bool = True,
    further: Callable[[Region, dict[int, Tensor]], Further] | None = None,
    tally: Counter[str] | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region; the label's column is inf.

    Cheap norms for all samples; Gram matrices, then ``further``(region, layers [samples] to try)
    for those still open, where an estimate says that they may decide. Where the time is over, what
    the stages so far have found counts. Sound for every row, in the deployed network too
    (``rounding``), if ``further`` is. Raises OutOfTime before the first stage has answered.
    """
    first = LocalPass(compiled, region, rounding, dtype, tally=tally, keep=True, clock=clock)
    state = first.run()
    margins = margin_lower_bounds(compiled.head, state, labels, rounding, clock=clock)
    if tally is not None:
        tally["decided: cheap norms"] += int(certified(margins).sum())
    clean = _clean_margin(compiled, state, labels)
    with contextlib.suppress(OutOfTime):
        _improve(first, state.valid, labels, margins, clean, exact, further)
        _at_least_bcp(compiled, region, labels, rounding, dtype, margins, clean, clock)
    return margins


def _improve(
    first: LocalPass,
    valid: Tensor,
    labels: Tensor,
    margins: Tensor,
    clean: Tensor,
    exact: bool,
    further: Callable[[Region, dict[int, Tensor]], Further] | None,
) -> None:
    """Raise ``margins`` in place: Gram matrices, then ``further``, where they may decide."""
    compiled, region, rounding, tally = first.compiled, first.region, first.rounding, first.tally
    for name in ("gram", "lanczos") if further is not None else ("gram",):
        gram = name == "gram"
        if gram and not exact:
            continue
        least = margins.amin(1)
        hopeful = ~(least < -HOPE[name] * clean) & valid & ~certified(margins)
        rows = hopeful.nonzero().flatten()
        if not rows.numel():
            continue
        # The margin falls in proportion to the radius: to this share it must shrink.
        needed = clean[rows] / (clean[rows] - least[rows])
        potentials = first.potentials(rows, gram=gram)
        product = torch.stack([torch.ones_like(needed), *potentials.values()]).prod(0)
        worth = product <= needed
        rows, needed = rows[worth], needed[worth]
        if not rows.numel() or not potentials:
            continue
        part = region.part(rows, region.x.device)
        norm = None
        if not gram:
            assert further is not None
            left = {index: values[worth] for index, values in potentials.items()}
            layers = first.cheapest(left, needed)
            if not bool(torch.stack(list(layers.values())).any()):
                continue
            norm = further(part, layers)
        again = LocalPass(
            compiled, part, rounding, first.dtype, gram, norm, tally, clock=first.clock
        ).run()
        found = margin_lower_bounds(compiled.head, again, labels[rows], rounding, clock=first.clock)
        margins[rows] = torch.fmax(margins[rows], found)
        if tally is not None:
            tally[f"decided: {name}"] += int(certified(found).sum())


def randomized_local_margins(
    failure_budget: FailureBudget,
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """The same with Lanczos norms for what is open after all others: valid up to
    ``failure_budget``.
    """

    def maker(part: Region, layers: dict[int, Tensor]) -> Further:
        return partial(failure_budget.norms, compiled, part, layers, clock=clock)

    return local_margins(compiled, region, labels, rounding, dtype, further=maker, clock=clock)


def _clean_margin(compiled: CompiledNetwork, state: Enclosure, labels: Tensor) -> Tensor:
    """|least margin| at the centre, [batch] float64: a scale, not a bound."""
    head = compiled.head.on(state.centre.device)
    logits = head.logits(state.centre.flatten(1).to(torch.float64))
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (logits.gather(1, labels[:, None])[:, 0] - others).abs()


def _at_least_bcp(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    margins: Tensor,
    clean: Tensor,
    clock: Clock,
) -> None:
    """BCP's margins too, in place, where they could be better: by roundings, so only near zero."""
    least = margins.amin(1)
    near = ~(least > 0) & ~(least < -NEAR * clean)
    rows = (near | torch.isneginf(least)).nonzero().flatten()
    if rows.numel():
        part = region.part(rows, region.x.device)
        found = bcp_margins(compiled, part, labels[rows], rounding, dtype, clock=clock)
        margins[rows] = torch.fmax(margins[rows], found)
