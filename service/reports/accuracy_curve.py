"""The report's chart: certified accuracy and accuracy under attack, against epsilon."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from service.reports.axes import Plot, largest_distance, percent, style, units
from service.reports.epsilon_names import epsilon_names
from service.reports.plain_text import escaped

__all__ = ["axis_end", "band_half_width", "render_svg"]

#: How often the band holds the population's curve.
_CONFIDENCE = 0.95
_PERCENT = [(step / 5, f"{step * 20} %") for step in range(6)]


def render_svg(report: Mapping[str, Any]) -> str:
    """A standalone SVG document: certified, attacked and clean accuracy over epsilon.

    The certified curve is a staircase that is never higher than what is proved: between two
    epsilons of the curve it takes the value of the larger one.
    """
    epsilons: Sequence[float] = report["curve"]["epsilon"]
    shares: Sequence[float] = report["curve"]["certified_accuracy"]
    plot = Plot(axis_end(report))
    norm = report["threat"]["norm"]
    parts = [
        plot.open("Certified accuracy over epsilon", _in_words(report), "accuracy"),
        style(),
        plot.frame(f"epsilon ({norm} distance, {units(report)})", "share of samples", _PERCENT),
        _band(plot, epsilons, shares, band_half_width(max(1, report["dataset"]["samples"]))),
        _staircase(plot, epsilons, shares),
        _asked(plot, report),
        _clean(plot, report),
        _legend(plot, report),
        "</svg>",
    ]
    return "".join(parts)


def axis_end(report: Mapping[str, Any]) -> float:
    """Where the axis ends: beyond all certified radii and asked epsilons, outliers excepted.

    An epsilon ten times beyond everything certified would squeeze the curve into a corner.
    """
    curve = report["curve"]
    reach = max(
        (e for e, s in zip(curve["epsilon"], curve["certified_accuracy"], strict=True) if s > 0),
        default=0.0,
    )
    asked = [row["epsilon"] for row in report["results"]]
    cap = largest_distance(report)
    near = [e for e in asked if e <= 10 * min(max(reach, min(asked, default=0.0)), cap)]
    end = max([min(reach, cap), *near])
    return min(max(end * 1.05, 1e-300), sys.float_info.max) if end > 0 else 1.0


def band_half_width(samples: int) -> float:
    """Half the width of the band that holds the whole curve of the population with 95 %.

    For a random draw of ``samples``; Dvoretzky, Kiefer, Wolfowitz 1956 with the constant of
    Massart 1990: the share of samples with a radius of at least epsilon differs from that of the
    population by at most sqrt(log(2 / 0.05) / (2 n)), at all epsilons together.
    """
    return math.sqrt(math.log(2 / (1 - _CONFIDENCE)) / (2 * samples))


def _band(plot: Plot, epsilons: Sequence[float], shares: Sequence[float], half: float) -> str:
    """The curve's band: both of its ends are steps as the curve's own are."""
    upper, lower, before = [], [], 0.0
    for epsilon, share in zip(epsilons, shares, strict=True):
        if before >= plot.x_end:
            break
        start, end = plot.x(before), plot.x(epsilon)
        high, low = plot.y(min(1.0, share + half)), plot.y(max(0.0, share - half))
        upper.append(f"{start} {high} {end} {high}")
        lower.append(f"{end} {low} {start} {low}")
        before = epsilon
    if not upper:
        return ""
    path = f"M{' '.join(upper)} {' '.join(reversed(lower))}Z"
    return f'<path class="band" d="{path}"><title>95 % band</title></path>'


def _staircase(plot: Plot, epsilons: Sequence[float], shares: Sequence[float]) -> str:
    if not epsilons:
        return ""
    moves = [f"M{plot.x(0.0)} {plot.y(shares[0])}"]
    for epsilon, share in zip(epsilons, shares, strict=True):
        if epsilon > plot.x_end:
            break
        moves.append(f"V{plot.y(share)}H{plot.x(epsilon)}")
    return f'<path class="certified" d="{"".join(moves)}"/>'


def _asked(plot: Plot, report: Mapping[str, Any]) -> str:
    """Each asked epsilon: a mark over the full height, and both accuracies as points."""
    named = zip(report["results"], epsilon_names(report), strict=True)
    rows = sorted(
        ((row, name) for row, name in named if row["epsilon"] <= plot.x_end),
        key=lambda pair: float(pair[0]["epsilon"]),
    )
    parts = [_attacked(plot, report, [row for row, _ in rows]), _names(plot, rows)]
    for row, name in rows:
        x, certified = plot.x(row["epsilon"]), plot.y(row["certified_accuracy"])
        parts.append(
            f'<line class="asked" x1="{x}" x2="{x}" y1="{plot.y(1.0)}" y2="{plot.y(0.0)}">'
            f"<title>asked: epsilon {escaped(name)}</title></line>"
        )
        parts.append(_point("certified", x, certified, row["certified_accuracy"]))
        if row["attack_accuracy"] is not None:
            share = row["attack_accuracy"]
            parts.append(_point("attacked", x, plot.y(share), share))
    return "".join(parts)


def _names(plot: Plot, rows: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    """The asked epsilons by name above their marks, as far as there is room for a name."""
    parts, free = [], 0.0
    for row, name in rows:
        half = 4.2 * len(name)
        x = min(plot.x(row["epsilon"]), plot.width - half - 2)
        if x - half >= free:
            parts.append(
                f'<text class="soft" x="{x:.2f}" y="{plot.top - 7}" text-anchor="middle">'
                f"{escaped(name)}</text>"
            )
            free = x + half + 8
    return "".join(parts)


def _attacked(plot: Plot, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What attacks left, as steps: beyond an asked epsilon at most what was left there is left.

    So the line is at every epsilon an upper bound, and never below the certified staircase. A
    straight line from one asked epsilon to the next would be.
    """
    found = [row for row in rows if row["attack_accuracy"] is not None]
    if not found:
        return ""
    clean = report["clean_accuracy"]
    least = 1.0 if clean is None else clean
    moves = [f"M{plot.x(0.0)} {plot.y(least)}"]
    for row in found:
        least = min(least, row["attack_accuracy"])
        moves.append(f"H{plot.x(row['epsilon'])}V{plot.y(least)}")
    return f'<path class="attacked" d="{"".join(moves)}H{plot.x(plot.x_end)}"/>'


def _point(kind: str, x: float, y: float, share: float) -> str:
    told = _told(share, up=kind == "attacked")
    return (
        f'<circle class="dot-{kind}" cx="{x}" cy="{y}" r="4.5">'
        f"<title>{kind} {told}</title></circle>"
    )


def _told(share: float, *, up: bool = False) -> str:
    """A share of so few signs as there are in a label."""
    return percent(share, 2, up=up).replace(" ", "")


def _clean(plot: Plot, report: Mapping[str, Any]) -> str:
    if report["clean_accuracy"] is None:
        return ""
    y, end = plot.y(report["clean_accuracy"]), plot.width - plot.right
    return f'<line class="clean" x1="{plot.left}" x2="{end}" y1="{y}" y2="{y}"/>'


def _legend(plot: Plot, report: Mapping[str, Any]) -> str:
    rows = [("certified", f"certified ({report['soundness']})"), ("band", "95 % band")]
    if any(row["attack_accuracy"] is not None for row in report["results"]):
        rows.append(("attacked", "left by the attack"))
    if report["clean_accuracy"] is not None:
        rows.append(("clean", "clean"))
    parts = [plot.legend(rows)]
    named = zip(report["results"], epsilon_names(report), strict=True)
    far = [name for row, name in named if row["epsilon"] > plot.x_end]
    if far:
        note = "beyond the axis: " + ", ".join(far[:4]) + (" ..." if len(far) > 4 else "")
        parts.append(
            f'<text class="soft" x="{plot.width - plot.right}" y="{plot.top - 24}" '
            f'text-anchor="end">{escaped(note)}</text>'
        )
    return "".join(parts)


def _in_words(report: Mapping[str, Any]) -> str:
    """The chart in words, for screen readers."""
    clean = report["clean_accuracy"]
    sentences = [] if clean is None else [f"Clean accuracy {_told(clean)}."]
    for row, name in zip(report["results"], epsilon_names(report), strict=True):
        attacked = row["attack_accuracy"]
        left = (
            ""
            if attacked is None
            else f", {_told(attacked, up=attacked != row['certified_accuracy'])} left by the attack"
        )
        proved = _told(row["certified_accuracy"])
        sentences.append(f"At epsilon {name}: {proved} certified{left}.")
    return " ".join(sentences)
