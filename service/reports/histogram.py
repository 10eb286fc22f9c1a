"""How the certified radii of the samples are distributed, as a bar chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.reports.axes import Plot, largest_distance, number, round_ticks, style, units
from service.reports.words.counted import counted

__all__ = ["render_histogram"]

_BARS = 32


def render_histogram(report: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> str | None:
    """A standalone SVG of the proved radii; None when no finite radius above 0 is known."""
    radii = [row["radius"] for row in samples if row["radius"] is not None and row["radius"] > 0]
    cap = largest_distance(report)
    radii = [radius for radius in radii if radius <= cap]
    if not radii:
        return None
    width = max(radii) / _BARS
    if width <= 0:
        return None
    counts = [0] * _BARS
    for radius in radii:
        counts[min(int(radius / width), _BARS - 1)] += 1
    plot = Plot(max(radii) * 1.02, y_end=max(counts) * 1.08, height=280, top=16)
    levels = [(v, number(v)) for v in round_ticks(max(counts), 4) if v == int(v)]
    words = (
        f"{counted(len(radii), 'proved radius', 'proved radii')} between {number(min(radii))} and "
        f"{number(max(radii))}."
    )
    parts = [
        plot.open("Certified radius of the samples", words, "radius"),
        style(),
        plot.frame(
            f"certified radius ({report['threat']['norm']}, {units(report)})", "samples", levels
        ),
    ]
    for place, count in enumerate(counts):
        if count:
            left, right = plot.x(place * width) + 0.75, plot.x((place + 1) * width) - 0.75
            top = plot.y(count)
            parts.append(
                f'<rect class="bar" x="{left:.2f}" y="{top}" width="{max(right - left, 0.5):.2f}" '
                f'height="{plot.y(0) - top:.2f}"><title>{number(place * width)} to '
                f"{number((place + 1) * width)}: {counted(count, 'sample')}</title></rect>"
            )
    parts.append("</svg>")
    return "".join(parts)
