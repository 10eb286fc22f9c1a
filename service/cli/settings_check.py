"""What is wrong with the settings, in one sentence for the terminal."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from service.contract.settings import Settings

__all__ = ["explain", "unknown_settings"]

_PREFIX = "CERTSERVE_"
#: Variables with the prefix that are not settings of the service.
_OTHERS = ("URL", "KEY", "TEST_", "CHAOS_", "LEASE_NOTE", "SCREENSHOTS", "CHROMIUM")

#: Settings of earlier versions, and what holds now.
_RETIRED = {
    "CERTSERVE_ALLOW_DOWNLOAD": "nothing is ever downloaded; CERTSERVE_DATA_SOURCES names folders "
    "that hold data sets"
}


def explain(error: ValidationError) -> str:
    """Every setting that is wrong and why, without its value, which may be a secret."""
    rows = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(
        f"{_PREFIX}{'.'.join(str(part) for part in row['loc']).upper()}: "
        f"{row['msg'].removeprefix('Value error, ')}"
        for row in rows
    )


def unknown_settings(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A warning for every variable that looks like a setting but is not one (a typo)."""
    known = [_PREFIX + name.upper() for name in Settings.model_fields]
    return [_warning(name, known) for name in sorted(environment) if _is_unknown(name, known)]


def _is_unknown(name: str, known: Iterable[str]) -> bool:
    rest = name.removeprefix(_PREFIX)
    other = any(rest == o or (o.endswith("_") and rest.startswith(o)) for o in _OTHERS)
    return name.startswith(_PREFIX) and name not in known and not other


def _warning(name: str, known: list[str]) -> str:
    if name in _RETIRED:
        return f"{name} is no setting any more: {_RETIRED[name]}"
    rests = [other.removeprefix(_PREFIX) for other in known]
    near = difflib.get_close_matches(name.removeprefix(_PREFIX), rests, n=1, cutoff=0.7)
    meant = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
    return f"{name} is not a setting and has no effect{meant}"
