"""The chart of a sweep: clean over certified accuracy, a point for each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from service.contract.sweeps import value_text
from service.reports.axes import Plot, percent, style
from service.reports.epsilon_names import epsilon_name
from service.reports.plain_text import escaped

__all__ = ["render_pareto_svg"]

#: Axes begin and end at multiples of this share.
_STEP = 0.05
#: Longest label beside a point.
_LONGEST = 24


def render_pareto_svg(pareto: Mapping[str, Any]) -> str:
    """A standalone SVG document of a ``Pareto`` as JSON; models without labels are left out."""
    points = [
        point
        for point in pareto["points"]
        if point["clean_accuracy"] is not None and point["certified_accuracy"] is not None
    ]
    across = _range([point["certified_accuracy"] for point in points])
    up = _range([point["clean_accuracy"] for point in points])
    plot = Plot(across[1], up[1], x_start=across[0], y_start=up[0])
    where = f"{pareto['norm']} epsilon {epsilon_name(pareto['epsilon_exact'])}"
    proved = all(point["soundness"] == "sound" for point in points)
    kind = "certified" if proved else "ESTIMATED, NO PROOF"
    front = sorted(
        (point for point in points if point["on_front"]), key=lambda p: p["certified_accuracy"]
    )
    line = " ".join(
        f"{plot.x(p['certified_accuracy'])},{plot.y(p['clean_accuracy'])}" for p in front
    )
    parts = [
        plot.open("Clean over certified accuracy", _in_words(pareto, points), "pareto"),
        style(),
        plot.frame(
            *(f"{kind} accuracy at {where}", "clean accuracy", _ticks(*up)), x_ticks=_ticks(*across)
        ),
        f'<polyline class="certified" points="{line}"/>' if len(front) > 1 else "",
        *(_point(plot, pareto["parameter"], point) for point in points),
        plot.legend([("certified", "no other model is better in one and not worse in the other")]),
        "</svg>",
    ]
    return "".join(parts)


def _range(shares: Sequence[float]) -> tuple[float, float]:
    """Round ends around all shares, with room for labels."""
    low = max(0.0, math.floor(min(shares, default=0.0) / _STEP - 0.2) * _STEP)
    high = min(1.0, math.ceil(max(shares, default=1.0) / _STEP + 0.2) * _STEP)
    return (low, high) if high - low >= 2 * _STEP else (max(0.0, high - 2 * _STEP), high)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    steps = max(1, round((high - low) / _STEP / 8)) * _STEP
    count = int((high - low) / steps + 1e-9)
    return [(low + i * steps, f"{100 * (low + i * steps):.0f} %") for i in range(count + 1)]


def _point(plot: Plot, parameter: str, point: Mapping[str, Any]) -> str:
    x, y = plot.x(point["certified_accuracy"]), plot.y(point["clean_accuracy"])
    value = value_text(point["value"])
    label = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."
    told = f"{parameter} = {value}: {_figures(point)}"
    kind = "certified" if point["on_front"] else "clean"
    left = x > plot.width - 150
    return (
        f'<circle class="dot-{kind}" cx="{x}" cy="{y}" r="5">'
        f"<title>{escaped(told)}</title></circle>"
        f'<text x="{x - 9 if left else x + 9}" y="{y + 16}" '
        f'text-anchor="{"end" if left else "start"}">{escaped(f"{parameter} = {label}")}</text>'
    )


def _figures(point: Mapping[str, Any]) -> str:
    clean, certified = (
        percent(point[f"{name}_accuracy"], 2).replace(" ", "") for name in ("clean", "certified")
    )
    return f"clean {clean}, certified {certified}"


def _in_words(pareto: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """The chart in words, for screen readers."""
    name = pareto["parameter"]
    return " ".join(f"{name} = {value_text(p['value'])}: {_figures(p)}." for p in points)
