"""Certificates do not depend on batch, shard, number of threads or device."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.network import Network
from tests.workers.verification.networks import random_network
from tests.workers.verification.test_soundness import evaluate
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.results import AttackSettings, CertificationRequest
from workers.verification.rounding import Rounding

#: Decisions may differ where a bound misses by less than 1e-9, radii by this share.
RADIUS_SHARE = 1e-6


@dataclass(frozen=True)
class Answers:
    """certified, falsified [N, epsilons] bool; radius [N]."""

    certified: NDArray[np.bool_]
    falsified: NDArray[np.bool_]
    radius: NDArray[np.float64]

    def differences(self, other: Answers) -> tuple[int, int]:
        """How many decisions and radii are not the same."""
        decisions = (self.certified != other.certified) | (self.falsified != other.falsified)
        both = np.maximum(self.radius, other.radius)
        with np.errstate(invalid="ignore"):
            far = np.abs(self.radius - other.radius) > RADIUS_SHARE * both
        return int(decisions.sum()), int(far.sum())


def answers(
    network: Network,
    x: NDArray[np.float32],
    request: CertificationRequest,
    cache: Path,
    *,
    shard: int,
    threads: int = 1,
    device: str = "cpu",
    float64_alone: bool = False,
) -> Answers:
    """Of all samples, certified in shards of this size; ``cache`` keeps operator norms.

    ``float64_alone``: in the arithmetic of a GPU.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        if float64_alone:
            exact = [(Rounding.sound(torch.float64), torch.float64)]
            stack.enter_context(mock.patch.object(Problem, "arithmetics", return_value=exact))
        # The deployed answer once for all samples, as a job has it.
        logits = evaluate(network, x)
        labels = logits.argmax(1)
        parts = []
        for start in range(0, len(x), shard):
            rows = slice(start, start + shard)
            parts.append(
                certify_samples(
                    network.to(torch.device(device)),
                    x[rows],
                    labels[rows],
                    np.arange(len(x))[rows],
                    request,
                    deployed=lambda batch: evaluate(network.to(torch.device("cpu")), batch),
                    deployed_logits=logits[rows],
                    device=torch.device(device),
                    cache_dir=cache,
                )
            )
            network.to(torch.device("cpu"))
    return Answers(
        np.concatenate([part.certified for part in parts]),
        np.concatenate([part.falsified for part in parts]),
        np.concatenate([part.radius for part in parts]),
    )


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
