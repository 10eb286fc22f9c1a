"""Two reports beside each other: figures at the epsilons of either, and sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from service.console.views.figures import accuracy_chart
from service.console.views.sample_table import sample_table
from service.reports.epsilon_names import epsilon_name

__all__ = ["comparison"]

Side = tuple[Mapping[str, Any], Path]

#: What of two reports is shown in two columns: name, how to read it.
_FACTS: tuple[tuple[str, Callable[[Mapping[str, Any]], Any]], ...] = (
    ("model", lambda r: r["model"]["name"]),
    ("data set", lambda r: r["dataset"]["name"]),
    ("samples", lambda r: r["dataset"]["samples"]),
    ("norm", lambda r: r["threat"]["norm"]),
    ("method", lambda r: r["method"]),
    ("soundness", lambda r: r["soundness"]),
    ("parameters", lambda r: r["model"]["parameters"]),
    ("worker seconds", lambda r: round(r["timing"]["wall_s"], 1)),
)


def comparison(a: Side, b: Side) -> dict[str, Any]:
    """Rows per epsilon, one chart, facts, and the samples that the two decide otherwise."""
    reports = (a[0], b[0])
    same_norm = a[0]["threat"]["norm"] == b[0]["threat"]["norm"]
    by_epsilon = [{_exact(row): row for row in report["results"]} for report in reports]
    exact = sorted({*by_epsilon[0], *by_epsilon[1]}, key=Fraction)
    return {
        "facts": [(name, read(a[0]), read(b[0])) for name, read in _FACTS],
        "same_norm": same_norm,
        "rows": [
            {
                "name": epsilon_name(epsilon),
                "a": by_epsilon[0].get(epsilon),
                "b": by_epsilon[1].get(epsilon),
            }
            for epsilon in exact
        ],
        "chart": _chart(reports) if same_norm else None,
        "samples": _samples(a, b, exact) if same_norm else None,
    }


def _exact(row: Mapping[str, Any]) -> str:
    return row.get("epsilon_exact") or repr(row["epsilon"])


def _chart(reports: tuple[Mapping[str, Any], Mapping[str, Any]]) -> dict[str, Any]:
    """Both certified curves at all positions of either, each on its safe side."""
    charts = [accuracy_chart(report) for report in reports]
    x = sorted({*charts[0]["x"], *charts[1]["x"]})
    lines = []
    for name, chart in zip("AB", charts, strict=True):
        places = np.searchsorted(chart["x"], x, side="left")
        values = [
            chart["certified"][place] if place < len(chart["x"]) else None for place in places
        ]
        lines.append({"name": name, "values": values})
    return {"kind": "comparison", "x": x, "lines": lines, "label": charts[0]["label"]}


def _samples(a: Side, b: Side, exact: list[str]) -> list[dict[str, Any]] | None:
    """How many samples of both are certified by both, one or none; None for other data."""
    digests = [side[0]["dataset"].get("digest") or side[0]["dataset"]["id"] for side in (a, b)]
    names = [(side[0]["dataset"]["name"], side[0]["dataset"].get("split")) for side in (a, b)]
    tables = [sample_table(side[1]) for side in (a, b)]
    if digests[0] != digests[1] or (names[0] != names[1] and digests[0] is None):
        return None
    first, second = tables
    if first is None or second is None:
        return None
    _, of_first, of_second = np.intersect1d(first.index, second.index, return_indices=True)
    found = []
    places = [
        {_exact(row): place for place, row in enumerate(side[0]["results"])} for side in (a, b)
    ]
    for epsilon in exact:
        if epsilon in places[0] and epsilon in places[1]:
            left = first.certified[of_first, places[0][epsilon]]
            right = second.certified[of_second, places[1][epsilon]]
            found.append(
                {
                    "name": epsilon_name(epsilon),
                    "common": len(of_first),
                    "both": int((left & right).sum()),
                    "only_a": int((left & ~right).sum()),
                    "only_b": int((~left & right).sum()),
                    "neither": int((~left & ~right).sum()),
                }
            )
    return found
