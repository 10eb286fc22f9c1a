"""The report: bracketed, monotone, strict JSON, and loud about contradictions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from service.contract.schemas.report import Report, SampleRow, result_digest
from tests.report_cases import cases, finished
from workers.jobs.report.build import build_report
from workers.jobs.report.statement import statement
from workers.jobs.report.statistics import clopper_pearson
from workers.jobs.report.verdicts import ContradictionError, round_down, round_up

Case = tuple[Any, dict[str, Any], Any]


@given(cases())
def test_certified_never_exceeds_attacked_never_exceeds_clean(case: Case) -> None:
    report, rows = finished(case)
    clean = report["clean_accuracy"]
    for place, result in enumerate(report["results"]):
        attacked = result["attack_accuracy"]
        assert (attacked is None) == (report["spec"]["attack"] is None)
        if attacked is not None:
            assert result["certified_accuracy"] <= attacked <= (1.0 if clean is None else clean)
        assert result["certified"] == sum(row["certified"][place] for row in rows)
        assert result["falsified"] == sum(row["falsified"][place] for row in rows)
        assert result["undecided"] >= 0
    for row in rows:
        assert not any(np.logical_and(row["certified"], row["falsified"]))


@given(cases())
def test_results_stand_in_the_order_asked_and_fall_with_epsilon(case: Case) -> None:
    report, _ = finished(case)
    asked = [Fraction(text) for text in report["spec"]["epsilons"]]
    assert [row["epsilon"] for row in report["results"]] == [float(epsilon) for epsilon in asked]
    by_size = sorted(report["results"], key=lambda row: Fraction(row["epsilon_exact"]))
    for column in ("certified_accuracy", "attack_accuracy"):
        values = [row[column] for row in by_size if row[column] is not None]
        assert values == sorted(values, reverse=True)


@given(cases())
def test_the_curve_never_rises_and_passes_through_the_results(case: Case) -> None:
    report, _ = finished(case)
    curve = report["curve"]
    assert curve["epsilon"] == sorted(set(curve["epsilon"]))
    assert curve["certified_accuracy"] == sorted(curve["certified_accuracy"], reverse=True)
    points = dict(zip(curve["epsilon"], curve["certified_accuracy"], strict=True))
    for row in report["results"]:
        assert points[row["epsilon"]] == row["certified_accuracy"]


@given(cases())
def test_report_and_rows_are_strict_json_of_the_contract(case: Case) -> None:
    report, rows = finished(case)
    text = json.dumps(report, allow_nan=False)
    assert Report.model_validate_json(text).model_dump(mode="json", by_alias=True) == report
    for row in rows:
        SampleRow.model_validate_json(json.dumps(row, allow_nan=False))
        assert row["radius"] is None or not row["unbounded"]


@given(cases())
def test_radii_in_the_summary_are_those_of_the_rows(case: Case) -> None:
    report, rows = finished(case)
    if not report["spec"]["radius"]:
        assert report["radius"] is None
        assert all(row["radius"] is None and not row["unbounded"] for row in rows)
        return
    cap = 1.0 if report["threat"]["norm"] == "linf" else 2.0
    if not report["threat"]["clip"]:
        cap = max([cap, *(row["radius"] for row in rows if not row["unbounded"])])
    radii = [cap if row["unbounded"] else min(row["radius"], cap) for row in rows]
    assert report["radius"]["average_certified_radius"] == pytest.approx(np.mean(radii))
    assert report["radius"]["median"] == pytest.approx(np.median(radii))
    assert report["radius"]["unbounded"] == sum(row["unbounded"] for row in rows)
    asked = [Fraction(text) for text in report["spec"]["epsilons"]]
    for row in rows:
        if report["clean_accuracy"] is not None and row["label"] != row["prediction"]:
            assert row["radius"] == 0
        for epsilon, certified in zip(asked, row["certified"], strict=True):
            if certified and not row["unbounded"]:
                assert row["radius"] >= round_down(epsilon)


@given(cases())
def test_the_digest_names_the_result_and_not_the_run(case: Case) -> None:
    submission, facts, results = case
    first, _ = finished(case)
    again = build_report(
        submission.model_copy(update={"id": "job-2"}),
        facts,
        replace(results, seconds={"bound": 99.0}),
        timing={"wall_s": 77.0},
        device="another",
    )
    assert first["result_digest"] == again["result_digest"] == result_digest(first)


@given(cases())
def test_a_certified_sample_that_is_broken_fails_loudly(case: Case) -> None:
    submission, facts, results = case
    results.certified[0, :] = True
    results.falsified[0, :] = True
    with pytest.raises(ContradictionError) as caught:
        build_report(submission, facts, results, timing={"wall_s": 1.0}, device="cpu")
    assert caught.value.code == "internal_error"


@given(cases())
def test_an_estimate_that_is_broken_is_withdrawn(case: Case) -> None:
    submission, facts, results = case
    spec = dict(submission.spec) | {"soundness": "estimate"}
    results.label[0] = results.prediction[0]
    results.certified[0, :] = True
    results.falsified[0, :] = True
    case = (submission.model_copy(update={"spec": spec}), facts, results)
    report, rows = finished(case)
    assert not any(rows[0]["certified"])
    assert rows[0]["radius"] in (None, 0.0)
    assert report["warnings"]
    assert report["statement"].startswith("ESTIMATE")


@given(cases(), st.sampled_from(["l2", "linf"]), st.booleans())
def test_an_epsilon_that_reaches_every_input_is_told(case: Case, norm: str, clip: bool) -> None:
    submission, facts, results = case
    asked = [f"1/{1000 + index}" for index in range(len(submission.spec["epsilons"]) - 1)]
    spec = dict(submission.spec) | {"norm": norm, "clip": clip, "epsilons": [*asked, "8"]}
    results.certified[:] = results.falsified[:] = False
    results.radius[:] = 0.0
    report, _ = finished((submission.model_copy(update={"spec": spec}), facts, results))
    said = [sentence for sentence in report["warnings"] if "every input" in sentence]
    assert said == (
        ["Epsilon 8 reaches every input in [0, 1]: epsilons are in pixel units, was 8/255 meant?"]
        if clip
        else []
    )


@given(cases())
def test_an_epsilon_of_less_than_a_grey_level_is_told(case: Case) -> None:
    submission, facts, results = case
    results.certified[:] = results.falsified[:] = False
    results.radius[:] = 0.0
    few = [f"{3 + index}/255" for index in range(len(submission.spec["epsilons"]))]
    for ends, told in (([0.0, 255.0], len(few)), ([0.0, 1.0], 0), ([0.0, 4.0], 0)):
        spec = dict(submission.spec) | {"clip": True, "epsilons": few, "input_range": ends}
        spec["criterion"] = None
        report, _ = finished((submission.model_copy(update={"spec": spec}), facts, results))
        said = [sentence for sentence in report["warnings"] if "one grey level" in sentence]
        assert len(said) == told
        assert all(f"was {3 + index} meant?" in one for index, one in enumerate(said))


@given(cases())
def test_a_misclassified_sample_is_never_certified(case: Case) -> None:
    submission, facts, results = case
    facts["labelled"] = True
    results.label[0] = results.prediction[0] + 1
    results.certified[0, 0] = True
    with pytest.raises(ContradictionError):
        build_report(submission, facts, results, timing={"wall_s": 1.0}, device="cpu")


@given(cases(), st.data())
def test_a_criterion_is_met_by_the_exact_count_of_proofs_alone(
    case: Case, data: st.DataObject
) -> None:
    submission, facts, results = case
    plain, _ = finished(case)
    place = data.draw(st.integers(0, len(plain["results"]) - 1))
    count = len(results.index)
    demanded = data.draw(st.sampled_from([number / count for number in range(count + 1)] + [0.3]))
    wish = {"epsilon": submission.spec["epsilons"][place], "certified_accuracy": demanded}
    soundness = data.draw(st.sampled_from(["sound", "estimate"]))
    spec = dict(submission.spec) | {"criterion": wish, "soundness": soundness}
    spent = data.draw(st.booleans())
    notes = {**results.notes, "budget_spent": spent}
    case = (
        submission.model_copy(update={"spec": spec}), facts, replace(results, notes=notes)
    )  # fmt: skip
    report, rows = finished(case)
    asked = Fraction(wish["epsilon"])
    proved = sum(
        row["certified"][[Fraction(e) for e in spec["epsilons"]].index(asked)] for row in rows
    )
    enough = proved >= Fraction(repr(demanded)) * count
    proof = facts["labelled"] and soundness == "sound" and not spent
    assert report["criterion"] == {**wish, "met": enough and proof}
    assert plain["criterion"] is None


@given(cases())
def test_features_are_not_called_pixels(case: Case) -> None:
    submission, facts, results = case
    report, _ = finished((submission, facts | {"input_shape": [4]}, results))
    said = " ".join([report["statement"], *report["warnings"]])
    for epsilon in submission.spec["epsilons"]:
        # As it was written: 791/255 where somebody asked for it.
        said = said.replace(epsilon, "epsilon")
    assert not any(word in said for word in ("pixel", "image", "camera", "255"))
    shown, _ = finished(case)
    assert "images outside this data set" in shown["statement"]


@given(st.integers(1, 300), st.data())
def test_clopper_pearson_covers(count: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, count))
    low, high = clopper_pearson(successes, count)
    assert 0 <= low <= successes / count <= high <= 1
    # definition: at its ends the interval leaves exactly 2.5 % on the far side
    if successes > 0:
        assert binom.sf(successes - 1, count, low) == pytest.approx(0.025, rel=1e-6)
    if successes < count:
        assert binom.cdf(successes, count, high) == pytest.approx(0.025, rel=1e-6)


@given(cases())
def test_every_share_carries_the_interval_of_its_population(case: Case) -> None:
    """Of a whole data set too: it is itself a sample."""
    report, _ = finished(case)
    for row in report["results"]:
        low, high = row["interval_95"]
        assert 0 <= low <= row["certified_accuracy"] <= high <= 1


@given(st.fractions(min_value=Fraction(1, 10**9), max_value=10**20))
def test_epsilons_are_rounded_to_the_safe_side(epsilon: Fraction) -> None:
    assert Fraction(round_down(epsilon)) <= epsilon <= Fraction(round_up(epsilon))
    assert round_up(epsilon) <= math.nextafter(round_down(epsilon), math.inf)


def test_the_statement_says_what_is_covered() -> None:
    sound = {"norm": "l2", "soundness": "sound", "valid": "[0, 1]", "failure_probability": 0.0}
    assert "ONNX Runtime" in statement(labelled=True, **sound)
    assert "no labels" in statement(labelled=False, **sound)
    probable = statement(labelled=True, **(sound | {"failure_probability": 1e-9}))
    assert "1e-09" in probable
