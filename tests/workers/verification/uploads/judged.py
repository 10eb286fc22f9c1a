"""Certify an uploaded file as the service does, with ONNX Runtime on the file itself as judge."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Network
from models.onnx.runtime import OnnxRuntimeModel
from workers.verification.cascade.run import certify_samples
from workers.verification.results import AttackSettings, CertificationRequest, SampleResults

Array = NDArray[Any]


def judged(
    network: Network,
    deployed: OnnxRuntimeModel,
    decide: Callable[[Array], Array],
    x: Array,
    *,
    epsilons: tuple[str, ...],
    norm: str = "linf",
    method: str = "crown",
    points: int = 30,
) -> SampleResults:
    """Certificates of the file's own decisions, tried by the attack and by ``points`` per sample.

    decide: [N, *shape] -> labels [N], by the uploaded file as it was sent. Random points and
    corners of the largest certified ball must be decided alike.
    """
    logits = deployed(x)
    labels = decide(x).astype(np.int64)
    found = certify_samples(
        network,
        x,
        labels,
        np.arange(len(x)),
        CertificationRequest(
            epsilons=tuple(Fraction(epsilon) for epsilon in epsilons),
            norm=norm,
            method=method,
            clip=False,
            radius=False,
            attack=AttackSettings(steps=10, restarts=1, audit=1.0, seed=0),
        ),
        deployed=deployed,
        deployed_logits=logits,
        device=torch.device("cpu"),
    )
    rng = np.random.default_rng(0)
    asked = np.array([float(Fraction(epsilon)) for epsilon in epsilons])
    for row in np.flatnonzero(found.certified.any(1)):
        radius = asked[found.certified[row]].max()
        moves = rng.uniform(-1, 1, (points, *x.shape[1:]))
        moves[::2] = np.sign(moves[::2])
        lengths = np.sqrt((moves**2).sum(axis=tuple(range(1, moves.ndim)), keepdims=True))
        moves = moves / lengths if norm == "l2" else moves
        near = (x[row] + radius * (1 - 1e-6) * moves).astype(np.float32)
        assert (decide(near) == labels[row]).all(), f"sample {row} within {radius}"
    return found
