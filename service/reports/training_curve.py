"""The curve of a training as a chart: accuracy and robust accuracy over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.reports.axes import Plot, style

__all__ = ["render_training_svg"]

_PERCENT = [(step / 5, f"{step * 20} %") for step in range(6)]
#: Key of a row, class of its line, what the legend calls it.
_LINES = (
    ("accuracy", "clean", "accuracy in training"),
    ("validation_accuracy", "attacked", "accuracy, validation"),
    ("validation_robust", "certified", "robust, validation (estimate)"),
)
#: Most epochs whose points are marked.
_MARKED = 40
#: Where nothing is held out, the training's own figure is shown.
_WITHOUT_VALIDATION = (_LINES[0], ("robust", "certified", "robust in training (estimate)"))


def render_training_svg(plan: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    """A standalone SVG document; a run without a finished epoch gives empty axes."""
    epochs = int(plan["hyperparameters"]["epochs"])
    plot = Plot(float(max(epochs, 1)))
    held = bool(history) and "validation_robust" in history[-1]
    lines = _LINES if held else _WITHOUT_VALIDATION
    title = f"Training with {plan['method']}, epsilon {plan['epsilon']}"
    parts = [
        plot.open(title, _in_words(history, lines), "training"),
        style(),
        plot.frame("epoch", "share of samples", _PERCENT),
    ]
    for key, kind, _ in lines:
        places = [(plot.x(row["epoch"]), plot.y(row[key])) for row in history]
        points = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
        if len(history) <= _MARKED:
            # A single epoch is a point, of which a line would show nothing.
            parts += [f'<circle class="dot-{kind}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in places]
    parts.append(plot.legend([(kind, label) for _, kind, label in lines]))
    return "".join([*parts, "</svg>"])


def _in_words(history: Sequence[Mapping[str, Any]], lines: Sequence[tuple[str, str, str]]) -> str:
    """The chart in words, for screen readers."""
    if not history:
        return "No epoch has ended yet."
    row = history[-1]
    figures = ", ".join(f"{label} {row[key]:.2%}" for key, _, label in lines)
    return f"After epoch {row['epoch']}: {figures}."
