"""What the networks of a cascade (Wong, Schmidt, Metzen, Kolter 2018) come to together: CAP's
robust accuracy, and what is proved of the cascade as a function.

The cascade answers x with the first stage that certifies its own prediction of the ball B(x, e);
where none does, with the last stage. Two figures follow, of which only the second is a proof:

* CAP's robust accuracy counts x where a stage answers by its certificate, and is right. At another
  x' of the ball an earlier stage may have a certificate too, and for another class.
* ``certified`` counts x where the last stage is certified for the label and every other stage
  predicts the label at x. Proof: let x' be in B(x, e). A stage before the last one answers x' only
  by a certificate: it gives one class to all of B(x', e). As x is in B(x', e), that is the class
  which it predicts at x, the label. The last stage answers x' with the label because x' is in
  B(x, e). So the answer is the label, whichever stage gives it. With certificates of a larger ball
  the proof is the same.

The second needs the certificates that decide who answers to be sound, by whatever method.
``every_stage`` counts the samples that every stage is certified for, which needs nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.schemas.epsilons import epsilon_text
from service.contract.schemas.report import CascadeReport
from service.contract.schemas.submissions import JobSubmission, Spec
from service.contract.times import now, rfc3339
from workers.jobs.report.build import criterion_verdict, versions
from workers.verification.results import SampleResults

__all__ = ["Counts", "build_cascade_report", "counts_at", "with_labels"]

_STATEMENT = (
    "ESTIMATE: ROBUST ACCURACY OF CAP'S PROTOCOL (protocol). A sample counts where the first stage "
    "that certifies its own prediction predicts the label. This says nothing of the cascade as a "
    "function: at another input of the ball another stage may answer, and with another class."
)
_UNLABELLED = " The data set has no labels: whatever a stage predicts counts as the label."
_PROVED = (
    "PROVED (certified): at every input of the ball{valid} the cascade answers with {label}, "
    "whichever stage does, if stages answer by sound certificates of at least this epsilon. The "
    "last stage is certified for {label}, and every other stage predicts it: where such a stage "
    "has a certificate at another input of the ball, the sample is in that certificate's ball, so "
    "that the stage gives both the same class. Of these, every_stage counts the samples that every "
    "stage is certified for: their answer is {label} however it is decided which stage answers."
)
_PROBABLE = (
    " The stages' certificates of the samples hold together except with probability at most {:.2g}."
)
_NOT_PROVED = "The stages' certificates are estimates themselves: nothing is proved."


@dataclass(frozen=True)
class Counts:
    """A cascade at one epsilon, per sample: ``answered_by`` int64 [n], the stage from 1 that
    answers by its certificate, 0 where none does; bool [n]: ``right``, ``protocol``, ``certified``
    and ``every_stage``, as ``CascadeResult`` counts them."""

    answered_by: NDArray[np.int64]
    right: NDArray[np.bool_]
    protocol: NDArray[np.bool_]
    certified: NDArray[np.bool_]
    every_stage: NDArray[np.bool_]


def counts_at(
    prediction: NDArray[np.int64],
    certified: NDArray[np.bool_],
    label: NDArray[np.int64] | None,
) -> Counts:
    """The cascade at one epsilon.

    prediction [stages, n]; certified [stages, n]: whether the stage is certified for its own
    prediction over the ball; label [n], None: any answer is right.
    """
    by_certificate = certified.any(0)
    stage = np.where(by_certificate, certified.argmax(0), len(certified) - 1)
    answer = prediction[stage, np.arange(prediction.shape[1])]
    right = np.ones_like(by_certificate) if label is None else answer == label
    # Where all predict the same, the answer is what the last one is certified for.
    agreed = (prediction == prediction[-1]).all(0) & right
    return Counts(
        answered_by=np.where(by_certificate, stage + 1, 0),
        right=right,
        protocol=by_certificate & right,
        certified=agreed & certified[-1],
        every_stage=agreed & certified.all(0),
    )


def build_cascade_report(
    submission: JobSubmission,
    stages: Sequence[dict[str, Any]],
    results: Sequence[SampleResults],
    certified: Sequence[NDArray[np.bool_]],
    label: NDArray[np.int64] | None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The JSON report of a cascade, checked against the contract's schema.

    stages: ``CascadeStage`` of each, in order; results: of each, certified for its own predictions;
    certified [n, epsilons] of each, closed under nesting; label [n], None without labels.
    """
    spec = Spec.model_validate(submission.spec)
    assert submission.dataset is not None
    sound = spec.soundness == "sound"
    count = len(results[0].index)
    rows = []
    for place, epsilon in enumerate(spec.epsilons):
        found = counts_at(
            np.stack([part.prediction for part in results]),
            np.stack([part[:, place] for part in certified]),
            label,
        )
        proved = int(found.certified.sum())
        rows.append(
            {
                "epsilon": float(epsilon),
                "epsilon_exact": epsilon_text(epsilon),
                "answered": [
                    int((found.answered_by == number + 1).sum()) for number in range(len(stages))
                ],
                "uncertified": int((found.answered_by == 0).sum()),
                "clean_accuracy": None if label is None else int(found.right.sum()) / count,
                "protocol_accuracy": int(found.protocol.sum()) / count,
                "protocol": int(found.protocol.sum()),
                "certified_accuracy": proved / count if sound else None,
                "certified": proved if sound else None,
                "every_stage": int(found.every_stage.sum()) if sound else None,
                "answered_by": found.answered_by.tolist(),
            }
        )
    probability = sum(float(part.notes.get("failure_probability", 0.0)) for part in results)
    probability = min(1.0, probability)
    estimated = _STATEMENT + (_UNLABELLED if label is None else "")
    proved_in_words = _PROVED.format(
        valid=" that stays in [0, 1]" if spec.clip else "",
        label="the class that it gives the sample" if label is None else "the label",
    ) + (_PROBABLE.format(probability) if probability > 0 else "")
    report = {
        "job_id": submission.id,
        "statement": f"{estimated}\n\n{proved_in_words if sound else _NOT_PROVED}",
        "norm": spec.norm,
        "clip": spec.clip,
        "method": spec.method,
        "failure_probability": probability,
        "dataset": {
            "id": submission.dataset.id,
            "name": submission.dataset.name,
            "samples": count,
            "split": submission.dataset.split,
        },
        "samples": count,
        "stages": list(stages),
        "results": rows,
        "index": results[0].index.tolist(),
        "criterion": criterion_verdict(
            spec,
            rows,
            count,
            comparable=label is not None
            and sound
            and not any(part.notes.get("budget_spent") for part in results),
        ),
        "warnings": list(warnings),
        "versions": versions(),
        "created_at": rfc3339(now()),
    }
    return CascadeReport.model_validate(report).model_dump(
        mode="json", by_alias=True, exclude={"signature"}
    )


def with_labels(
    results: SampleResults, label: NDArray[np.int64], margin: NDArray[np.float64]
) -> SampleResults:
    """Results for the network's own predictions as those for these labels [n], of which ``margin``
    [n] is: whatever is known of a wrong prediction, it counts as misclassified."""
    wrong = results.prediction != label
    said = ["misclassified"] * results.certified.shape[1]
    radius = np.where(wrong & ~np.isnan(results.radius), 0.0, results.radius)
    return replace(
        results,
        label=label,
        margin=margin,
        radius=radius,
        certified=results.certified & ~wrong[:, None],
        falsified=results.falsified & ~wrong[:, None],
        method=[
            "misclassified" if no else name for no, name in zip(wrong, results.method, strict=True)
        ],
        decided_by=[
            said if no else names for no, names in zip(wrong, results.decided_by, strict=True)
        ],
        counterexamples={
            key: point
            for key, point in results.counterexamples.items()
            if not wrong[int(key.partition(",")[0])]
        },
    )
