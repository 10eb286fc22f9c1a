"""What classes are called: by the folders that labels come from, else by the model's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["class_names"]


def class_names(report: Mapping[str, Any]) -> dict[int, str]:
    """Number of a class -> its name, of those that the report knows; no names that are the number
    itself."""
    of_model = enumerate(report["model"].get("class_names") or ())
    of_folders = ((n, name) for name, n in (report["dataset"].get("classes") or {}).items())
    return {n: name for n, name in [*of_model, *of_folders] if name != str(n)}
