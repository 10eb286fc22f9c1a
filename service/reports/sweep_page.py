"""The models of a sweep on one self-contained page for people: no script, no external resource."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from service.contract.sweeps import value_text
from service.reports.epsilon_names import epsilon_name
from service.reports.evidence import criterion
from service.reports.page import ENVIRONMENT
from service.reports.pareto_front import render_pareto_svg

__all__ = ["render_sweep_html"]

#: Epsilons of the table of all of them; reports of models have more.
_COLUMNS = 6


def render_sweep_html(sweep: Mapping[str, Any]) -> str:
    """A page that compares the models of a sweep and says how each came about.

    ``sweep`` has ``pareto`` (as JSON), ``plan``, ``spec``, ``created_at``, ``dataset`` and
    ``trained_on`` (names), and ``models``: for each value, in their order, ``value``, ``job_id``,
    ``model_id``, ``error`` (a problem or None) and ``report`` (None without one). Everything that
    came from an upload or a plan is escaped.
    """
    pareto, plan, models = sweep["pareto"], sweep["plan"], sweep["models"]
    points = {point["model_id"]: point for point in pareto["points"]}
    reports = [model["report"] for model in models if model["report"] is not None]
    parameters = dict(plan["hyperparameters"])
    options = parameters.pop("options", {})
    return ENVIRONMENT.get_template("sweep.html").render(
        sweep=sweep,
        pareto=pareto,
        plan=plan,
        spec=sweep["spec"],
        architecture=_architecture(plan["architecture"]),
        chart=Markup(render_pareto_svg(pareto)),  # noqa: S704  (our own SVG, its texts escaped)
        sound=all(report["soundness"] == "sound" for report in reports),
        rows=[_row(model, points, pareto["epsilon_exact"]) for model in models],
        judged=any(report.get("criterion") for report in reports),
        epsilons=[epsilon_name(exact) for exact in sweep["spec"]["epsilons"]],
        shown=_COLUMNS,
        warnings=_grouped(
            (warning, value_text(model["value"]))
            for model in models
            if model["report"] is not None
            for warning in _warnings(model["report"])
        ),
        samples=_joined(report["dataset"]["samples"] for report in reports),
        parameters=[
            (name.replace("_", " "), _text(value))
            for name, value in (parameters | options).items()
            if name != pareto["parameter"]
        ],
        versions=_versions(reports),
        devices=_joined(report.get("device") for report in reports),
        failure=max((report.get("failure_probability") or 0 for report in reports), default=0),
    )


def _row(
    model: Mapping[str, Any], points: Mapping[str, Mapping[str, Any]], exact: str
) -> dict[str, Any]:
    report = model["report"]
    shown: dict[str, Any] = {
        "value": value_text(model["value"]),
        "job_id": model["job_id"],
        "model_id": model["model_id"],
        "error": model["error"],
        "point": points.get(model["model_id"]) if report is not None else None,
    }
    if report is None:
        return shown
    asked = [row for row in report["results"] if row.get("epsilon_exact") == exact]
    return shown | {
        "interval": asked[0].get("interval_95") if asked else None,
        "certified": [row["certified_accuracy"] for row in report["results"][:_COLUMNS]],
        "sound": report["soundness"] == "sound",
        "criterion": criterion(report),
        "parameters": (report.get("model") or {}).get("parameters"),
        "graph": report.get("graph_digest"),
        "result": report.get("result_digest"),
    }


def _warnings(report: Mapping[str, Any]) -> list[str]:
    spent = "the budget was spent before every sample was decided: what was open is undecided"
    return [*(report.get("warnings") or []), *([spent] if report.get("budget_spent") else [])]


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each warning once, with the values whose models have it."""
    found: dict[str, list[str]] = {}
    for warning, value in pairs:
        found.setdefault(warning, []).append(value)
    return [(warning, ", ".join(values)) for warning, values in found.items()]


def _joined(values: Iterable[Any]) -> str:
    """Each of the values once; models that were certified together have the same."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))


def _versions(reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    names = dict.fromkeys(name for report in reports for name in report.get("versions") or {})
    return [
        (name, _joined((report.get("versions") or {}).get(name) for report in reports))
        for name in names
    ]


def _architecture(architecture: Any) -> str:
    if isinstance(architecture, str):
        return architecture
    return str(architecture.get("name", "layer list"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
