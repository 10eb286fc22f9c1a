"""The report of a certification, its sample rows, and the digest that names a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, JsonValue

from service.contract.schemas.submissions import Criterion, Strict

__all__ = [
    "CascadeReport",
    "CascadeResult",
    "CascadeStage",
    "Counterexample",
    "CriterionVerdict",
    "Curve",
    "EpsilonResult",
    "PropertyVerdict",
    "RadiusSummary",
    "Report",
    "ReportDataset",
    "ReportModel",
    "RewrittenFrom",
    "SampleRow",
    "Signature",
    "StatedBox",
    "Threat",
    "Timing",
    "canonical_json",
    "result_digest",
]

#: What differs between two runs of one job, or names the result itself.
_NOT_THE_RESULT = (
    *("job_id", "created_at", "timing", "device", "signature", "result_digest"),
    # Digests of files, of which one is compressed: they name the same result in other words.
    *("samples_digest", "counterexamples_digest", "certificate_digest"),
)


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8. Raises ValueError on NaN and infinities."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def result_digest(report: Mapping[str, Any]) -> str:
    """``sha256:...`` of the canonical report without job id, times, device and signature."""
    result = {key: value for key, value in report.items() if key not in _NOT_THE_RESULT}
    return "sha256:" + hashlib.sha256(canonical_json(result)).hexdigest()


class _Row(Strict):
    model_config = ConfigDict(allow_inf_nan=False)


class RewrittenFrom(_Row):
    """Of a model that was rewritten before it was certified: the upload, of which nothing is.

    layers: those whose sums are in partial sums now. difference: the largest one between the
    logits of both files on the samples; largest_share: of what float32 rounding explains, on all
    ``inputs`` that were compared (<= 1). None: no time was left for it, and nothing is certified.
    """

    id: str
    format: str
    name: str = ""
    layers: list[str]
    difference: float | None
    largest_share: float | None
    inputs: dict[str, int]


class ReportModel(_Row):
    """What was certified: upload, layers (one line each) and number of stored values.

    dropped_output: operator at the very end that was left out (a softmax): margins are of logits.
    pairing: the state dict's tensor -> layer and parameter that it became; None for ONNX.
    batch: "any", or the rows that the file takes at once (1: one at a time): what the claim is
    about. output: the ONNX output that holds the scores. takes_bytes: its input is uint8.
    class_names: what the file calls its classes, in the order of their numbers. binary: it is one
    score z of two classes,
    certified as the logits (0, z). rewritten_from: the upload that this file was made of, if it is
    not the uploaded one (``spec.summation``).
    """

    id: str
    format: str
    name: str = ""
    layers: list[JsonValue]
    parameters: int
    input_shape: list[int] = []
    classes: int | None = None
    dropped_output: str | None = None
    pairing: dict[str, str] | None = None
    batch: Literal["any"] | int | None = None
    output: str | None = None
    binary: bool = False
    takes_bytes: bool = False
    class_names: list[str] | None = None
    rewritten_from: RewrittenFrom | None = None


class ReportDataset(_Row):
    """Which data: ``samples`` is how many were certified, ``total`` how many there are.

    ``classes``: class folder -> label; None where labels do not come from folders. ``digest``: of
    the samples as they were certified, sha256 over x (float32), labels and indices (int64).
    """

    id: str | None
    name: str
    samples: int
    total: int | None = None
    split: str | None = None
    classes: dict[str, int] | None = None
    digest: str | None = None


class Threat(_Row):
    """The ball: epsilons in units of the data, as numbers and as exact fractions.

    ``input_range``: the spec's; ``largest_distance``: no two inputs in it are farther apart.
    """

    norm: Literal["l2", "linf"]
    epsilons: list[float]
    epsilons_exact: list[str] = []
    clip: bool
    input_range: list[float | list[float]] | None = [0.0, 1.0]
    largest_distance: float | None = None
    normalization: dict[str, list[float]] | None = None


class EpsilonResult(_Row):
    """Counts and shares at one epsilon; ``interval_95`` (of the certified accuracy on the
    population) assumes that the samples are a random draw from it; reports of earlier releases have
    it for subsets only."""

    epsilon: float
    epsilon_exact: str = ""
    certified_accuracy: float | None
    attack_accuracy: float | None
    certified: int
    falsified: int
    undecided: int
    interval_95: list[float] | None = None


class RadiusSummary(_Row):
    """Largest certified radii; ``unbounded`` ones, beyond every input, count as ``cap``."""

    mean: float
    median: float
    quantiles: dict[str, float]
    average_certified_radius: float
    unbounded: int = 0
    cap: float | None = None


class Curve(_Row):
    """Certified (and attacked) accuracy over epsilon, for plotting."""

    epsilon: list[float]
    certified_accuracy: list[float]
    attack_accuracy: list[float | None] | None = None


class Timing(_Row):
    """Worker seconds; not part of the result digest."""

    wall_s: float
    forward_s: float
    bound_s: float
    attack_s: float
    samples_per_s: float


class CriterionVerdict(Criterion):
    """The spec's criterion, and whether it was met.

    By the exact count of certified samples. Never by an estimate, after a spent time budget or
    without labels.
    """

    met: bool


class Counterexample(_Row):
    """x: X_0, X_1, ... and y: Y_0, Y_1, ..., the float32 numbers exactly; box: which one it is in.

    ONNX Runtime answers x, run alone, with y; both satisfy the property's assertions exactly.
    """

    box: int
    x: list[float]
    y: list[float]


class StatedBox(_Row):
    """What a property says of one box, for people: numbers of at most 9 digits, lists shortened.

    ``box``: its place, from 0. ``inputs``: how many there are, ``fixed``: how many of them have one
    value. ``intervals``: of the first inputs and the widest others. ``unsafe``: the first of its
    ``cases``; outputs are unsafe where any one of them holds.
    """

    box: int
    inputs: int
    fixed: int
    intervals: list[str]
    cases: int
    unsafe: list[str]


class PropertyVerdict(_Row):
    """What became of a VNN-LIB property: the file, its boxes and unsafe cases, the verdict.

    holds: no input of any box has unsafe outputs; violated: ``counterexample`` has; unknown:
    neither was found out. method: the bounds that proved the boxes, or what found the
    counterexample. proved: how many boxes are. stated: the first boxes, and the one of the
    counterexample, in words (empty in reports of earlier releases).
    """

    id: str
    name: str
    verdict: Literal["holds", "violated", "unknown"]
    counterexample: Counterexample | None
    method: str
    boxes: int
    cases: int
    proved: int
    stated: list[StatedBox] = []


class Signature(_Row):
    """Ed25519 over the canonical report without this field."""

    algorithm: Literal["ed25519"]
    public_key: str
    value: str


class Report(_Row):
    """The report; write it with ``model_dump(mode="json", by_alias=True)``.

    Of a property ``dataset``, ``threat``, ``radius``, ``curve`` and ``clean_accuracy`` are None and
    ``results`` is empty; else ``property`` is None.
    ``statement`` says in words what was proved (or, in capitals, that this is an estimate).
    ``parity`` is the difference between ONNX Runtime's logits and our graph's, with its budget, and
    how many ``inputs`` of each kind were compared (samples, batches, random, coordinates).
    ``samples_digest``, ``counterexamples_digest`` and ``certificate_digest`` are the sha256 of the
    files samples.jsonl, counterexamples.npz and, where there is one, the certificate.
    ``notes`` holds JSON-able facts of bounds and attacks; never times, which would make the
    result digest of two equal runs differ.
    """

    schema_: Literal["certserve/report/1"] = Field(default="certserve/report/1", alias="schema")
    job_id: str
    model: ReportModel
    dataset: ReportDataset | None
    threat: Threat | None
    graph_digest: str | None = None
    spec: dict[str, JsonValue] = {}
    method: str
    soundness: Literal["sound", "estimate"]
    statement: str = ""
    failure_probability: float = 0.0
    clean_accuracy: float | None
    results: list[EpsilonResult]
    radius: RadiusSummary | None
    curve: Curve | None
    by_method: dict[str, int]
    criterion: CriterionVerdict | None = None
    property: PropertyVerdict | None = None
    parity: dict[str, JsonValue] | None = None
    budget_spent: bool = False
    warnings: list[str] = []
    notes: dict[str, JsonValue] = {}
    timing: Timing
    device: str
    versions: dict[str, str]
    created_at: str
    result_digest: str | None = None
    samples_digest: str | None = None
    counterexamples_digest: str | None = None
    certificate_digest: str | None = None
    signature: Signature | None = None

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class CascadeStage(_Row):
    """A network of a cascade: the model, and how many training samples it was trained on."""

    stage: int
    model_id: str
    trained_on: int


class CascadeResult(_Row):
    """A cascade at one epsilon, which is that of its stages' certificates as well.

    ``answered_by``: for each sample the stage, from 1, that answers it, the first one that
    certifies its own prediction; 0 where none does and the last one answers. ``answered`` [stages]
    and ``uncertified`` count them. ``clean_accuracy``: share whose answer is the label.
    ``protocol``: samples answered by a certificate, and right: the robust accuracy of CAP's
    protocol, an estimate. ``certified``: samples whose answer is the label at every input of the
    ball, if stages answer by sound certificates of at least this epsilon. ``every_stage``: those of
    them that every stage is certified for: they hold whichever stage answers. Both are null where
    the stages' certificates are estimates. Without labels any answer is right.
    """

    epsilon: float
    epsilon_exact: str
    answered: list[int]
    uncertified: int
    clean_accuracy: float | None
    protocol_accuracy: float
    protocol: int
    certified_accuracy: float | None
    certified: int | None
    every_stage: int | None
    answered_by: list[int]


class CascadeReport(_Row):
    """What the stages of a cascade come to together; each has a report of its own beside it.

    ``soundness`` is that of ``protocol``, which the papers call robust accuracy. ``index``: place
    in the data set of each sample. ``criterion``: judged by what is proved, ``certified``.
    ``clip``: balls end where [0, 1] does, those of the certificates by which stages answer too.
    ``failure_probability``: of all stages' reports together.
    """

    schema_: Literal["certserve/cascade/1"] = Field(default="certserve/cascade/1", alias="schema")
    job_id: str
    soundness: Literal["estimate"] = "estimate"
    statement: str
    norm: Literal["l2", "linf"]
    clip: bool
    method: str
    failure_probability: float
    dataset: ReportDataset
    samples: int
    stages: list[CascadeStage]
    results: list[CascadeResult]
    index: list[int]
    criterion: CriterionVerdict | None = None
    warnings: list[str] = []
    versions: dict[str, str]
    created_at: str
    signature: Signature | None = None

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class SampleRow(_Row):
    """One line of ``samples.jsonl``; certified and falsified in the order of the epsilons.

    ``label`` is null where the data set has no labels; ``radius`` is null where it was not asked
    for, and where ``unbounded`` says that it lies beyond every input.
    """

    index: int
    label: int | None
    prediction: int
    margin: float | None
    radius: float | None
    unbounded: bool = False
    method: str
    certified: list[bool]
    falsified: list[bool]
