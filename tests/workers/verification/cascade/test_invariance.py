"""Certificates do not depend on batch, shard, number of threads or device."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.workers.verification.cascade.answers import answers
from tests.workers.verification.networks import random_network
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.results import AttackSettings, CertificationRequest


@pytest.mark.parametrize("method", ["auto", *BOUNDS])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_shards_and_threads_change_nothing(method: str, norm: str, tmp_path: Path) -> None:
    request = CertificationRequest(
        norm,
        (Fraction(1, 50), Fraction(1, 10), Fraction(3, 10)),
        method,
        attack=AttackSettings(steps=5) if method == "auto" else None,
        radius=method in ("lipschitz", "ibp", "bcp"),
    )
    network = random_network(8)
    x = np.random.default_rng(8).random((12, 2, 8, 8)).astype(np.float32)
    whole = answers(network, x, request, tmp_path, shard=12)
    for shard, threads in ((1, 1), (7, 1), (12, 2)):
        other = answers(network, x, request, tmp_path, shard=shard, threads=threads)
        assert whole.differences(other) == (0, 0), (shard, threads)


#: Networks on which float32's own rounding hides what float64 proves.
HARD_FOR_FLOAT32 = (1, 2)


@pytest.mark.parametrize("method", ["auto", *BOUNDS])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_float64_alone_as_on_a_gpu_changes_nothing(method: str, norm: str, tmp_path: Path) -> None:
    shares = (1, 2, 5, 10, 20, 40, 70, 100, 200, 400, 800, 2000)
    request = CertificationRequest(
        norm,
        tuple(Fraction(share, 10_000 if norm == "l2" else 40_000) for share in shares),
        method,
        attack=None,
        radius=method in ("lipschitz", "ibp", "bcp", "local-lip"),
    )
    for seed in HARD_FOR_FLOAT32:
        network = random_network(seed)
        x = np.random.default_rng(seed).random((30, 2, 8, 8)).astype(np.float32)
        usual = answers(network, x, request, tmp_path, shard=30)
        alone = answers(network, x, request, tmp_path, shard=30, float64_alone=True)
        assert usual.differences(alone) == (0, 0), seed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", BOUNDS)
def test_the_device_changes_nothing(method: str, tmp_path: Path) -> None:
    request = CertificationRequest("l2", (Fraction(1, 10),), method, attack=None)
    network = random_network(3)
    x = np.random.default_rng(3).random((20, 2, 8, 8)).astype(np.float32)
    whole = answers(network, x, request, tmp_path, shard=20)
    assert whole.differences(answers(network, x, request, tmp_path, shard=20, device="cuda")) == (
        0,
        0,
    )


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", '{"0:a": null}', '{"0:a": [1]}', '{"0:a": ["x", 1]}']
)
def test_damaged_norms_in_the_cache_are_made_anew(tmp_path: Path, damaged: str) -> None:
    network = random_network(0)
    made = CompiledNetwork.compile(network, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(damaged)
    again = CompiledNetwork.compile(network, cache_dir=tmp_path)
    assert [step.norms for step in again.steps] == [step.norms for step in made.steps]
    assert [step.norms for step in CompiledNetwork.compile(network, cache_dir=tmp_path).steps] == [
        step.norms for step in made.steps
    ]
