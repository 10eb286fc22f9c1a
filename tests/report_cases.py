"""Results, submissions and facts as hypothesis builds them: anything that can truly happen."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from service.contract.schemas.submissions import JobSubmission, Spec
from workers.jobs.report.build import build_report, sample_rows
from workers.verification.results import SampleResults

DIGEST, UPLOAD = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
EPSILONS = st.fractions(min_value=Fraction(1, 255), max_value=4, max_denominator=255)
#: Names that try to break out of wherever they are written.
NAMES = st.sampled_from(
    ["mnist.onnx", "<script>alert(1)</script>", '=cmd|"/c calc"!A1', "a&b\"'", "]]>", "{{ 7*7 }}"]
) | st.text(max_size=20)


@st.composite
def cases(draw: st.DrawFn) -> tuple[JobSubmission, dict[str, Any], SampleResults]:
    """A submission, what prepare found, and results without contradiction."""
    epsilons = draw(st.lists(EPSILONS | st.just(Fraction(10**20)), min_size=1, max_size=5))
    attacked = draw(st.booleans())
    spec = Spec.model_validate(
        {
            "norm": draw(st.sampled_from(["l2", "linf"])),
            "epsilons": [str(epsilon) for epsilon in epsilons],
            "clip": draw(st.booleans()),
            "radius": draw(st.booleans()),
            "attack": {"steps": 3} if attacked else None,
            "normalization": draw(st.sampled_from([None, {"mean": [0.1], "std": [0.3]}])),
        }
    )
    count = draw(st.integers(1, 8))
    labelled = draw(st.booleans())
    facts = {
        "layers": [{"name": draw(NAMES), "kind": "linear", "shape": [3]}],
        "parameters": 15,
        "input_shape": [1, 2, 2],
        "classes": 3,
        "dropped_output": draw(st.sampled_from([None, "Softmax"])),
        "graph_digest": DIGEST,
        "labelled": labelled,
        "total": draw(st.sampled_from([None, count, count + 7])),
        "parity": {"max_difference": draw(st.sampled_from([0.0, 1e-7, math.nan])), "budget": 1e-5},
    }
    # Jobs that an older version prepared do not say.
    batch = draw(st.sampled_from([{}, {"batch": "any"}, {"batch": 1}]))
    made = {"id": DIGEST, "name": "n", "size": 7, "from": _upload(draw(NAMES))}
    rewritten = draw(st.sampled_from([{}, {"rewritten": None}, {"rewritten": made}]))
    return (
        _submission(spec, draw(NAMES)),
        facts | batch | rewritten,
        draw(_results(spec, count, labelled, attacked)),
    )


def _upload(name: str) -> dict[str, Any]:
    """What a rewritten file was made of."""
    return {
        "id": UPLOAD,
        "format": "onnx",
        "name": name,
        "layers": [name],
        "difference": 1e-7,
        "largest_share": 0.5,
        "inputs": {"samples": 1},
    }


def _submission(spec: Spec, name: str) -> JobSubmission:
    return JobSubmission.model_validate(
        {
            "id": "job-1",
            "kind": "certify",
            "spec": spec.normal(),
            "model": {"digest": DIGEST, "format": "onnx", "name": name, "size": 7},
            "dataset": {"kind": "npz", "name": name, "id": DIGEST},
            "created_at": "2026-01-31T12:00:00.000000Z",
        }
    )


@st.composite
def _results(
    draw: st.DrawFn, spec: Spec, count: int, labelled: bool, attacked: bool
) -> SampleResults:
    epsilons = spec.epsilons
    radii, certified, falsified, methods = [], [], [], []
    prediction = [draw(st.integers(-1, 2)) for _ in range(count)]  # -1: no answer, a tie
    label = [draw(st.integers(0, 2)) if labelled else max(0, p) for p in prediction]
    for row in range(count):
        correct = label[row] == prediction[row]
        radius = draw(st.sampled_from([0.0, math.inf]) | st.floats(0, 6)) if correct else 0.0
        broken_from = radius + draw(st.floats(0.01, 3)) if attacked and correct else math.inf
        radii.append(radius if spec.radius else math.nan)
        certified.append([e <= radius and draw(st.booleans()) for e in epsilons])
        falsified.append([e >= broken_from and draw(st.booleans()) for e in epsilons])
        methods.append(
            "lipschitz" if any(certified[-1]) else "undecided" if correct else "misclassified"
        )
    return SampleResults(
        index=np.arange(count),
        label=np.array(label),
        prediction=np.array(prediction),
        margin=np.array([draw(st.floats(width=32)) for _ in range(count)], dtype=np.float64),
        radius=np.array(radii),
        certified=np.array(certified, dtype=bool).reshape(count, len(epsilons)),
        falsified=np.array(falsified, dtype=bool).reshape(count, len(epsilons)),
        method=methods,
        decided_by=[[name] * len(epsilons) for name in methods],
        counterexamples={},
        seconds={"forward": 0.5, "bound": 1.0, "attack": 2.0},
        notes={"widest": math.inf, "budget_spent": draw(st.booleans())},
    )


def finished(
    case: tuple[JobSubmission, dict[str, Any], SampleResults],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report of a case and its sample rows."""
    submission, facts, results = case
    report = build_report(submission, facts, results, timing={"wall_s": 2.0}, device="cpu")
    return report, list(sample_rows(results, submission, facts))
