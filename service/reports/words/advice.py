"""What may decide what a report leaves undecided: one sentence, by the spec that was used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["advice", "in_json", "in_terminal", "in_verify"]

#: Methods that search to the end, if they are given the time.
_SEARCHING = ("branch-and-bound", "milp", "colt")
#: effort -> the next one.
_MORE_EFFORT = {"quick": "standard", "standard": "exhaustive"}
#: Seconds of a search that are suggested where none were asked for.
_SECONDS = 60

#: Writes a member of the spec with its value.
Option = Callable[[str, Any], str]

_FLAGS = {"method": "--method", "effort": "--effort"}
_VERIFY_FLAGS = _FLAGS | {"time_budget_s": "--timeout"}


def in_json(name: str, value: Any) -> str:
    """The option as a member of the spec: ``"effort": "exhaustive"``."""
    return f"{json.dumps(name)}: {json.dumps(value)}"


def in_terminal(name: str, value: Any) -> str:
    """The option as ``certserve certify`` takes it: ``--effort exhaustive``."""
    return _flag(_FLAGS, name, value)


def in_verify(name: str, value: Any) -> str:
    """The option as ``certserve verify`` takes it: ``--timeout 600``."""
    return _flag(_VERIFY_FLAGS, name, value)


def _flag(flags: Mapping[str, str], name: str, value: Any) -> str:
    if name in flags:
        return f"{flags[name]} {value}"
    return f"--spec '{{{in_json(name, value)}}}'"


def advice(report: Mapping[str, Any], option: Option) -> str | None:
    """What "undecided" means and which option may help; None where everything is decided.

    ``option`` writes a member of the spec.
    """
    spec = report.get("spec") or {}
    if report.get("property") is not None:
        if report["property"]["verdict"] != "unknown":
            return None
        others = ["narrower intervals in the property file"]
        return _sentence("UNKNOWN means neither proved nor violated", report, spec, option, others)
    if not any(row["undecided"] for row in report["results"]):
        return None
    others = [
        "a smaller epsilon"
        if spec.get("radius", True)
        else f"a smaller epsilon ({option('radius', True)} finds how small)"
    ]
    if "attack" in spec and spec["attack"] is None:
        others.insert(0, 'an attack (leave "attack": null out), which finds what is not robust')
    meaning = "Undecided means neither proved nor broken by an attack"
    return _sentence(meaning, report, spec, option, others)


def _sentence(
    meaning: str,
    report: Mapping[str, Any],
    spec: Mapping[str, Any],
    option: Option,
    others: Sequence[str],
) -> str:
    *first, last = [_next(report, spec, option), *others]
    return f"{meaning}; what may decide it: {', '.join(first)}, or {last}."


def _next(report: Mapping[str, Any], spec: Mapping[str, Any], option: Option) -> str:
    """The option that was the limit: time, the method, or the work."""
    method, effort = report["method"], spec.get("effort", "standard")
    budget, each = spec.get("time_budget_s"), spec.get("sample_time_s")
    if report.get("budget_spent") and budget is not None:
        return f"more time, {option('time_budget_s', _longer(budget))}"
    of_property = report.get("property") is not None
    if method in _SEARCHING or each is not None:
        seconds = _SECONDS if each is None else _longer(each)
        what = "box" if of_property else "sample"
        return f"{option('sample_time_s', seconds)} (seconds for each {what})"
    if method != "auto":
        return f"{option('method', 'auto')}, which tries other bounds, too"
    if effort in _MORE_EFFORT:
        more = _MORE_EFFORT[effort]
        # Of a property every effort has it.
        searches = " (complete search)" if more == "exhaustive" and not of_property else ""
        return f"{option('effort', more)}{searches}"
    return f"{option('method', 'branch-and-bound')} with {option('sample_time_s', _SECONDS)}"


def _longer(seconds: float) -> float | int:
    """Ten times the time, without digits that nobody would write."""
    more = float(f"{10 * seconds:.2g}")
    return int(more) if more >= 1 and more.is_integer() else more
