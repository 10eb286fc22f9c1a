"""What a report advises where something is undecided: an option that the spec did not use up."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from service.contract.catalogue.methods import METHODS
from service.contract.schemas.property_spec import PropertySpec
from service.contract.schemas.submissions import Spec
from service.reports.words.advice import advice, in_json, in_terminal, in_verify


def report(undecided: int = 3, budget_spent: bool = False, **members: Any) -> dict[str, Any]:
    spec = Spec.model_validate({"norm": "linf", "epsilons": ["1/255"], **members})
    return {
        "spec": spec.normal(), "method": spec.method, "property": None,
        "results": [{"undecided": 0}, {"undecided": undecided}], "budget_spent": budget_spent,
    }  # fmt: skip


def of_property(verdict: str = "unknown", spent: bool = False, **members: Any) -> dict[str, Any]:
    spec = PropertySpec.model_validate(members)
    return {
        "spec": spec.normal(), "method": spec.method, "property": {"verdict": verdict},
        "results": [], "budget_spent": spent,
    }  # fmt: skip


def said(shown: dict[str, Any]) -> str:
    found = advice(shown, in_json)
    assert found is not None
    return found


def test_where_all_is_decided_nothing_is_advised() -> None:
    assert advice(report(undecided=0), in_json) is None
    assert advice(of_property("holds"), in_json) is None
    assert advice(of_property("violated"), in_json) is None


@pytest.mark.parametrize(
    ("members", "option"),
    [
        ({"effort": "quick"}, '"effort": "standard"'),
        ({}, '"effort": "exhaustive"'),
        ({"effort": "exhaustive"}, '"method": "branch-and-bound"'),
        ({"method": "crown"}, '"method": "auto"'),
        ({"method": "milp"}, '"sample_time_s": 60'),
        ({"method": "milp", "sample_time_s": 30}, '"sample_time_s": 300'),
        ({"attack": None}, '"attack": null'),
        ({"radius": False}, '"radius": true'),
    ],
)
def test_the_option_that_was_the_limit_is_named(members: dict[str, Any], option: str) -> None:
    assert option in said(report(**members))


def test_a_spent_clock_asks_for_more_time() -> None:
    assert '"time_budget_s": 600' in said(report(time_budget_s=60, budget_spent=True))
    assert '"time_budget_s": 600' in said(of_property(time_budget_s=60, spent=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("effort", ["quick", "standard", "exhaustive"])
@pytest.mark.parametrize("make", [report, of_property])
def test_what_is_advised_is_a_spec_that_is_taken_and_another_one(
    method: str, effort: str, make: Any
) -> None:
    shown = make(method=method, effort=effort)
    members = {"method": method, "effort": effort}
    pairs = re.findall(r'"\w+": (?:"[\w-]+"|[\d.]+)', said(shown))
    assert pairs
    wiser = make(**members | json.loads("{" + ", ".join(pairs) + "}"))
    assert wiser["spec"] != shown["spec"]


def test_a_terminal_is_told_its_own_options() -> None:
    assert "--effort exhaustive" in (advice(of_property(), in_verify) or "")
    spent = of_property(time_budget_s=60, spent=True)
    assert "--timeout 600" in (advice(spent, in_verify) or "")
    assert "--spec '{\"sample_time_s\": 60}'" in (advice(report(method="colt"), in_terminal) or "")
