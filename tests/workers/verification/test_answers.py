"""A class is the answer where its logit is strictly the largest; a tie is wrong everywhere."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.layers.kinds import Linear
from models.network import INPUT, Network
from workers.jobs.report.verdicts import verdicts
from workers.verification.answers import NO_ANSWER, answers, label_leads
from workers.verification.attacks.pgd import attack
from workers.verification.cascade.run import certify_samples, deployed_answers
from workers.verification.results import AttackSettings, CertificationRequest, SampleResults

LOGITS = arrays(
    np.float32,
    (6, 3),
    elements=st.sampled_from([-1.0, 0.0, 1.0, 1.0000001, math.inf, -math.inf, math.nan, 3e38]),
)


@given(LOGITS, st.integers(0, 2))
def test_the_label_is_the_answer_exactly_where_it_is_strictly_on_top(
    logits: np.ndarray, label: int
) -> None:
    labels = np.full(len(logits), label)
    prediction, margin, correct = deployed_answers(logits, labels, 0.0)
    for row, values in enumerate(logits.tolist()):
        others = [value for place, value in enumerate(values) if place != label]
        on_top = all(map(math.isfinite, values)) and all(values[label] > v for v in others)
        assert bool(correct[row]) == on_top == (prediction[row] == label)
        assert bool(margin[row] > 0) == on_top
        if on_top:
            assert bool(label_leads(torch.from_numpy(logits), torch.from_numpy(labels))[row])


@given(LOGITS)
def test_a_tie_of_the_largest_or_a_logit_that_is_no_number_is_no_answer(logits: np.ndarray) -> None:
    for found, values in zip(answers(torch.from_numpy(logits)).tolist(), logits, strict=True):
        tied = (values == values.max()).sum() > 1
        assert (found == NO_ANSWER) == bool(tied or not np.isfinite(values).all())


def two_equal_classes() -> Network:
    """Classes 0 and 1 share their row, class 2 is far below: every input is a tie."""
    weight = torch.tensor([[1.0, 2.0], [1.0, 2.0], [-9.0, -9.0]])
    return Network((2,), [("out", Linear(weight, torch.zeros(3)), (INPUT,))]).eval()


def certified(network: Network, x: np.ndarray, labels: np.ndarray) -> SampleResults:
    def deployed(batch: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(batch)).detach().numpy()

    return certify_samples(
        network,
        x,
        labels,
        np.arange(len(x)),
        CertificationRequest("l2", (Fraction(1, 10),), "auto"),
        deployed=deployed,
        deployed_logits=deployed(x),
        device=torch.device("cpu"),
    )


def test_one_rule_for_accuracy_and_rows() -> None:
    x = np.array([[0.5, 0.5], [0.2, 0.9], [0.1, 0.3]], dtype=np.float32)
    found = certified(two_equal_classes(), x, np.array([0, 1, 2]))
    assert found.method == ["misclassified"] * 3
    assert found.prediction.tolist() == [NO_ANSWER] * 3
    assert not verdicts(found, [Fraction(1, 10)], sound=True).correct.any()
    assert not found.certified.any()
    assert not found.radius.any()


def test_a_point_that_ties_breaks_its_sample() -> None:
    """The first of equal classes is the label: a program that names the first one would be right"""
    network = two_equal_classes()
    x = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    broken, _ = attack(
        network,
        lambda batch: network(torch.from_numpy(batch)).detach().numpy(),
        x,
        torch.tensor([0, 1]),
        np.arange(2),
        torch.full((2,), 0.1, dtype=torch.float64),
        norm="l2",
        clip=True,
        settings=AttackSettings(steps=2),
    )
    assert broken.tolist() == [True, True]
