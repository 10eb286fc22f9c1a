"""The certification methods a spec may name: one row each, which also feeds GET /methods.

A new method is one row here and its bound in ``workers/verification/``. README's table is made
from the rows, and a test compares them with the table of bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """What a method proves and costs.

    expected_passes: plain forward passes per sample and epsilon, roughly, as the work budget of
    ``auto`` counts them; None where it depends on the sample. spent: the same in words.
    deterministic: whether every bound holds with certainty; else some hold up to a failure
    probability where the spec allows it (``deterministic: false``), and the report states it.
    """

    name: str
    title: str
    guarantee: str
    norms: tuple[str, ...]
    expected_passes: float | None
    spent: str
    source: str
    deterministic: bool = True

    @property
    def cost(self) -> str:
        """In words, in plain forward passes per sample."""
        if self.expected_passes is None:
            return self.spent
        return f"about {self.expected_passes:,.0f} {self.spent}"

    def described(self) -> dict[str, Any]:
        """The row as GET /methods lists it."""
        return {
            "name": self.name,
            "title": self.title,
            "guarantee": self.guarantee,
            "norms": list(self.norms),
            "cost": self.cost,
            "expected_passes": self.expected_passes,
            "deterministic": self.deterministic,
            "source": self.source,
        }


_BOTH = ("l2", "linf")

_ROWS = (
    Method(
        "auto",
        "Cheapest bound first, each on what is still open, an attack before the expensive ones",
        "sound: the union of what the bounds below prove",
        _BOTH,
        None,
        "as much as the open samples need, within a work budget",
        "the cascade of all bounds",
        deterministic=False,
    ),
    Method(
        "lipschitz",
        "Global Lipschitz radius per pair of classes, in closed form",
        "sound: operator norms are proved upper bounds (no power iteration)",
        _BOTH,
        4,
        "for all epsilons, and the operator norms once per model",
        "Tsuzuku, Sato, Sugiyama 2018; Leino, Wang, Fredrikson 2021",
    ),
    Method(
        "ibp",
        "Interval bound propagation",
        "sound: every neuron's interval holds all inputs of the ball",
        _BOTH,
        5,
        "per epsilon",
        "Gowal et al. 2018",
    ),
    Method(
        "bcp",
        "Box constraint propagation: ball and box together, the last layer by its dual",
        "sound: every multiplier of the dual gives a valid bound",
        _BOTH,
        6,
        "per epsilon",
        "Lee, Lee, Park 2020",
    ),
    Method(
        "local-lip",
        "Ball and box with operator norms per sample: what cannot change is left out",
        "sound: whatever bcp proves and more; not `deterministic`, some norms are proved up to a "
        "failure probability, which the report states",
        _BOTH,
        10,
        "per epsilon, up to 150 for samples that stay open",
        "Huang, Zhang, Shi, Kolter, Anandkumar 2021",
        deterministic=False,
    ),
    Method(
        "crc",
        "Distance to the class boundaries of a one-hidden-layer softplus head, by its curvature",
        "sound: every iterate of the dual gives a valid bound, curvatures are proved",
        _BOTH,
        20,
        "for all epsilons, and the curvatures once per model",
        "Singla, Feizi 2020; Singla, Feizi 2022",
    ),
    Method(
        "crown",
        "Linear relaxation, backward, adaptive slopes; for l2 with the pixel box",
        "sound: rounding of every step is part of the bound",
        _BOTH,
        1_000,
        "per epsilon",
        "Zhang et al. 2018",
    ),
    Method(
        "cap",
        "The same backward pass with the chord's slope",
        "sound: rounding of every step is part of the bound",
        _BOTH,
        1_000,
        "per epsilon",
        "Wong, Kolter 2018",
    ),
    Method(
        "zonotope",
        "Zonotopes, forward: the slope of least area at every unstable neuron, then learnt slopes",
        "sound: any slopes are valid; rounding of every step is carried beside the error terms",
        _BOTH,
        6_000,
        "per epsilon",
        "Singh et al. 2018 (DeepZ); Balunovic, Vechev 2020 (COLT)",
    ),
    Method(
        "crown-ball",
        "CROWN over ball and box together: a quadratic bound with free slopes of all neurons, 60 "
        "gradient steps",
        "sound: whatever the search finds is proved in float64, rounding of every step inside",
        _BOTH,
        3_000,
        "per epsilon",
        "after Chiu et al. 2025 (SDP-CROWN)",
    ),
    Method(
        "alpha-crown",
        "CROWN with the slopes of the last bound optimised by 20 gradient steps",
        "sound: every iterate is a bound of its own, the best one counts",
        _BOTH,
        5_000,
        "per epsilon",
        "Xu et al. 2021",
    ),
    Method(
        "alpha-crown-intermediate",
        "alpha-CROWN over intermediate layers too: both ends of every unstable neuron's box are "
        "optimised by 10 gradient steps, layer by layer, then the last bound again",
        "sound: whatever alpha-crown proves and more; every box met holds, the best one counts",
        _BOTH,
        10_000,
        "per epsilon where alpha-crown leaves a sample open",
        "Xu et al. 2021",
    ),
    Method(
        "branch-and-bound",
        "Complete search: unstable ReLUs are split, slopes and multipliers optimised on both sides",
        "sound: both sides together hold every float32 execution, bounds are proved in float64; "
        "it falsifies too, and what is left when work or time is spent is undecided",
        _BOTH,
        50_000,
        "per epsilon, at most 1,000,000, or `sample_time_s` seconds for each sample",
        "Wang et al. 2021 (beta-CROWN); De Palma et al. 2021 (FSB)",
    ),
    Method(
        "milp",
        "Mixed-integer programming over unstable ReLUs: linear programmes by HiGHS, boxes refined "
        "by searches of their own, branching of our own",
        "sound: every dual of the solver is a hint that is proved in float64, every point a claim "
        "that is replayed; it falsifies too, and what is left when work or time is spent is "
        "undecided",
        _BOTH,
        80_000,
        "per epsilon, at most 500,000, or `sample_time_s` seconds for each sample",
        "Tjeng et al. 2019; Singh et al. 2019; Neumaier, Shcherbina 2004",
    ),
    Method(
        "colt",
        "COLT's order of attempts: zonotopes, learnt slopes, then boxes and margins refined by "
        "alpha-CROWN in the place of its linear programmes, then MILP",
        "sound: whatever zonotope, alpha-crown-intermediate or milp proves",
        _BOTH,
        90_000,
        "per epsilon where zonotopes leave a sample open, at most 516,000, or `sample_time_s` "
        "seconds for each sample",
        "Balunovic, Vechev 2020",
    ),
)

#: Methods by name, in the order of the table.
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
