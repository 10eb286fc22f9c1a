"""A property goes the way of every job: inspected apart, one item per box, one report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper
from torch import Tensor

from service.contract.ids import new_job_id
from service.contract.schemas.job_records import Estimate
from service.contract.schemas.property_spec import PropertySpec
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource
from service.contract.settings import Settings
from service.contract.times import now, rfc3339
from service.reports import render_html
from tests.models.onnx.forms.files import floats, written
from tests.workers.jobs.conftest import Corridor, tiny_onnx
from tests.workers.jobs.work import work
from workers.jobs.items.prepare import facts_of, prepare
from workers.jobs.items.property_items import merge_boxes, verify_shard
from workers.verification.properties.text.vnnlib import parse_vnnlib

pytestmark = pytest.mark.usefixtures("forked_inspections")

node = helper.make_node
INPUTS, OUTPUTS = 36, 3


def declared() -> str:
    names = [f"X_{i}" for i in range(INPUTS)] + [f"Y_{i}" for i in range(OUTPUTS)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def bounds(low: str, high: str) -> str:
    return " ".join(f"(>= X_{i} {low}) (<= X_{i} {high})" for i in range(INPUTS))


def submit(
    corridor: Corridor,
    text: str,
    *,
    state: Mapping[str, Tensor] | None = None,
    file: bytes | None = None,
    **spec: object,
) -> JobSubmission:
    """Enter a property into the ledger: of the tiny network, a state dict or an ONNX file."""
    path = corridor.folder / "stated.vnnlib"
    path.write_text(text)
    model = corridor.folder / "tiny.pt"
    if file is not None:
        model = corridor.folder / "own.onnx"
        model.write_bytes(file)
    elif state is None:
        model = tiny_onnx(corridor.folder / "tiny.onnx")
    else:
        torch.save(dict(state), model)
    submission = JobSubmission(
        id=new_job_id(),
        kind="certify",
        spec=PropertySpec.model_validate(spec).normal(),
        model=ModelSource(
            digest=corridor.blob(model),
            format="onnx" if state is None else "pt",
            name=model.name,
            size=model.stat().st_size,
        ),
        dataset=DatasetSource(kind="vnnlib", name=path.name, blobs={"file": corridor.blob(path)}),
        created_at=rfc3339(now()),
    )
    assert corridor.ledger.create(submission)
    return submission


def finished(corridor: Corridor, text: str, **options: Any) -> dict[str, Any]:
    """The report of a property, or the problem that its job ended with."""
    job = submit(corridor, text, **options)
    work(corridor, job.id)
    outcome = corridor.outcome(job)
    if outcome["status"] != "succeeded":
        return dict(outcome["error"])
    report: dict[str, Any] = json.loads(corridor.store.report_path(job.id).read_text())
    return report


HARMLESS = "(<= Y_0 -1e9)"


def test_a_property_that_holds_is_reported_as_proved(corridor: Corridor) -> None:
    text = (
        declared() + f"(assert (and {bounds('0.1', '0.2')}))(assert (or {HARMLESS} (>= Y_1 1e9)))"
    )
    report = finished(corridor, text)
    assert "property" in report, report
    found = report["property"]
    assert (found["verdict"], found["boxes"], found["cases"], found["proved"]) == ("holds", 1, 2, 1)
    assert found["counterexample"] is None
    empty = [report[name] for name in ("dataset", "threat", "radius", "curve", "clean_accuracy")]
    assert (empty, report["results"]) == ([None] * 5, [])
    assert "HOLDS" in render_html(report, [])
    assert finished(corridor, text)["result_digest"] == report["result_digest"]


def test_the_cost_is_told_after_prepare_and_what_is_too_large(corridor: Corridor) -> None:
    text = declared() + f"(assert (and {bounds('0.1', '0.2')} (or {HARMLESS} (>= Y_1 1e9))))"
    for method, allowed in (("auto", 2e7), ("crown", math.inf)):
        told = _estimate(corridor, corridor.settings, submit(corridor, text, method=method))
        assert (told.samples, told.warning, told.left_out) == (1, None, [])
        assert 0 < told.forward_passes - 3 * 40 * (24 + 120) <= allowed
        assert told.worker_s > 0
    little = corridor.settings.model_copy(update={"memory_fraction": 1e-12})
    small = _estimate(corridor, little, submit(corridor, text))
    assert small.warning is not None
    assert "too large for every bound" in small.warning
    assert {"ibp", "crown"} <= set(small.left_out)
    hurried = _estimate(corridor, corridor.settings, submit(corridor, text, sample_time_s=1))
    attack_s = hurried.worker_s * 3 * 40 * (24 + 120) / hurried.forward_passes
    assert hurried.worker_s - attack_s <= 1.001


def _estimate(corridor: Corridor, settings: Settings, job: JobSubmission) -> Estimate:
    prepare(corridor.store, settings, job)
    return Estimate.model_validate(facts_of(corridor.store, job.id)["estimate"])


def test_a_state_dict_of_one_output_is_taken(corridor: Corridor) -> None:
    """A controller or another regressor: y = 2 x + 1 on [0, 1]."""
    state = {"fc.weight": torch.tensor([[2.0]]), "fc.bias": torch.tensor([1.0])}
    layers = {"input": [1], "layers": [{"kind": "linear", "out": 1}]}
    names = "(declare-const X_0 Real)(declare-const Y_0 Real)"
    for limit, verdict in (("3.1", "holds"), ("2.9", "violated")):
        text = f"{names}(assert (and (>= X_0 0) (<= X_0 1) (>= Y_0 {limit})))"
        report = finished(corridor, text, state=state, architecture=layers)
        assert "property" in report, report
        assert report["property"]["verdict"] == verdict


def test_a_counterexample_is_in_the_first_box_that_has_one(corridor: Corridor) -> None:
    """It satisfies the assertions exactly, and boxes behind it change nothing of the report."""
    cases = [
        f"(and {bounds('0', '0.1')} {HARMLESS})",
        f"(and {bounds('0.1', '0.2')} (<= Y_0 1e9))",
        f"(and {bounds('0.3', '0.4')} (<= Y_0 1e9))",
    ]
    text = declared() + f"(assert (or {' '.join(cases)}))"
    job = submit(corridor, text)
    prepare(corridor.store, corridor.settings, job)
    for shard in (2, 1, 0):
        verify_shard(corridor.store, corridor.settings, job, shard, progress=lambda n, m: None)
    assert merge_boxes(corridor.store, job, started_at=None) == 3
    report = json.loads(corridor.store.report_path(job.id).read_text())
    point = report["property"]["counterexample"]
    assert (report["property"]["verdict"], point["box"]) == ("violated", 1)
    box = parse_vnnlib(text).boxes[1]
    assert all(
        low <= Fraction(value) <= high
        for low, value, high in zip(box.lower, point["x"], box.upper, strict=True)
    )
    assert box.is_unsafe([Fraction(value) for value in point["y"]])
    with np.load(corridor.store.counterexamples_path(job.id)) as stored:
        assert stored["x"].reshape(-1).tolist() == point["x"]
    assert "VIOLATED" in render_html(report, [])
    again = finished(corridor, text)
    assert again["result_digest"] == report["result_digest"]


def test_a_spent_budget_is_unknown_and_says_so(corridor: Corridor) -> None:
    text = declared() + f"(assert (and {bounds('0', '1')} (<= Y_0 (+ Y_1 -0.1)) (>= Y_2 Y_0)))"
    report = finished(corridor, text, time_budget_s=1e-6)
    assert report["property"]["verdict"] == "unknown"
    assert report["budget_spent"] is True


#: Files whose outputs are probabilities of z = 2 x - 1, and what they end in.
PROBABILITIES: dict[str, list[NodeProto]] = {
    "sigmoid": [node("Sigmoid", ["z"], ["y"])],
    "softmax": [node("MatMul", ["z", "pair"], ["zs"]), node("Softmax", ["zs"], ["y"], axis=1)],
    "logarithms": [
        node("MatMul", ["z", "pair"], ["zs"]),
        node("LogSoftmax", ["zs"], ["y"], axis=1),
    ],
    "both": [
        node("Sigmoid", ["z"], ["p"]),
        *(node("Sub", ["one", "p"], ["q"]), node("Concat", ["p", "q"], ["y"], axis=1)),
    ],
}


@pytest.mark.parametrize("ending", PROBABILITIES)
def test_a_property_of_probabilities_is_decided(corridor: Corridor, ending: str) -> None:
    """The end stays: nothing says that a property of it is one of the logits."""
    count = 1 if ending == "sigmoid" else 2
    constants = {
        "w": np.full((1, 1), 2, np.float32),
        "minus": np.full(1, -1, np.float32),
        "pair": np.array([[1, 0]], np.float32),
        "one": np.float32(1),
    }
    file = written(
        [
            *(node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "minus"], ["z"])),
            *PROBABILITIES[ending],
        ],
        [floats("x", "N", 1)],
        [floats("y", "N", count)],
        constants,
    )
    names = "".join(f"(declare-const Y_{place} Real)" for place in range(count))
    # log(0.74) is -0.3011, log(0.72) is -0.3285.
    limits = ("-0.301", "-0.329") if ending == "logarithms" else ("0.74", "0.72")
    for limit, verdict in zip(limits, ("holds", "violated"), strict=True):
        text = (
            f"(declare-const X_0 Real){names}(assert (and (>= X_0 0) (<= X_0 1) (>= Y_0 {limit})))"
        )
        report = finished(corridor, text, file=file)
        assert "property" in report, report
        assert report["property"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("(declare-const X_0 Real)", "invalid_vnnlib"),
        ("(assert " + "(and " * 100_000, "property_too_large"),
        (
            "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 Y_0 1e999999))",
            "property_too_large",
        ),
        (
            "(declare-const X_0 Real)(declare-const Y_0 Real)"
            "(assert (and (<= X_0 1) (>= X_0 0) (<= Y_0 1)))",
            "property_mismatch",
        ),
        (declared() + f"(assert (and {bounds('1', '0')} {HARMLESS}))", "empty_box"),
        (declared() + f"(assert {HARMLESS})", "unbounded_input"),
        (declared() + f"(assert (and {bounds('0', '1')} (< Y_0 1)))", "unsupported_vnnlib"),
        (declared() + "(assert (<= Y_0 \u00e9))", "invalid_vnnlib"),
    ],
)
def test_what_is_wrong_with_a_property_ends_its_job_with_a_problem(
    corridor: Corridor, text: str, code: str
) -> None:
    problem = finished(corridor, text)
    assert (problem["code"], problem["field"]) == (code, "property")


def test_a_method_that_bounds_balls_is_refused(corridor: Corridor) -> None:
    text = declared() + f"(assert (and {bounds('0', '1')} {HARMLESS}))"
    assert finished(corridor, text, method="lipschitz")["code"] == "unknown_method"
