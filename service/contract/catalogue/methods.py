"""The certification methods a spec may name: one row each, which also feeds GET /methods.

A new method is one row here and its bound in ``workers/verification/``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """What a method proves and costs; ``cost`` is in plain forward passes per sample."""

    name: str
    title: str
    guarantee: str
    norms: tuple[str, ...]
    cost: str
    source: str


_ROWS = (
    Method(
        "auto",
        "Cheapest bound first, each on what is still open, then an attack",
        "sound: the union of what the bounds below prove",
        ("l2", "linf"),
        "as much as the open samples need, within a work budget",
        "the cascade of all bounds",
    ),
    Method(
        "lipschitz",
        "Global Lipschitz radius per pair of classes",
        "sound: operator norms are proved upper bounds (no power iteration)",
        ("l2", "linf"),
        "about 1.5, and the operator norms once per model",
        "Tsuzuku, Sato, Sugiyama 2018; Leino, Wang, Fredrikson 2021",
    ),
    Method(
        "ibp",
        "Interval bound propagation",
        "sound: every neuron's interval holds all inputs of the ball",
        ("l2", "linf"),
        "about 2 per epsilon",
        "Gowal et al. 2018",
    ),
    Method(
        "bcp",
        "Box constraint propagation: ball and box together, the last layer by its dual",
        "sound: every multiplier of the dual gives a valid bound",
        ("l2", "linf"),
        "about 5 per epsilon",
        "Lee, Lee, Park 2020",
    ),
    Method(
        "local-lip",
        "Ball and box with operator norms per sample: what cannot change is left out",
        "sound: whatever bcp proves and more; not `deterministic`, some norms are proved up to a "
        "failure probability, which the report states",
        ("l2", "linf"),
        "about 10 per epsilon, up to 150 for samples that stay open",
        "Huang, Zhang, Shi, Kolter, Anandkumar 2021",
    ),
    Method(
        "crown",
        "Linear relaxation, backward, adaptive slopes; for l2 with the pixel box",
        "sound: rounding of every step is part of the bound",
        ("l2", "linf"),
        "about 1,000 per epsilon",
        "Zhang et al. 2018",
    ),
    Method(
        "cap",
        "The same backward pass with the chord's slope",
        "sound: rounding of every step is part of the bound",
        ("l2", "linf"),
        "about 1,000 per epsilon",
        "Wong, Kolter 2018",
    ),
    Method(
        "alpha-crown",
        "CROWN with the slopes of the last bound optimised by 20 gradient steps",
        "sound: every iterate is a bound of its own, the best one counts",
        ("l2", "linf"),
        "about 5,000 per epsilon",
        "Xu et al. 2021",
    ),
    Method(
        "alpha-crown-intermediate",
        "alpha-CROWN over intermediate layers too: both ends of every unstable neuron's box are "
        "optimised by 10 gradient steps, layer by layer, then the last bound again",
        "sound: whatever alpha-crown proves and more; every box met holds, the best one counts",
        ("l2", "linf"),
        "about 10,000 per epsilon where alpha-crown leaves a sample open",
        "Xu et al. 2021",
    ),
)

#: Methods by name, in the order of the table.
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
