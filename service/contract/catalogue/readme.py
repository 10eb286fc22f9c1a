"""README's tables of methods, made from the rows, so that they cannot say anything else.

They stand between two comments that HTML does not show; ``python -m service.contract.catalogue``
writes them anew, and a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.contract.catalogue.methods import METHODS
from service.contract.catalogue.training_methods import TRAINING_METHODS

__all__ = ["BEGIN", "END", "tables", "with_tables"]

BEGIN = "<!-- made from service/contract/catalogue by `make docs`: begin -->"
END = "<!-- end -->"


def tables() -> str:
    """The certification and the training methods as Markdown, a row each."""
    certify = _table(
        ("`method`", "what it does", "forward passes per sample", "source"),
        ((f"`{row.name}`", row.title, row.cost, row.source) for row in METHODS.values()),
    )
    train = _table(
        ("`method` of a training", "what it minimises", "plain steps per step", "source"),
        ((f"`{row.name}`", row.title, row.cost, row.source) for row in TRAINING_METHODS.values()),
    )
    return f"{certify}\n\n{train}"


def with_tables(text: str) -> str:
    """``text`` with the tables between the two comments. Raises ValueError where one is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {END if begin else BEGIN}")
    return f"{before}{begin}\n\n{tables()}\n\n{end}{after}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    ruler = "|".join(["---"] * len(head))
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{ruler}|", *lines])
