"""The report's chart: certified accuracy and accuracy under attack, against epsilon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from service.reports.axes import Plot, largest_distance, number, style

__all__ = ["render_svg"]

_PERCENT = [(step / 5, f"{step * 20} %") for step in range(6)]


def render_svg(report: Mapping[str, Any]) -> str:
    """A standalone SVG document: certified, attacked and clean accuracy over epsilon.

    The certified curve is a staircase that is never higher than what is proved: between two
    epsilons of the curve it takes the value of the larger one.
    """
    epsilons: Sequence[float] = report["curve"]["epsilon"]
    shares: Sequence[float] = report["curve"]["certified_accuracy"]
    plot = Plot(_axis_end(report))
    norm = report["threat"]["norm"]
    parts = [
        plot.open("Certified accuracy over epsilon", _in_words(report), "accuracy"),
        style(),
        plot.frame(f"epsilon ({norm} distance, pixel units)", "share of samples", _PERCENT),
        _staircase(plot, epsilons, shares),
        _asked(plot, report),
        _clean(plot, report),
        _legend(plot, report),
        "</svg>",
    ]
    return "".join(parts)


def _axis_end(report: Mapping[str, Any]) -> float:
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
    return max(end * 1.05, 1e-300) if end > 0 else 1.0


def _staircase(plot: Plot, epsilons: Sequence[float], shares: Sequence[float]) -> str:
    if not epsilons:
        return ""
    moves = [f"M{plot.x(0.0)} {plot.y(shares[0])}"]
    for epsilon, share in zip(epsilons, shares, strict=True):
        if epsilon > plot.x_end:
            break
        moves.append(f"V{plot.y(share)}H{plot.x(epsilon)}")
    line, foot = "".join(moves), plot.y(0.0)
    end = line.rsplit("H", 1)[-1] if "H" in line else plot.x(0.0)
    return (
        f'<path class="area" d="{line}L{end} {foot}H{plot.x(0.0)}Z"/>'
        f'<path class="certified" d="{line}"/>'
    )


def _asked(plot: Plot, report: Mapping[str, Any]) -> str:
    """Each asked epsilon: a mark over the full height, and both accuracies as points."""
    rows = sorted(
        (row for row in report["results"] if row["epsilon"] <= plot.x_end),
        key=lambda row: float(row["epsilon"]),
    )
    parts, attacked = [], []
    for row in rows:
        x, certified = plot.x(row["epsilon"]), plot.y(row["certified_accuracy"])
        parts.append(
            f'<line class="asked" x1="{x}" x2="{x}" y1="{plot.y(1.0)}" y2="{plot.y(0.0)}">'
            f"<title>asked: epsilon {number(row['epsilon'])}</title></line>"
        )
        parts.append(_point("certified", x, certified, row["certified_accuracy"]))
        if row["attack_accuracy"] is not None:
            attacked.append((x, plot.y(row["attack_accuracy"]), row["attack_accuracy"]))
    if attacked:
        clean = report["clean_accuracy"]
        start = [(plot.x(0.0), plot.y(1.0 if clean is None else clean))]
        corners = " ".join(f"{x},{y}" for x, y in start + [point[:2] for point in attacked])
        parts.append(f'<polyline class="attacked" points="{corners}"/>')
        parts += [_point("attacked", *point) for point in attacked]
    return "".join(parts)


def _point(kind: str, x: float, y: float, share: float) -> str:
    return (
        f'<circle class="dot-{kind}" cx="{x}" cy="{y}" r="4.5">'
        f"<title>{kind} {share:.2%}</title></circle>"
    )


def _clean(plot: Plot, report: Mapping[str, Any]) -> str:
    if report["clean_accuracy"] is None:
        return ""
    y, end = plot.y(report["clean_accuracy"]), plot.width - plot.right
    return f'<line class="clean" x1="{plot.left}" x2="{end}" y1="{y}" y2="{y}"/>'


def _legend(plot: Plot, report: Mapping[str, Any]) -> str:
    """Names of the lines, at the lower left, where a falling staircase leaves no line to cover."""
    rows = [("certified", f"certified ({report['soundness']})")]
    if any(row["attack_accuracy"] is not None for row in report["results"]):
        rows.append(("attacked", "left by the attack"))
    if report["clean_accuracy"] is not None:
        rows.append(("clean", "clean"))
    parts = []
    for place, (kind, label) in enumerate(rows):
        x = plot.left + 16
        y = plot.height - plot.bottom - 16 - 20 * (len(rows) - 1 - place)
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x + 28}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{x + 36}" y="{y + 4.5}">{escape(label)}</text>')
    far = [number(row["epsilon"]) for row in report["results"] if row["epsilon"] > plot.x_end]
    if far:
        note = "beyond the axis: " + ", ".join(far[:4]) + (" ..." if len(far) > 4 else "")
        parts.append(
            f'<text class="soft" x="{plot.width - plot.right}" y="{plot.top - 8}" '
            f'text-anchor="end">{escape(note)}</text>'
        )
    return "".join(parts)


def _in_words(report: Mapping[str, Any]) -> str:
    """The chart in words, for screen readers."""
    clean = report["clean_accuracy"]
    sentences = [] if clean is None else [f"Clean accuracy {clean:.2%}."]
    for row in report["results"]:
        attacked = row["attack_accuracy"]
        left = "" if attacked is None else f", {attacked:.2%} left by the attack"
        sentences.append(
            f"At epsilon {number(row['epsilon'])}: {row['certified_accuracy']:.2%} certified{left}."
        )
    return " ".join(sentences)
