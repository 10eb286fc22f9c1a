"""The report as one self-contained page for people: no script, no external resource."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from service.reports.accuracy_curve import render_svg
from service.reports.axes import number
from service.reports.histogram import render_histogram

__all__ = ["render_html"]

#: What to call each verdict and bound; a name that is not here is shown as it is.
_VERDICTS = {
    "attack": "falsified by the attack",
    "misclassified": "misclassified (no perturbation needed)",
    "undecided": "undecided",
}


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share * 100:.{digits}f} %"


def _interval(bounds: Iterable[float] | None) -> str:
    if bounds is None:
        return "–"
    low, high = bounds
    return f"{low * 100:.1f} – {high * 100:.1f} %"


def _value(value: float | None) -> str:
    return "–" if value is None else number(value)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "value": _value}
    return environment


_ENVIRONMENT = _environment()


def render_html(report: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> str:
    """A page that states what is proved and what is not, with both charts inline.

    Everything that came from an upload (names, layer names) is escaped. ``samples`` are the rows of
    ``samples.jsonl``; they feed the histogram of radii only.
    """
    histogram = render_histogram(report, samples)
    decided = sorted(report["by_method"].items(), key=lambda pair: (-pair[1], pair[0]))
    return _ENVIRONMENT.get_template(
        "report.html"
    ).render(
        report=report,
        chart=Markup(render_svg(report)),  # noqa: S704  (our own SVG, its texts escaped)
        histogram=None if histogram is None else Markup(histogram),  # noqa: S704
        decided=[(_VERDICTS.get(name, name), name in _VERDICTS, count) for name, count in decided],
        headlines=report["results"][:4],
        classes=sorted((report["dataset"].get("classes") or {}).items(), key=lambda pair: pair[1]),
    )
