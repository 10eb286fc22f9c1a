"""Certify a network as the service does, with the network itself as the deployed one."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch

from models.network import Network
from workers.verification.cascade.run import certify_samples
from workers.verification.results import CertificationRequest, SampleResults
from workers.verification.rounding import Rounding

CPU = torch.device("cpu")


def evaluate(network: Network, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The logits of a batch, in float32."""
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


def certify(
    network: Network,
    x: np.ndarray[Any, Any],
    epsilons: tuple[Any, ...] = ("1/10",),
    labels: np.ndarray[Any, Any] | None = None,
    **options: Any,
) -> SampleResults:
    """The cascade with the network itself as the deployed one."""
    options.setdefault("norm", "l2")
    memory = options.pop("memory", None)
    logits = evaluate(network, x)
    request = CertificationRequest(epsilons=tuple(map(Fraction, epsilons)), **options)
    return certify_samples(
        network,
        x,
        logits.argmax(1).astype(np.int64) if labels is None else labels,
        np.arange(len(x)),
        request,
        deployed=lambda batch: evaluate(network, batch),
        deployed_logits=logits,
        device=CPU,
        memory=memory,
    )


def images(seed: int, count: int = 6) -> np.ndarray[Any, Any]:
    """Inputs of ``random_network``."""
    return np.random.default_rng(seed).random((count, 2, 8, 8)).astype(np.float32)


def arithmetic(dtype: torch.dtype) -> tuple[Rounding, torch.dtype]:
    """The last two arguments of a bound: sound in this arithmetic."""
    return Rounding.sound(dtype), dtype
