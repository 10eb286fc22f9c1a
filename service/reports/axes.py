"""What the report's charts share: a plot area in SVG user units, round ticks, and safe text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from service.reports.plain_text import escaped

__all__ = [
    "Plot",
    "interval",
    "is_image",
    "largest_distance",
    "number",
    "percent",
    "percent_at_most",
    "radius_text",
    "round_ticks",
    "style",
    "units",
]

#: Colours for light and dark readers; charts carry them along, so that each file stands alone.
_STYLE = """
.chart{--ink:#1c2430;--soft:#5b6675;--grid:#e3e7ec;--certified:#0b6e4f;--attacked:#c2410c;
--clean:#3b5bdb;--fill:#0b6e4f1f;color:var(--ink);
font:15px system-ui,-apple-system,"Segoe UI",sans-serif}
@media screen and (prefers-color-scheme:dark){.chart{--ink:#e8ecf1;--soft:#9aa6b5;--grid:#2c3540;
--certified:#4cc29a;--attacked:#fb923c;--clean:#8ea8ff;--fill:#4cc29a2b}}
.chart text{fill:var(--ink)}.chart .soft{fill:var(--soft)}
.chart .grid{stroke:var(--grid);stroke-width:1}.chart .axis{stroke:var(--soft);stroke-width:1}
.chart .asked{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 4}
.chart .certified{stroke:var(--certified);fill:none;stroke-width:2.5;stroke-linejoin:round}
.chart .band{fill:var(--fill);stroke:none}.chart line.band{stroke:var(--fill);stroke-width:12}
.chart .bar{fill:var(--certified)}
.chart .attacked{stroke:var(--attacked);fill:none;stroke-width:2;stroke-dasharray:7 4}
.chart .clean{stroke:var(--clean);fill:none;stroke-width:2;stroke-dasharray:2 3}
.chart .dot-clean{fill:var(--clean)}.chart .dot-certified{fill:var(--certified)}
.chart .dot-attacked{fill:var(--attacked)}
"""


def style() -> str:
    """The charts' style element; colours follow the reader's light or dark preference."""
    return f"<style>{_STYLE.strip()}</style>"


def number(value: float) -> str:
    """A short decimal for labels and coordinates, four significant digits, no trailing zeros."""
    return f"{value:.4g}"


def percent(share: float | None, digits: int = 1, *, up: bool = False) -> str:
    """A share in percent, rounded down: what is proved is no less than it says, and 9,996 of 10,000
    are not 100.0 %. ``up``: what is at most so much, rounded up."""
    if share is None:
        return "–"
    exact = Decimal(repr(float(share))).scaleb(2)
    way = ROUND_CEILING if up else ROUND_FLOOR
    return f"{exact.quantize(Decimal(1).scaleb(-digits), way)} %"


def percent_at_most(share: float | None, digits: int = 1, *, certified: float | None = None) -> str:
    """The same, rounded up; as what is certified is written, where it is the same share: nothing
    lies between."""
    return percent(share, digits, up=share != certified)


def interval(bounds: Iterable[float] | None) -> str:
    """Two shares in percent: the lower one rounded down, the upper one up."""
    if bounds is None:
        return "–"
    low, high = bounds
    return f"{percent(low).removesuffix(' %')} – {percent_at_most(high)}"


def radius_text(value: float | None) -> str:
    """A radius of four significant digits, rounded down."""
    if value is None:
        return "–"
    exact = Decimal(repr(float(value)))
    if exact.is_finite() and exact > 0:
        exact = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), ROUND_FLOOR)
    return number(float(exact))


def is_image(report: Mapping[str, Any]) -> bool:
    """Whether the inputs are images, so that one may speak of pixels."""
    return len(report["model"]["input_shape"]) == 3


def units(report: Mapping[str, Any]) -> str:
    """What epsilons and radii are measured in."""
    plain = (report.get("spec") or {}).get("input_range", [0, 1]) in ([0, 1], [0.0, 1.0])
    return "pixel units" if is_image(report) and plain else "units of the inputs"


def largest_distance(report: Mapping[str, Any]) -> float:
    """Distance of the two farthest inputs: a larger epsilon or radius claims nothing more."""
    threat = report["threat"]
    if not threat["clip"]:
        return math.inf
    if threat.get("largest_distance") is not None:
        return float(threat["largest_distance"])
    # Reports of earlier releases.
    shape = report["model"]["input_shape"]
    return 1.0 if report["threat"]["norm"] == "linf" else math.sqrt(math.prod(shape))


def round_ticks(end: float, count: int) -> list[float]:
    """About ``count`` round numbers from 0 up to ``end`` > 0."""
    raw = end / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw * 0.999), 10 * power)
    return [i * step for i in range(int(end / step * 1.000001) + 1)]


@dataclass(frozen=True)
class Plot:
    """A plot area inside an SVG of ``width`` x ``height``: x from ``x_start`` to ``x_end``, y from
    ``y_start`` to ``y_end``."""

    x_end: float
    y_end: float = 1.0
    width: int = 760
    height: int = 430
    left: int = 68
    right: int = 24
    top: int = 58
    bottom: int = 60
    x_start: float = 0.0
    y_start: float = 0.0

    def x(self, value: float) -> float:
        """Horizontal position of a value, cut at the right edge."""
        inner = self.width - self.left - self.right
        share = (value - self.x_start) / (self.x_end - self.x_start)
        return round(self.left + inner * min(share, 1.0), 2)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        inner = self.height - self.top - self.bottom
        share = (value - self.y_start) / (self.y_end - self.y_start)
        return round(self.top + inner * (1 - share), 2)

    def open(self, title: str, description: str, identity: str) -> str:
        """The svg start tag with its accessible name and description."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
            f'viewBox="0 0 {self.width} {self.height}" '
            f'aria-labelledby="{identity}-title {identity}-desc">'
            f'<title id="{identity}-title">{escaped(title)}</title>'
            f'<desc id="{identity}-desc">{escaped(description)}</desc>'
        )

    def legend(self, rows: Sequence[tuple[str, str]]) -> str:
        """Names of the lines (class, name) in a row above the plot, where they cover nothing."""
        parts, x, y = [], float(self.left), 16.0
        for kind, label in rows:
            wide = 44 + 8.2 * len(label)
            if x > self.left and x + wide > self.width:
                x, y = float(self.left), y + 20
            parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x + 28:.1f}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{x + 34:.1f}" y="{y + 5}">{escaped(label)}</text>')
            x += wide + 14
        return "".join(parts)

    def frame(
        self,
        x_label: str,
        y_label: str,
        y_ticks: Sequence[tuple[float, str]],
        x_count: int = 8,
        *,
        x_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> str:
        """Grid, axes, tick labels and axis names; without ``x_ticks`` about ``x_count`` numbers."""
        if x_ticks is None:
            x_ticks = [(value, number(value)) for value in round_ticks(self.x_end, x_count)]
        foot, end = self.height - self.bottom, self.width - self.right
        parts = []
        for value, label in y_ticks:
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{end}" y1="{y}" y2="{y}"/>')
            parts.append(
                f'<text class="soft" x="{self.left - 10}" y="{y + 4.5}" text-anchor="end">'
                f"{label}</text>"
            )
        for value, label in x_ticks:
            x = self.x(value)
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{foot}" y2="{foot + 5}"/>')
            parts.append(
                f'<text class="soft" x="{x}" y="{foot + 22}" text-anchor="middle">{label}</text>'
            )
        middle_x, middle_y = (self.left + end) / 2, (self.top + foot) / 2
        parts += [
            f'<line class="axis" x1="{self.left}" x2="{end}" y1="{foot}" y2="{foot}"/>',
            f'<text x="{middle_x}" y="{self.height - 12}" text-anchor="middle">'
            f"{escaped(x_label)}</text>",
            f'<text x="14" y="{middle_y}" text-anchor="middle" '
            f'transform="rotate(-90 14 {middle_y})">{escaped(y_label)}</text>',
        ]
        return "".join(parts)
