"""Cascades of networks: what is counted as certified holds of the cascade as a function, which its
stages' own certificates do not tell."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.layers.affine import Linear
from models.network import Network
from service.contract.schemas.submissions import DatasetSource, JobSubmission, Spec
from tests.workers.verification.certification import certify, evaluate
from tests.workers.verification.networks import dense_network
from workers.jobs.report.cascade_report import (
    build_cascade_report,
    counts_at,
    with_labels,
)
from workers.verification.cascade.run import deployed_answers
from workers.verification.results import AttackSettings, SampleResults

SIDE = np.arange(17, dtype=np.float32) / 16
#: float32 holds all of it, and sums and differences of it too.
PLANE = np.stack(np.meshgrid(SIDE, SIDE), axis=-1).reshape(-1, 2)


def own(network: Network, x: NDArray[np.float32], epsilon: str, method: str) -> SampleResults:
    """The network's results for its own predictions."""
    quiet = {"radius": False, "attack": None}
    return certify(network, x, (epsilon,), norm="linf", method=method, **quiet)


def asked(
    stages: list[Network], x: NDArray[np.float32], epsilon: str, method: str = "ibp"
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """prediction and certified [stages, n], soundly."""
    found = [own(network, x, epsilon, method) for network in stages]
    return (
        np.stack([part.prediction for part in found]),
        np.stack([part.certified[:, 0] for part in found]),
    )


def cascade(prediction: NDArray[np.int64], certified: NDArray[np.bool_]) -> list[int]:
    """The answers by the rule as it is told, sample by sample."""
    answers = []
    for point in range(prediction.shape[1]):
        by = [stage for stage in range(len(prediction)) if certified[stage, point]]
        answers.append(int(prediction[by[0] if by else -1, point]))
    return answers


def affine(weight: list[list[float]], bias: list[float]) -> Network:
    layer = Linear(torch.tensor(weight), torch.tensor(bias))
    return Network((len(weight[0]),), [("a", layer, ("input",))]).eval()


def test_a_stages_certificate_says_nothing_of_the_cascade() -> None:
    # Class 1 beyond 1/2; then class 0 everywhere.
    stages = [affine([[-4.0], [4.0]], [2.0, -2.0]), affine([[0.0], [0.0]], [1.0, 0.0])]
    line = SIDE[:, None]
    prediction, certified = asked(stages, line, "1/8")
    answers = cascade(prediction, certified)
    x, other, below = 9, 11, 7
    assert abs(SIDE[other] - SIDE[x]) <= 1 / 8
    found = counts_at(prediction, certified, np.zeros(len(line), dtype=np.int64))
    # Stage 2 certifies class 0 of x, which is right; within the ball stage 1 certifies class 1.
    assert (found.answered_by[x], answers[x], answers[other]) == (2, 0, 1)
    assert found.protocol[x]
    assert not found.certified[x]
    assert not found.every_stage[x]
    # Stage 1 certifies nothing here either, but whatever it answers in the ball is class 0.
    ball = np.abs(SIDE - SIDE[below]) <= 1 / 8
    assert found.answered_by[below] == 2
    assert found.certified[below]
    assert not found.every_stage[below]
    assert {answers[place] for place in np.flatnonzero(ball)} == {0}


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 3),
    reach=st.integers(1, 3),
    method=st.sampled_from(["ibp", "cap"]),
    scale=st.sampled_from([1.0, 4.0]),
)
def test_what_is_certified_holds_at_every_input_of_the_ball(
    seed: int, count: int, reach: int, method: str, scale: float
) -> None:
    stages = [dense_network([2, 4, 3], seed + 7 * k, scale=scale) for k in range(count)]
    prediction, certified = asked(stages, PLANE, f"{reach}/16", method)
    answers = np.array(cascade(prediction, certified))
    found = counts_at(prediction, certified, answers)
    near = np.abs(PLANE[:, None] - PLANE[None, :]).max(-1) <= reach / 16
    constant = ((answers[None, :] == answers[:, None]) | ~near).all(1)
    assert found.right.all()
    assert not (found.every_stage & ~found.certified).any()
    assert not (found.certified & ~found.protocol).any()
    assert not (found.certified & ~constant).any()
    # Whichever stage is asked, by whatever rule.
    for ball, answer in zip(near[found.every_stage], answers[found.every_stage], strict=True):
        assert (prediction[:, ball] == answer).all()
    # Another label is never certified.
    wrong = counts_at(prediction, certified, answers + 1)
    assert not (wrong.protocol | wrong.certified | wrong.every_stage).any()


def test_a_single_stage_is_a_network() -> None:
    prediction, certified = asked([dense_network([2, 4, 3], 3, scale=4.0)], PLANE, "1/16")
    label = np.where(PLANE[:, 0] < 0.5, prediction[0], prediction[0] + 1)
    found = counts_at(prediction, certified, label)
    plain = certified[0] & (prediction[0] == label)
    assert 0 < plain.sum() < certified.sum()
    for column in (found.protocol, found.certified, found.every_stage):
        assert (column == plain).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(["ibp", "cap"]))
def test_results_for_predictions_become_those_for_labels(seed: int, method: str) -> None:
    network = dense_network([2, 6, 3], seed, scale=4.0)
    rng = np.random.default_rng(seed)
    x = rng.random((12, 2)).astype(np.float32)
    label = rng.integers(0, 3, 12)
    options = {"norm": "linf", "method": method, "attack": AttackSettings(steps=5, audit=1.0)}
    plain = certify(network, x, ("1/16", "1/4"), label, **options)
    of_predictions = certify(network, x, ("1/16", "1/4"), **options)
    _, margin, _ = deployed_answers(evaluate(network, x), label, 0.0)
    found = with_labels(of_predictions, label, margin.numpy())
    for name in ("index", "label", "prediction", "margin", "radius", "certified", "falsified"):
        assert np.array_equal(getattr(found, name), getattr(plain, name)), name
    assert (found.method, found.decided_by) == (plain.method, plain.decided_by)
    assert set(found.counterexamples) == set(plain.counterexamples)


def report(
    soundness: str,
    *,
    labelled: bool = True,
    probability: float = 0.0,
    spent: bool = False,
    **spec: object,
) -> dict:
    stages = [dense_network([2, 4, 3], seed, scale=4.0) for seed in (1, 2)]
    results = [own(network, PLANE, "1/16", "ibp") for network in stages]
    for part in results:
        part.notes |= {"failure_probability": probability, "budget_spent": spent}
    submission = JobSubmission(
        id="job",
        kind="train",
        spec=Spec.model_validate(
            {"norm": "linf", "epsilons": ["1/16"], "soundness": soundness, **spec}
        ).normal(),
        model=None,
        dataset=DatasetSource(kind="digits", name="digits", split="test"),
        created_at="2026-01-31T12:00:00.000000Z",
    )
    facts = [{"stage": k, "model_id": f"sha256:{k}", "trained_on": 100 // k} for k in (1, 2)]
    label = np.ones(len(PLANE), dtype=np.int64) if labelled else None
    return build_cascade_report(
        submission, facts, results, [part.certified for part in results], label, ["It ended."]
    )


def test_the_report_says_what_is_an_estimate_and_what_is_proved() -> None:
    found = report("sound")
    (row,) = found["results"]
    assert found["soundness"] == "estimate"
    assert found["statement"].startswith("ESTIMATE: ROBUST ACCURACY OF CAP'S PROTOCOL")
    assert "PROVED" in found["statement"]
    assert sum(row["answered"]) + row["uncertified"] == found["samples"] == len(row["answered_by"])
    assert row["every_stage"] <= row["certified"] <= row["protocol"] <= sum(row["answered"])
    assert row["certified_accuracy"] <= row["protocol_accuracy"] <= row["clean_accuracy"]
    assert found["warnings"] == ["It ended."]


def test_what_is_called_proved_names_the_valid_inputs_and_the_probability() -> None:
    """Certificates are of balls that end where the valid inputs do, and hold as surely as they
    hold together."""
    plain = report("sound")
    assert "at every input of the ball that stays in [0, 1] the cascade" in plain["statement"]
    assert "probability" not in plain["statement"]
    assert plain["clip"] is True
    for spec in ({"clip": False}, {"input_range": None}):
        found = report("sound", **spec)
        assert "at every input of the ball the cascade" in found["statement"]
        assert found["clip"] is False
    found = report("sound", probability=2e-9)
    assert found["failure_probability"] == 4e-9
    assert "hold together except with probability at most 4e-09" in found["statement"]
    found = report("sound", labelled=False)
    assert "has no labels" in found["statement"]
    assert "the cascade answers with the class that it gives the sample" in found["statement"]


def test_the_criterion_is_judged_by_what_is_proved_of_the_whole() -> None:
    (row,) = report("sound")["results"]
    assert 0 < row["certified"] < row["protocol"]
    reached, beyond = row["certified_accuracy"], row["protocol_accuracy"]

    def met(share: float, soundness: str = "sound", **options: bool) -> bool:
        wish = {"epsilon": "1/16", "certified_accuracy": share}
        verdict: bool = report(soundness, criterion=wish, **options)["criterion"]["met"]
        return verdict

    assert report("sound")["criterion"] is None
    assert met(0.9 * reached)
    assert not met(beyond)
    assert not met(0.0, "estimate")
    assert not met(0.0, labelled=False)
    assert not met(0.0, spent=True)


def test_of_estimates_nothing_is_proved_and_without_labels_nothing_is_wrong() -> None:
    (row,) = report("estimate")["results"]
    assert (row["certified"], row["certified_accuracy"], row["every_stage"]) == (None, None, None)
    assert "PROVED" not in report("estimate")["statement"]
    (row,) = report("sound", labelled=False)["results"]
    assert row["clean_accuracy"] is None
    assert row["protocol"] == sum(row["answered"])
