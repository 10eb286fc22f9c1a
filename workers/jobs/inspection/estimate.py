"""What a job is going to cost, told in the job after ``prepare``: before any bound has run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.protocol import Bound
from workers.verification.results import POOL

__all__ = ["estimate", "property_estimate"]


def estimate(
    compiled: CompiledNetwork,
    bounds: Sequence[Bound],
    *,
    samples: int,
    epsilons: int,
    attack_passes: float,
    work: float | None,
    pass_s: float,
    memory: float,
) -> dict[str, Any]:
    """The members of ``service.contract.schemas.submissions.Estimate``.

    bounds: that cover the network, in order; attack_passes: forward passes of the attack per sample
    and epsilon (0: none); work: forward passes that the bounds may cost altogether (None: no
    limit); pass_s: seconds of one forward pass of one sample; memory: bytes that a bound may take
    for a sample.
    """
    fitting = [bound for bound in bounds if bound.memory(compiled) <= memory]
    pool = math.inf if work is None else work / samples * min(POOL, samples)
    affordable = [bound for bound in fitting if bound.expected_passes <= pool]
    most = samples * epsilons * sum(bound.max_passes for bound in affordable)
    passes = min(most, math.inf if work is None else work) + samples * epsilons * attack_passes
    out = [bound.name for bound in bounds if bound not in affordable]
    beyond = [bound for bound in bounds if bound.expected_passes > attack_passes]
    warning = None
    if not affordable:
        warning = (
            f"The network is too large for every bound of the method ({', '.join(out)}): nothing "
            "but an attack will decide a sample."
        )
    elif beyond and not any(bound in affordable for bound in beyond):
        cheap = ", ".join(bound.name for bound in affordable)
        warning = (
            f"For {', '.join(out)} the network is too large, or the samples are too many for the "
            f"effort: what {cheap} leave open only an attack can decide. Fewer samples, a larger "
            "effort or more memory for the workers may help."
        )
    return {
        "samples": samples,
        "forward_passes": passes,
        "worker_s": passes * pass_s,
        "left_out": out,
        "warning": warning,
    }


def property_estimate(
    compiled: CompiledNetwork,
    bounds: Sequence[Bound],
    *,
    boxes: int,
    questions: int,
    attack_passes: float,
    splits: bool,
    work: float | None,
    time_s: float | None,
    pass_s: float,
    memory: float,
) -> dict[str, Any]:
    """The same of a property, whose ``samples`` are its boxes.

    questions: that a bound is asked on all boxes together; attack_passes: of the attack on all of
    them; splits: some box may be cut into smaller ones, until work or time is spent, of which one
    is given then; work: as of ``estimate``, time_s: of a whole job with a clock instead.
    """
    fitting = [bound for bound in bounds if bound.memory(compiled) <= memory]
    out = [bound.name for bound in bounds if bound not in fitting]
    limits = [work, None if time_s is None else time_s / pass_s]
    if not splits:
        limits.append(questions * sum(bound.max_passes for bound in fitting or bounds[:1]))
    passes = min(limit for limit in limits if limit is not None) + attack_passes
    warning = None
    if not fitting:
        warning = (
            f"The network is too large for every bound of the method ({', '.join(out)}): hardly "
            "anything but an attack will decide a box. More memory for the workers may help."
        )
    elif out and all(bound.expected_passes <= attack_passes / boxes for bound in fitting):
        cheap = ", ".join(bound.name for bound in fitting)
        warning = (
            f"For {', '.join(out)} the network is too large: what {cheap} leave open only an "
            "attack, or smaller boxes, can decide. More memory for the workers may help."
        )
    return {
        "samples": boxes,
        "forward_passes": passes,
        "worker_s": passes * pass_s,
        "left_out": out,
        "warning": warning,
    }
