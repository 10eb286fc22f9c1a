"""The report of a property: one verdict over all boxes, in the same document as other reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from service.contract.schemas.property_spec import spec_of
from service.contract.schemas.report import Report, result_digest
from service.contract.schemas.submissions import JobSubmission
from service.contract.times import now, rfc3339
from workers.jobs.report.build import report_model, versions
from workers.jobs.report.stated_property import stated_boxes
from workers.verification.properties.lowering import Property
from workers.verification.properties.results import BoxResult

__all__ = ["build_property_report"]

_HOLDS = (
    "The property holds: no float32 input within the stated bounds has outputs in the unsafe set, "
    "the negation that the file asserts. This is proved, not sampled, and it holds for the float32 "
    "network as ONNX Runtime runs it on a CPU with graph optimisations off, the normalisation "
    "included, in any order of summation. Decimals of the file are exact numbers."
)
_VIOLATED = (
    "The property is violated: the counterexample lies within the stated bounds, and the outputs "
    "that ONNX Runtime computes for it are in the unsafe set. Both were compared as exact numbers; "
    "a limit that is reached exactly counts as reached."
)
_UNKNOWN = (
    "It is not known whether the property holds: no bound proved it within what was allowed, and "
    "no counterexample was found."
)
_ESTIMATE = (
    "ESTIMATE - NOT A PROOF. Bounds followed a published method's own arithmetic, which may "
    'overstate what is proved. Nothing is guaranteed; ask for soundness "sound" instead.'
)
_LIMITS = (
    "Nothing is said about inputs outside the bounds, about other networks, or about this one on "
    "other hardware or in lower precision."
)


def build_property_report(
    submission: JobSubmission,
    facts: Mapping[str, Any],
    results: Sequence[BoxResult],
    asked: Property,
    *,
    wall_s: float,
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """The JSON report, checked against the contract's schema, with its ``result_digest``.

    facts: what the inspection wrote; results: of the boxes in order, up to the first one that has a
    counterexample; asked: the property; digests: of the files beside the report, by the names of
    its fields.
    """
    spec, stated = spec_of(submission), submission.vnnlib
    assert stated is not None
    assert submission.model is not None
    proved = [result for result in results if result.verdict == "holds"]
    verdict, point = _verdict(results), _counterexample(results)
    spent = {
        kind: sum(result.seconds.get(kind, 0.0) for result in results)
        for kind in ("bound", "attack")
    }
    report = {
        "schema": "certserve/report/1",
        "job_id": submission.id,
        "model": report_model(submission.model, facts),
        "dataset": None,
        "threat": None,
        "graph_digest": facts["graph_digest"],
        "spec": spec.normal(),
        "method": spec.method,
        "soundness": spec.soundness,
        "statement": _statement(verdict, sound=spec.soundness == "sound"),
        "failure_probability": 0.0,
        "clean_accuracy": None,
        "results": [],
        "radius": None,
        "curve": None,
        "by_method": dict(sorted(Counter(result.method for result in results).items())),
        "property": {
            "id": stated.blobs["file"],
            "name": stated.name,
            "verdict": verdict,
            "counterexample": point,
            "method": _method(verdict, results),
            "boxes": facts["samples"],
            "cases": facts["cases"],
            "proved": len(proved),
            "stated": stated_boxes(asked, None if point is None else point["box"]),
        },
        "parity": facts["parity"],
        "budget_spent": any(result.notes.get("budget_spent") for result in results),
        "warnings": list(facts["warnings"]),
        "notes": {
            "passes": sum(float(result.notes.get("passes", 0.0)) for result in results),
            "parts": sum(int(result.notes.get("parts", 0)) for result in results),
            "out_of_work": sum(bool(result.notes.get("out_of_work")) for result in results),
            "searched": [
                {"box": place, **found}
                for place, result in enumerate(results)
                if result.verdict == "unknown"
                for found in result.notes.get("searched", ())
            ],
        },
        "timing": {
            "wall_s": wall_s,
            "forward_s": float(facts["forward_s"]),
            "bound_s": spent["bound"],
            "attack_s": spent["attack"],
            "samples_per_s": len(results) / wall_s if wall_s else 0.0,
        },
        "device": next((str(r.notes["device"]) for r in results if "device" in r.notes), "cpu"),
        "versions": versions(),
        "created_at": rfc3339(now()),
        **digests,
    }
    document = Report.model_validate(report).model_dump(mode="json", by_alias=True)
    document["result_digest"] = result_digest(document)
    return document


def _verdict(results: Sequence[BoxResult]) -> str:
    if any(result.verdict == "violated" for result in results):
        return "violated"
    return "holds" if all(result.verdict == "holds" for result in results) else "unknown"


def _method(verdict: str, results: Sequence[BoxResult]) -> str:
    """The bounds that proved the boxes; of a counterexample what found it."""
    if verdict == "violated":
        return results[-1].method
    if verdict == "unknown":
        return "undecided"
    return ", ".join(dict.fromkeys(result.method for result in results))


def _counterexample(results: Sequence[BoxResult]) -> dict[str, Any] | None:
    point = results[-1].counterexample
    if point is None:
        return None
    x, y = point.x.reshape(-1).tolist(), point.y.reshape(-1).tolist()
    return {"box": len(results) - 1, "x": x, "y": y}


def _statement(verdict: str, *, sound: bool) -> str:
    said = {"holds": _HOLDS, "violated": _VIOLATED, "unknown": _UNKNOWN}[verdict]
    # A counterexample was replayed, whatever the bounds are.
    if not sound and verdict == "holds":
        said = _ESTIMATE
    return f"{said}\n\n{_LIMITS}"
