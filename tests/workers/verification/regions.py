"""Inputs of a region on which bounds are tried."""

from __future__ import annotations

import torch

from workers.verification.attacks.pgd import project
from workers.verification.region import Region


def points_of(region: Region, generator: torch.Generator, count: int) -> list[torch.Tensor]:
    """Float32 points of the region: its centre, corners of the box, and random ones on its edge."""
    found = [region.x]
    for kind in range(count):
        noise = torch.randn(region.x.shape, generator=generator)
        if kind % 2:
            noise = noise.sign()
        if kind % 3 == 0:
            noise = noise * (torch.rand(region.x.shape, generator=generator) < 0.1)
        far = region.x + 100 * noise * region.epsilon.float().max()
        found.append(project(far, region.x, region.epsilon, norm=region.norm, clip=region.clip))
    return found
