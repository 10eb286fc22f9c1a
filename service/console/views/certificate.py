"""A report as its page shows it: charts, the table per epsilon, how it was certified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.console.views.figures import accuracy_chart, radius_chart
from service.console.views.sample_table import sample_table
from service.console.views.wording import VERDICTS
from service.reports.accuracy_curve import band_half_width
from service.reports.epsilon_names import epsilon_names
from service.reports.evidence import criterion, evidence
from service.reports.words.advice import advice, in_json

__all__ = ["certificate"]


def certificate(report: Mapping[str, Any], samples: Path) -> dict[str, Any]:
    """What the template needs beside the report itself."""
    table = sample_table(samples)
    decided = sorted(report["by_method"].items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "accuracy": accuracy_chart(report),
        "advice": advice(report, in_json),
        "radius": None
        if table is None
        else radius_chart(table.finite_radii(), report["threat"]["norm"]),
        "half_width": band_half_width(max(1, report["dataset"]["samples"])),
        "names": epsilon_names(report),
        "criterion": criterion(report),
        "evidence": evidence(report),
        "decided": [(name, name in VERDICTS, count) for name, count in decided],
    }
