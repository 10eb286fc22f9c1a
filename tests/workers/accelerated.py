"""Certify and train on an emulated accelerator and on the CPU, and compare: ``certify|train``.

Exit status 1 and the differences, or a traceback, where the device is not left alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.architectures.published import build
from models.network import Network
from tests.extent import ALL, examples, part
from tests.workers.accelerator import DEVICE
from tests.workers.training.runs import LEADING, SHIFTNET, config_of, images
from tests.workers.verification.cascade.answers import answers
from tests.workers.verification.networks import random_network
from workers.training.loop import train
from workers.training.objectives import OBJECTIVES
from workers.training.optimizers import OPTIMIZERS
from workers.verification import clock
from workers.verification.block_sizes import BLOCK_BYTES, GRADIENT_TENSORS, ROW_BYTES
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.results import AttackSettings, CertificationRequest

CPU = torch.device("cpu")


def norm_one() -> Network:
    """Skew chains, folds, a projection pool and a softplus head, on [2, 8, 8], as deployed."""
    sizes = {"input": [2, 8, 8], "blocks": 2, "depth": 2, "width": 18, "hidden": 12, "classes": 4}
    parts = {"pooling": "projection", "head": "crc", "activation": "householder-2", "mean": [0.5]}
    wish = {"name": "lipconvnet", **sizes, **parts}
    return build(wish, generator=torch.Generator().manual_seed(0)).deployed()


def certify() -> int:
    """Every bound and the cascade, l2 and linf, sound and estimated, with and without chance; the
    radii of a network of norm 1."""
    different = 0
    questions: list[tuple[int | None, str]] = [(3, "l2"), (6, "linf"), (None, "l2")]
    questions += [(3, "linf"), (6, "l2")]
    for place, (seed, norm) in enumerate(part(questions, 0, 1, 2)):
        random = np.random.default_rng(seed or 0)
        x = random.random((examples(2, night=4), 2, 8, 8)).astype(np.float32)
        made = partial(random_network, seed) if seed else norm_one
        # By day every method in one of the two norms.
        every = ("auto", *(BOUNDS if ALL else tuple(BOUNDS)[place % 2 :: 2]))
        for method in every if seed else ("lipschitz", "bcp", "crc"):
            request = CertificationRequest(
                norm,
                (Fraction(1, 200), Fraction(1, 20)),
                method,
                soundness="estimate" if seed == 6 else "sound",
                deterministic=method != "local-lip",
                attack=AttackSettings(steps=3) if method == "auto" else None,
                radius=method in ("lipschitz", "ibp", "bcp", "crc"),
            )
            with tempfile.TemporaryDirectory() as cache:
                here, there = (
                    answers(made(), x, request, Path(cache), shard=4, device=device)
                    for device in ("cpu", str(DEVICE))
                )
            if here.differences(there) != (0, 0):
                print(seed, norm, method, here.differences(there))
                different += 1
    return different


def _adam_in_operations(
    network: Network, parameters: Sequence[nn.Parameter], rate: float, decay: float
) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)


def learn() -> int:
    """Every objective, and every layer of norm 1: two epochs, a checkpoint between them."""
    # Adam in one pass, which a processor's parameters get, rounds otherwise than its operations.
    OPTIMIZERS["adam"] = _adam_in_operations
    different = 0
    runs = [
        config_of(method, activation=activation if objective.any_network else "relu")
        for method, objective in OBJECTIVES.items()
        for activation in ("relu-theta", "maxmin")
    ]
    # By day each method with one of the two.
    chosen = part(runs, *(2 * i + i % 2 for i in range(len(OBJECTIVES))))
    muon = config_of("one-lipschitz", architecture=SHIFTNET, optimizer="orthogonal-muon")
    leading = config_of("emma", architecture=LEADING)
    # Sums in the gradients of CAP's walk go in another order there; Muon multiplies in bfloat16 on
    # some processors.
    tolerances = [(run, 1e-6 if run.method == "cap" else 0.0) for run in [*chosen, leading]]
    for run, off in [*tolerances, (muon, 1e-4)]:
        ended = []
        for device in (CPU, DEVICE):
            network, history = train(run, images(40), device=device)
            state = network.to(CPU).state_dict()
            losses = torch.tensor([row["loss"] for row in history], dtype=torch.float64)
            ended.append({**state, "losses": losses})
        here, there = ended
        if not all(torch.allclose(here[name], there[name], rtol=0.0, atol=off) for name in here):
            print(run, here["losses"], there["losses"])
            different += 1
    return different


if __name__ == "__main__":
    for sizes in (
        BLOCK_BYTES,
        clock.PIECE,
        ROW_BYTES,
        GRADIENT_TENSORS,
    ):
        sizes[DEVICE.type] = sizes["cuda"]
    sys.exit(min(1, certify() if sys.argv[1] == "certify" else learn()))
