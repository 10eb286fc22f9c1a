"""The rows of ``samples.jsonl`` as columns: filtered, sorted and cut into pages in milliseconds.

A file never changes once it is there, so the tables of the last few jobs that somebody looked at
are kept. A file that is too long to keep is not read at all: its rows can be had as CSV.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ORDERS", "SampleTable", "Wish", "sample_table"]

_MOST_BYTES = 24 * 1024 * 1024
_KEPT = 4

ORDERS = ("index", "label", "prediction", "margin", "radius")
VERDICTS = ("certified", "undecided", "falsified", "misclassified")


@dataclass(frozen=True)
class Wish:
    """Which rows, in which order: ``epsilon`` is the place of the one that verdicts are of."""

    epsilon: int = 0
    verdict: str | None = None
    label: int | None = None
    method: str | None = None
    order: str = "index"
    descending: bool = False


class SampleTable:
    """Columns [n] of the rows; ``certified`` and ``falsified`` are [n, epsilons]."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        nothing = float("nan")
        self.count = len(rows)
        self.index = np.array([row["index"] for row in rows], dtype=np.int64)
        self.prediction = np.array([row["prediction"] for row in rows], dtype=np.int64)
        labels = [-1 if row["label"] is None else row["label"] for row in rows]
        self.label = np.array(labels, dtype=np.int64)
        margins = [nothing if row["margin"] is None else row["margin"] for row in rows]
        self.margin = np.array(margins, dtype=np.float64)
        radii = [
            np.inf if row["unbounded"] else nothing if row["radius"] is None else row["radius"]
            for row in rows
        ]
        self.radius = np.array(radii, dtype=np.float64)
        self.certified = np.array([row["certified"] for row in rows], dtype=bool)
        self.falsified = np.array([row["falsified"] for row in rows], dtype=bool)
        self.method = np.array([row["method"] for row in rows], dtype=object)
        self.methods = sorted({*self.method.tolist()})
        self.labels = sorted({*self.label.tolist()} - {-1})

    def finite_radii(self) -> list[float]:
        """The radii that are numbers."""
        found: list[float] = self.radius[np.isfinite(self.radius)].tolist()
        return found

    def verdicts(self, epsilon: int) -> NDArray[np.int64]:
        """The place in VERDICTS of each row's verdict at an epsilon, [n]."""
        wrong = (self.label >= 0) & (self.label != self.prediction) | (self.prediction < 0)
        found = np.full(self.count, VERDICTS.index("undecided"), dtype=np.int64)
        found[self.falsified[:, epsilon]] = VERDICTS.index("falsified")
        found[self.certified[:, epsilon]] = VERDICTS.index("certified")
        found[wrong] = VERDICTS.index("misclassified")
        return found

    def chosen(self, wish: Wish) -> NDArray[np.int64]:
        """Places of the rows that are asked for, in the order asked for."""
        keep = np.ones(self.count, dtype=bool)
        if wish.verdict is not None:
            keep &= self.verdicts(wish.epsilon) == VERDICTS.index(wish.verdict)
        if wish.label is not None:
            keep &= self.label == wish.label
        if wish.method is not None:
            keep &= self.method == wish.method
        places = np.flatnonzero(keep)
        column: NDArray[Any] = getattr(self, wish.order)[places]
        # What is not known comes last in either order.
        unknown = np.isnan(column.astype(np.float64))
        keys = -column if wish.descending else column
        return places[np.lexsort((places, np.where(unknown, 0, keys), unknown))]


_lock = threading.Lock()
_tables: OrderedDict[tuple[str, int, int], SampleTable] = OrderedDict()


def sample_table(path: Path) -> SampleTable | None:
    """The table of a file; None where it is too long for that, or empty."""
    facts = path.stat()
    if not 0 < facts.st_size <= _MOST_BYTES:
        return None
    key = (str(path), facts.st_mtime_ns, facts.st_size)
    with _lock:
        known = _tables.get(key)
        if known is not None:
            _tables.move_to_end(key)
            return known
    # One call for all lines is much faster than one for each.
    table = SampleTable(json.loads(b"[" + b",".join(path.read_bytes().splitlines()) + b"]"))
    with _lock:
        _tables[key] = table
        while len(_tables) > _KEPT:
            _tables.popitem(last=False)
    return table
