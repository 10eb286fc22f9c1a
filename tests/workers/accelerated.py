"""Certify and train on an emulated accelerator and on the CPU, and compare: ``certify|train``.

Exit status 1 and the differences, or a traceback, where the device is not left alone.
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from tests.extent import examples, part
from tests.workers.accelerator import DEVICE
from tests.workers.training.runs import config_of, images
from tests.workers.verification.cascade.answers import answers
from tests.workers.verification.networks import random_network
from workers.training.loop import train
from workers.training.objectives import OBJECTIVES
from workers.verification import clock
from workers.verification.block_sizes import BLOCK_BYTES, GRADIENT_TENSORS, ROW_BYTES
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.results import AttackSettings, CertificationRequest

CPU = torch.device("cpu")


def certify() -> int:
    """Every bound and the cascade, l2 and linf, sound and estimated, with and without chance."""
    different = 0
    for seed, norm in part([(3, "l2"), (6, "linf"), (3, "linf"), (6, "l2")], 0, 1):
        x = np.random.default_rng(seed).random((examples(2, night=4), 2, 8, 8)).astype(np.float32)
        for method in ("auto", *BOUNDS):
            request = CertificationRequest(
                norm,
                (Fraction(1, 200), Fraction(1, 20)),
                method,
                soundness="sound" if seed == 3 else "estimate",
                deterministic=method != "local-lip",
                attack=AttackSettings(steps=3) if method == "auto" else None,
                radius=method in ("lipschitz", "ibp", "bcp"),
            )
            with tempfile.TemporaryDirectory() as cache:
                here, there = (
                    answers(random_network(seed), x, request, Path(cache), shard=4, device=device)
                    for device in ("cpu", str(DEVICE))
                )
            if here.differences(there) != (0, 0):
                print(seed, norm, method, here.differences(there))
                different += 1
    return different


def learn() -> int:
    """Every objective: two epochs, a checkpoint between them."""
    different = 0
    runs = [
        (method, activation if objective.any_network else "relu")
        for method, objective in OBJECTIVES.items()
        for activation in ("relu-theta", "maxmin")
    ]
    # By day each method with one of the two.
    for method, activation in part(runs, *(2 * i + i % 2 for i in range(len(OBJECTIVES)))):
        run = config_of(method, activation=activation, epochs=2)
        ended = []
        for device in (CPU, DEVICE):
            network, history = train(run, images(40), device=device)
            state = network.to(CPU).state_dict()
            ended.append((state, [row["loss"] for row in history]))
        (here, losses), (there, other_losses) = ended
        # Sums in the gradients of CAP's walk go in another order there.
        off = 1e-6 if method == "cap" else 0.0
        same = all(
            torch.allclose(tensor, there[name], rtol=0.0, atol=off) for name, tensor in here.items()
        )
        if not same or losses != other_losses:
            print(method, activation, losses, other_losses)
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
