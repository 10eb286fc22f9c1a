"""A worker writes a certificate where the checker can follow, of as many samples as fit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from models.layers.activations import Sigmoid
from models.layers.kinds import Add, Linear, ReLU
from models.network import INPUT, Network
from tests.check.forger import Forgery, certified_by, chain, proves
from workers.jobs.report import certificate

EPSILONS = [Fraction(1, 10)]
X = np.random.default_rng(0).random((6, 4)).astype(np.float32)
LABEL = np.zeros(6, dtype=np.int64)


def dense(*, bias: float = 5.0) -> Linear:
    return Linear(torch.eye(4), torch.tensor([bias, 0.0, 0.0, 0.0]))


def test_samples_beyond_the_work_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network = chain((4,), [dense(), ReLU(), dense()])
    made = certified_by(network, X, LABEL, norm="l2", epsilons=EPSILONS, boxes=False)
    assert made is not None
    assert Forgery(made).document["certified"] == [6]
    monkeypatch.setattr(certificate, "WORK", 4_650.0)
    made = certified_by(network, X, LABEL, norm="l2", epsilons=EPSILONS, boxes=False)
    assert made is not None
    assert Forgery(made).document["samples"] == 3
    assert proves(made) is None
    monkeypatch.setattr(certificate, "WORK", 10.0)
    assert certified_by(network, X, LABEL, norm="l2", epsilons=EPSILONS) is None


def test_what_the_checker_does_not_cover_has_no_certificate() -> None:
    unknown = chain((4,), [dense(), Sigmoid(), dense()])
    joined = Network(
        (4,),
        [
            ("first", dense(), (INPUT,)),
            ("sum", Add(), ("first", INPUT)),
            ("last", dense(), ("sum",)),
        ],
    ).eval()
    no_claim = chain((4,), [dense(bias=-50.0)])
    for network in (unknown, joined, no_claim):
        assert certified_by(network, X, LABEL, norm="l2", epsilons=EPSILONS) is None
