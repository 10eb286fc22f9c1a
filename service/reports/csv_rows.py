"""The report as comma-separated values: one row per sample."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["render_csv"]

_COLUMNS = ("index", "label", "prediction", "margin", "radius", "method")
#: A cell that starts with one of these may be run as a formula by a spreadsheet.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def render_csv(report: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of the table: a header, then one per row of ``samples.jsonl``.

    Columns: ``index,label,prediction,margin,radius,method``, then ``certified@EPS,falsified@EPS``
    per epsilon, EPS written as in the JSON report. Truth values are ``true`` and ``false``; a value
    that is not known is empty; an unbounded radius is ``inf``.
    """
    columns = list(_COLUMNS)
    for epsilon in report["threat"]["epsilons"]:
        columns += [f"certified@{epsilon!r}", f"falsified@{epsilon!r}"]
    yield _line(columns)
    for row in samples:
        cells = [_cell(row[column]) for column in _COLUMNS]
        if row["unbounded"]:
            cells[_COLUMNS.index("radius")] = "inf"
        for certified, falsified in zip(row["certified"], row["falsified"], strict=True):
            cells += [_cell(certified), _cell(falsified)]
        yield _line(cells)


def _cell(value: bool | float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return "'" + value if value.startswith(_FORMULA_STARTS) else value


def _line(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()
