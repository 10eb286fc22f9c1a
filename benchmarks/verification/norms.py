"""Proved operator norms of convolutions: seconds, and how far above a lower estimate they are.

    python -m benchmarks.verification.norms

Random weights from a normal distribution, one thread. ``over`` is the bound over what 300 power
iterations reach, less 1: at least the bound's own looseness.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass

import torch

from workers.verification.norms.spectral import ConvGeometry, conv_norm, power_iteration_norm


@dataclass(frozen=True)
class Case:
    """A convolution with square kernels on square inputs."""

    name: str
    out: int
    into: int
    kernel: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


CASES = (
    Case("cifar-6c2f, second", 32, 32, 3, 32, padding=1),
    Case("cifar-6c2f, third", 32, 32, 4, 32, stride=2, padding=1),
    Case("cifar-6c2f, fifth", 64, 64, 3, 16, padding=1),
    Case("liresnet, stem", 512, 3, 5, 32, stride=2, padding=2),
    Case("liresnet, body", 512, 512, 3, 16, padding=1),
    Case("128 channels on 56", 128, 128, 3, 56, padding=1),
    Case("depthwise 7x7", 256, 256, 7, 32, padding=3, groups=256),
)


def measure(case: Case) -> dict[str, object]:
    """One row."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.out, case.into // case.groups, case.kernel, case.kernel)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    geometry = ConvGeometry(
        (case.size, case.size),
        stride=(case.stride,) * 2,
        padding=(case.padding,) * 4,
        groups=case.groups,
    )
    began = time.perf_counter()
    bound = conv_norm(weight, geometry)
    seconds = time.perf_counter() - began
    lower = power_iteration_norm(
        lambda x: geometry.apply(x, weight), (case.into, case.size, case.size), steps=300
    )
    return {**asdict(case), "seconds": round(seconds, 2), "over": bound / lower - 1.0}


def main() -> None:
    """Print a row per case."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        print(json.dumps(measure(case)), flush=True)


if __name__ == "__main__":
    main()
