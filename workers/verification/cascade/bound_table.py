"""The bounds by name. A new bound is one file in ``bounds/`` or ``complete/`` and one row here."""

from __future__ import annotations

from functools import partial

from workers.verification.backward.backward_pass import has_backward_rule
from workers.verification.backward.quadratic_pass import has_quadratic_rule
from workers.verification.bounds.alpha_crown import alpha_crown_margins
from workers.verification.bounds.alpha_crown_intermediate import alpha_crown_intermediate_margins
from workers.verification.bounds.arithmetics import MarginsBound, RadiusBound
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crc import crc_radius, has_smooth_head
from workers.verification.bounds.crown import cap_margins, crown_margins
from workers.verification.bounds.crown_ball import crown_ball_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.bounds.lipschitz import backward_lipschitz_radius, lipschitz_radius
from workers.verification.bounds.local_lipschitz import local_margins, randomized_local_margins
from workers.verification.bounds.zonotope import zonotope_margins, zonotope_memory
from workers.verification.complete.branch_and_bound import BranchAndBound
from workers.verification.complete.in_turn import InTurn, all_cover, memory_of
from workers.verification.complete.milp import ProgrammeSearch
from workers.verification.forward.ball import has_ball_rule
from workers.verification.forward.local_pass import has_local_rule
from workers.verification.forward.propagation import has_forward_rule
from workers.verification.protocol import Bound, activation_memory
from workers.verification.results import EFFORTS

__all__ = ["BOUNDS", "auto_bounds"]

#: Backward bounds carry about so many rows per sample, and lose little by float32: by so small a
#: share of the margin at the centre.
BACKWARD_ROWS, BACKWARD_RETRY_SHARE = 32, 0.05

BOUNDS: dict[str, Bound] = {
    bound.name: bound
    for bound in (
        RadiusBound(
            name="lipschitz",
            norms=("l2", "linf"),
            has_rule=has_ball_rule,
            expected_passes=4,
            memory=activation_memory(2),
            radius=lipschitz_radius,
            backward_radius=backward_lipschitz_radius,
        ),
        MarginsBound(
            name="ibp",
            norms=("l2", "linf"),
            has_rule=has_forward_rule,
            expected_passes=5,
            memory=activation_memory(8),
            margins=interval_margins,
            backward_budget=True,
            boxes_only=True,
        ),
        MarginsBound(
            name="bcp",
            norms=("l2", "linf"),
            has_rule=has_forward_rule,
            expected_passes=6,
            memory=activation_memory(10),
            dominates=("ibp",),
            margins=bcp_margins,
            backward_budget=True,
        ),
        MarginsBound(
            name="local-lip",
            norms=("l2", "linf"),
            has_rule=has_local_rule,
            expected_passes=10,
            memory=activation_memory(20),
            dominates=("ibp", "bcp"),
            margins=local_margins,
            randomized=randomized_local_margins,
            backward_budget=True,
        ),
        RadiusBound(
            name="crc",
            norms=("l2", "linf"),
            has_rule=has_ball_rule,
            expected_passes=20,
            memory=activation_memory(4),
            worth_trying=has_smooth_head,
            radius=crc_radius,
        ),
        MarginsBound(
            name="crown",
            norms=("l2", "linf"),
            has_rule=has_backward_rule,
            expected_passes=1_000,
            memory=activation_memory(30),
            margins=crown_margins,
            rows_per_sample=BACKWARD_ROWS,
            retreats=True,
            tells_slack=True,
            backward_budget=True,
        ),
        MarginsBound(
            name="cap",
            norms=("l2", "linf"),
            has_rule=has_backward_rule,
            expected_passes=1_000,
            memory=activation_memory(30),
            auto_norms=(),  # for comparison with its paper: auto runs crown
            margins=cap_margins,
            rows_per_sample=BACKWARD_ROWS,
            tells_slack=True,
            backward_budget=True,
        ),
        MarginsBound(
            name="zonotope",
            norms=("l2", "linf"),
            has_rule=has_forward_rule,
            expected_passes=6_000,
            memory=zonotope_memory,
            auto_norms=(),  # for comparison with its papers: crown and alpha-crown are cheaper
            dominates=("ibp", "bcp"),
            margins=zonotope_margins,
            in_search=partial(zonotope_margins, iterations=0),
            search_passes=1_500,
            rows_per_sample=BACKWARD_ROWS,
            retry_share=BACKWARD_RETRY_SHARE,
        ),
        MarginsBound(
            name="crown-ball",
            norms=("l2", "linf"),
            has_rule=has_quadratic_rule,
            expected_passes=3_000,
            memory=activation_memory(60),
            auto_norms=("l2",),  # in linf the ball says nothing that the box does not
            replaces=("crown",),
            margins=crown_ball_margins,
            in_search=partial(crown_ball_margins, rounds=1),
            search_passes=2_500,
            metered=True,
            retreats=True,
            rows_per_sample=BACKWARD_ROWS,
            retry_share=0.0,  # what is proved is proved in float64: boxes alone are not
            retry_most=0.02,
        ),
        MarginsBound(
            name="alpha-crown",
            norms=("l2", "linf"),
            has_rule=has_backward_rule,
            expected_passes=5_000,
            memory=activation_memory(60),
            dominates=("crown",),
            within=0.5,
            margins=alpha_crown_margins,
            rows_per_sample=BACKWARD_ROWS,
            tells_slack=True,
            backward_budget=True,
        ),
        MarginsBound(
            name="alpha-crown-intermediate",
            norms=("l2", "linf"),
            has_rule=has_backward_rule,
            expected_passes=10_000,
            memory=activation_memory(100),
            dominates=("crown", "alpha-crown"),
            within=0.2,
            margins=alpha_crown_intermediate_margins,
            rows_per_sample=BACKWARD_ROWS,
            tells_slack=True,
            backward_budget=True,
        ),
        BranchAndBound(
            name="branch-and-bound",
            norms=("l2", "linf"),
            has_rule=has_backward_rule,
            expected_passes=50_000,
            most_passes=1e6,
            memory=activation_memory(100),
            effort="exhaustive",  # a sample that stays open takes all of its passes
            dominates=("crown", "alpha-crown", "alpha-crown-intermediate"),
        ),
        BranchAndBound(
            name="milp",
            norms=("l2", "linf"),
            has_rule=has_backward_rule,
            expected_passes=80_000,
            most_passes=5e5,
            memory=activation_memory(100),
            auto_norms=("linf",),  # what a programme knows of an l2 ball is the box around it
            effort="exhaustive",
            dominates=("crown", "alpha-crown", "alpha-crown-intermediate"),
            search=ProgrammeSearch,
        ),
    )
}


#: COLT's order of attempts, without the attack, which the cascade runs before.
COLT = (BOUNDS["zonotope"], BOUNDS["alpha-crown-intermediate"], BOUNDS["milp"])

BOUNDS["colt"] = InTurn(
    name="colt",
    norms=("l2", "linf"),
    has_rule=all_cover(COLT),
    expected_passes=90_000,
    memory=memory_of(COLT),
    auto_norms=(),  # for comparison with its paper: auto has the last two stages alone
    dominates=("ibp", "bcp", "zonotope", "crown", "alpha-crown", "alpha-crown-intermediate"),
    stages=COLT,
)


def auto_bounds(norm: str, effort: str = "standard") -> list[Bound]:
    """What ``method: auto`` runs for this norm and effort, in this order: the cheapest first."""
    allowed = EFFORTS[: EFFORTS.index(effort) + 1]
    bounds = [
        bound for bound in BOUNDS.values() if norm in bound.auto_norms and bound.effort in allowed
    ]
    return sorted(bounds, key=lambda bound: bound.expected_passes)
