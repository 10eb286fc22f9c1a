"""A report in the terms of ISO/IEC 24029-2: what was shown, of what, by which kind of method.

The terms are those of ISO/IEC 24029-2:2023, which describes how formal methods assess the
robustness of neural networks. Saying things in its terms claims no conformity with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from service.reports.epsilon_names import epsilon_name, epsilon_names
from service.reports.words.counted import counted

__all__ = ["criterion", "evidence"]

#: Methods that decide every sample if they are given the time.
_COMPLETE = frozenset({"branch-and-bound", "milp"})
_AI_ACT = (
    "Evidence towards Art. 15 (accuracy, robustness) of the EU AI Act, for {} only. Whether it is "
    "enough is for the assessment to say."
)


def criterion(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the spec demanded: ``epsilon`` as a name, ``demanded`` share, ``met``; None without."""
    found = report.get("criterion")
    if not found:
        return None
    exact = str(found["epsilon"])
    reached = _reached(report, Fraction(exact))
    return {
        "epsilon": epsilon_name(exact),
        "demanded": found["certified_accuracy"],
        "reached": reached,
        "met": bool(found["met"]),
    }


def _reached(report: Mapping[str, Any], epsilon: Fraction) -> float | None:
    """The share at just this epsilon: others may have the same name, which is short."""
    for row in report["results"]:
        if Fraction(row.get("epsilon_exact") or repr(row["epsilon"])) == epsilon:
            share = row["certified_accuracy"]
            return None if share is None else float(share)
    return None


def evidence(report: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """The rows of the section: a term, and what stands for it in this report."""
    if report.get("property") is not None:
        return _of_property(report, report["property"])
    return [
        ("Domain", _domain(report)),
        ("Property", _property(report)),
        ("Criterion", _criterion(report)),
        ("Kind of method", _method(report)),
        ("Certainty", _certainty(report)),
        ("Arithmetic", _arithmetic(report)),
        ("Statistics", _statistics(report)),
        ("Seeds", _seeds(report)),
        ("Use", _AI_ACT.format("the perturbations of the domain and these samples")),
    ]


def _of_property(report: Mapping[str, Any], found: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    boxes = counted(found["boxes"], "box", "boxes")
    verdict = {
        "holds": "met",
        "violated": "not met, by a counterexample",
        "unknown": "neither shown to be met nor to be missed",
    }[found["verdict"]]
    names = {name.strip() for name in found["method"].split(",")}
    return [
        ("Domain", f"The intervals of the property file: {boxes}, in the units of the inputs."),
        ("Property", "A relation of the outputs: no unsafe case of the file occurs in the domain."),
        ("Criterion", f"The property holds at every point of the domain: {verdict}."),
        ("Kind of method", _kind(sorted(_COMPLETE & names), "A domain")),
        ("Certainty", _certainty(report)),
        ("Arithmetic", _arithmetic(report)),
        ("Statistics", "None: the report is about every point of the domain."),
        ("Seeds", _seeds(report)),
        ("Use", _AI_ACT.format("the inputs of the domain")),
    ]


def _domain(report: Mapping[str, Any]) -> str:
    threat, data = report["threat"], report["dataset"]
    names = ", ".join(epsilon_names(report)) or "none"
    around = "1 sample" if data["samples"] == 1 else f"each of {data['samples']} samples"
    text = (
        f"The {threat['norm']} ball around {around}, with radius "
        f"{names} (one domain per radius), in the input's own units"
    )
    return text + (", cut with the range of valid inputs." if threat["clip"] else ".")


def _property(report: Mapping[str, Any]) -> str:
    if report["clean_accuracy"] is None:
        return "Stability: the predicted class is the same at every point of the domain."
    return "Stability: the predicted class is the correct one at every point of the domain."


def _criterion(report: Mapping[str, Any]) -> str:
    found = criterion(report)
    if found is None:
        return "None was set: the shares of stable samples are stated, and judged by the reader."
    verdict = "met" if found["met"] else "not met"
    return (
        f"At least {found['demanded'] * 100:g} % of the samples are certified at epsilon "
        f"{found['epsilon']}: {verdict}."
    )


def _method(report: Mapping[str, Any]) -> str:
    return _kind(sorted(_COMPLETE & {*report["by_method"], report["method"]}), "A sample")


def _kind(complete: Sequence[str], what: str) -> str:
    open_ = f"{what} that is left undecided may be stable or not."
    if complete:
        return (
            f"Formal; complete ({', '.join(complete)}) where its limits of work and time were not "
            f"reached. {open_}"
        )
    return (
        "Formal, by bounds that are incomplete: what they certify is stable. "
        f"{open_} The attack is empirical and certifies nothing."
    )


def _certainty(report: Mapping[str, Any]) -> str:
    probability = report["failure_probability"]
    if not probability:
        return "Deterministic: no statement of the report may fail by chance."
    return (
        "Not deterministic: all statements of the report hold together except with probability at "
        f"most {probability:.2g}."
    )


def _arithmetic(report: Mapping[str, Any]) -> str:
    if report["soundness"] != "sound":
        return (
            "Real arithmetic is assumed and computed in floating point: AN ESTIMATE, NOT A PROOF."
        )
    return (
        "Computer arithmetic: every bound holds for the float32 network as deployed, its rounding "
        "and that of the verifier included."
    )


def _statistics(report: Mapping[str, Any]) -> str:
    intervals = any(row.get("interval_95") for row in report["results"])
    if not intervals:
        return "None: the report is about exactly these samples."
    return (
        "The report is about these samples. The 95 % intervals (Clopper-Pearson) are of the "
        "certified accuracy on the population, one epsilon at a time, and assume that the "
        "samples are a random draw from it, which the first N of a file are not by themselves."
    )


def _seeds(report: Mapping[str, Any]) -> str:
    spec = report.get("spec") or {}
    attack = spec.get("attack") or {}
    parts = [f"method {spec['seed']}"] if "seed" in spec else []
    parts += [f"attack {attack['seed']}"] if "seed" in attack else []
    return ", ".join(parts) or "none"
