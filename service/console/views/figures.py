"""The numbers behind the charts of a page, in the form that the script hands to uPlot.

A chart has one list of positions for all its lines. ``certified`` takes at each position the value
of the next epsilon of the report's curve, and the accuracy under attack that of the last asked
epsilon before: so every line is, between the figures of the report, on the safe side of the truth.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from service.reports.accuracy_curve import axis_end, band_half_width
from service.reports.epsilon_names import epsilon_names

__all__ = ["accuracy_chart", "history_charts", "radius_chart", "thinned"]

_BARS = 40
#: Epochs that the charts and the table of a training show at most.
_EPOCHS = 80


def accuracy_chart(report: Mapping[str, Any]) -> dict[str, Any]:
    """Certified, attacked and clean accuracy over epsilon, with the band and the asked epsilons."""
    end = axis_end(report)
    curve = sorted(
        zip(report["curve"]["epsilon"], report["curve"]["certified_accuracy"], strict=True)
    )
    points, shares = [point for point, _ in curve], [share for _, share in curve]
    rows = sorted(report["results"], key=lambda row: float(row["epsilon"]))
    asked = [row["epsilon"] for row in rows]
    x = sorted({0.0, end, *(e for e in (*points, *asked) if e <= end)})
    clean = report["clean_accuracy"]
    attacked = [row["attack_accuracy"] for row in rows]
    with_attack = any(value is not None for value in attacked)
    half = band_half_width(max(1, report["dataset"]["samples"]))
    certified = [_at_next(points, shares, position) for position in x]
    names = epsilon_names(report)
    return {
        "kind": "accuracy",
        "x": x,
        "certified": certified,
        "low": [None if v is None else round(max(0.0, v - half), 6) for v in certified],
        "high": [None if v is None else round(min(1.0, v + half), 6) for v in certified],
        "attacked": [_at_last(asked, attacked, position, clean) for position in x]
        if with_attack
        else None,
        "clean": clean,
        "asked": [
            {"epsilon": row["epsilon"], "name": name, "certified": row["certified_accuracy"]}
            for row, name in zip(report["results"], names, strict=True)
            if row["epsilon"] <= end
        ],
        "label": f"ε ({report['threat']['norm']} distance)",
    }


def _at_next(points: Sequence[float], shares: Sequence[float], position: float) -> float | None:
    """The value of a step that ends at its point; None beyond the last one."""
    place = bisect_left(points, position)
    return shares[place] if place < len(points) else None


def _at_last(
    asked: Sequence[float], attacked: Sequence[float | None], position: float, clean: float | None
) -> float | None:
    """The least that was left by an attack within ``position``; before the first, the clean one."""
    place = bisect_right(asked, position)
    known = [value for value in attacked[:place] if value is not None]
    return min(known) if known else clean


def radius_chart(radii: Sequence[float], norm: str) -> dict[str, Any] | None:
    """How many samples have a certified radius in each of some equal ranges; None without any."""
    found = [radius for radius in radii if radius > 0]
    if not found:
        return None
    width = max(found) / _BARS
    if width <= 0:
        return None
    counts = [0] * _BARS
    for radius in found:
        counts[min(int(radius / width), _BARS - 1)] += 1
    return {
        "kind": "radius",
        "x": [(place + 0.5) * width for place in range(_BARS)],
        "counts": counts,
        "width": width,
        "label": f"certified radius ({norm})",
    }


#: Of a training: key of a row, name of the line, its colour.
_ACCURACIES = (
    ("accuracy", "clean, training", "clean"),
    ("validation_accuracy", "clean, validation", "attacked"),
    ("robust", "robust, training (estimate)", "soft"),
    ("validation_robust", "robust, validation (estimate)", "certified"),
)


def thinned(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of a long training at equal distances, the last one among them."""
    step = max(1, math.ceil(len(history) / _EPOCHS))
    return [row for place, row in enumerate(history) if (len(history) - 1 - place) % step == 0]


def _short(value: float | None) -> float | None:
    """What a chart can show of a value: four digits."""
    return None if value is None else float(f"{value:.4g}")


def history_charts(
    plan: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Loss and accuracies per epoch; nothing before the first epoch has ended."""
    if not history:
        return []
    history = thinned(history)
    epochs = [row["epoch"] for row in history]
    end = max(int(plan["hyperparameters"]["epochs"]), 1)
    lines = [
        {"name": name, "colour": colour, "values": [_short(row.get(key)) for row in history]}
        for key, name, colour in _ACCURACIES
        if any(row.get(key) is not None for row in history)
    ]
    loss = [
        {"name": "loss", "colour": "soft", "values": [_short(row.get("loss")) for row in history]}
    ]
    base = {"kind": "history", "x": epochs, "end": end, "label": "epoch"}
    return [
        {**base, "lines": lines, "share": True, "title": "Accuracy"},
        {**base, "lines": loss, "share": False, "title": "Loss"},
    ]
