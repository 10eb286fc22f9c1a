"""The report as one self-contained page for people: no script, no external resource."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from service.reports.accuracy_curve import band_half_width, render_svg
from service.reports.axes import (
    interval,
    is_image,
    number,
    percent,
    percent_at_most,
    radius_text,
    units,
)
from service.reports.epsilon_names import epsilon_name, epsilon_names
from service.reports.evidence import criterion, evidence
from service.reports.histogram import render_histogram
from service.reports.plain_text import finalize
from service.reports.training_curve import render_training_svg
from service.reports.words.advice import advice, in_json
from service.reports.words.class_names import class_names
from service.reports.words.counted import counted
from service.reports.words.stated_property import stated_property

__all__ = ["ENVIRONMENT", "render_html"]

#: What to call each verdict and bound; a name that is not here is shown as it is.
_VERDICTS = {
    "attack": "falsified by the attack",
    "misclassified": "misclassified (no perturbation needed)",
    "undecided": "undecided",
}

_PROPERTIES = {
    "holds": ("HOLDS", "proved for every input within the bounds"),
    "violated": ("VIOLATED", "a counterexample was found and replayed"),
    "unknown": ("UNKNOWN", "neither proved nor falsified"),
}


def _value(value: float | None) -> str:
    return "–" if value is None else number(value)


def _seconds(value: float) -> str:
    return (
        "less than 0.01 s" if value < 0.01 else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["percent_at_most"] = percent_at_most
    environment.filters |= {"interval": interval, "value": _value, "radius": radius_text}
    environment.filters |= {"seconds": _seconds}
    environment.filters |= {"epsilon": epsilon_name, "counted": counted}
    return environment


#: What templates of reports are rendered with.
ENVIRONMENT = _environment()


def render_html(
    report: Mapping[str, Any],
    samples: Iterable[Mapping[str, Any]],
    *,
    training: Mapping[str, Any] | None = None,
    pictures: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A page that states what is proved and what is not, with all charts inline; of a property its
    verdict and the counterexample.

    Everything that came from an upload (names, layer names) is escaped. ``samples`` are the rows of
    ``samples.jsonl``; they feed the histogram of radii only. ``training``: plan and history of the
    training that made the model. ``pictures``: counterexamples to show, each with ``index``,
    ``label``, ``falsified`` at each epsilon and the PNGs ``sample``, ``counterexample`` and
    ``difference`` (bytes).
    """
    if report.get("property") is not None:
        boxes, more_boxes = stated_property(report)
        return ENVIRONMENT.get_template("property.html").render(
            report=report,
            advice=advice(report, in_json),
            boxes=boxes,
            more_boxes=more_boxes,
            verdict=_PROPERTIES[report["property"]["verdict"]],
            evidence=evidence(report),
        )
    histogram = render_histogram(report, samples)
    decided = sorted(report["by_method"].items(), key=lambda pair: (-pair[1], pair[0]))
    curve = None
    if training is not None and training["history"]:
        curve = Markup(render_training_svg(training["plan"], training["history"]))  # noqa: S704
    return ENVIRONMENT.get_template(
        "report.html"
    ).render(
        report=report,
        chart=Markup(render_svg(report)),  # noqa: S704  (our own SVG, its texts escaped)
        histogram=None if histogram is None else Markup(histogram),  # noqa: S704
        decided=[(_VERDICTS.get(name, name), name in _VERDICTS, count) for name, count in decided],
        headlines=report["results"][:4],
        advice=advice(report, in_json),
        names=epsilon_names(report),
        half_width=band_half_width(max(1, report["dataset"]["samples"])),
        units=units(report),
        image=is_image(report),
        criterion=criterion(report),
        evidence=evidence(report),
        training=training,
        training_chart=curve,
        pictures=[_inline(picture, report) for picture in pictures],
        class_names=class_names(report),
        classes=sorted((report["dataset"].get("classes") or {}).items(), key=lambda pair: pair[1]),
    )


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _inline(picture: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the PNGs as addresses that hold them, and the name of the smallest epsilon at
    which there is a counterexample: that is the one shown."""
    pngs = ("sample", "counterexample", "difference")
    rows = zip(report["results"], epsilon_names(report), picture["falsified"], strict=True)
    broken = [(row["epsilon"], name) for row, name, falsified in rows if falsified]
    return {
        name: _address(value) if name in pngs and value is not None else value
        for name, value in picture.items()
    } | {"epsilon": min(broken)[1]}
