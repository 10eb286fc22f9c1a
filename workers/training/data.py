"""Training data on the device: batches, augmentation and validation split, all repeatable.

No generator state is kept: the batch of a step follows from the seed and the step's number, so a
resumed run continues exactly like one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.network import Network
from workers.training.config import TrainingError

__all__ = ["AUGMENTATIONS", "TrainingData", "check_data", "split"]

#: Multipliers that spread seeds, epochs and steps over the generators' seeds.
_SPREAD = 0x9E3779B97F4A7C15


def seeded(seed: int, kind: int, number: int) -> torch.Generator:
    """A generator for one purpose (``kind``) at one point of the run."""
    mixed = (seed * _SPREAD + kind * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB) % (2**63)
    return torch.Generator().manual_seed(mixed)


@dataclass(frozen=True)
class TrainingData:
    """x uint8 or float in [0, 1], [N, *shape]; y int64 [N]; both where they are computed on."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> TrainingData:
        """The same data on a device."""
        return TrainingData(self.x.to(device), self.y.to(device))

    def steps(self, batch_size: int) -> int:
        """Whole batches of an epoch, at least one."""
        return max(1, len(self.x) // batch_size)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The order of the samples in an epoch, on their device."""
        return torch.randperm(len(self.x), generator=seeded(seed, 1, epoch)).to(self.x.device)

    def batch(self, rows: Tensor, augmentation: str, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """x float32 [b, *shape] in [0, 1], augmented, and y [b]."""
        x = pixels(self.x[rows])
        return AUGMENTATIONS[augmentation](x, seeded(seed, 2, step)), self.y[rows]


def check_data(network: Network, data: TrainingData) -> None:
    """Check that the data fit the network. Raises TrainingError."""
    if tuple(data.x.shape[1:]) != network.input_shape:
        raise TrainingError(
            "shape_mismatch",
            f"the samples are {list(data.x.shape[1:])}, the architecture takes "
            f"{list(network.input_shape)}",
            hint="an architecture made for this data set, or another data set",
            field="architecture",
        )
    if len(data.y) and not 0 <= int(data.y.min()) <= int(data.y.max()) < network.classes:
        raise TrainingError(
            "label_out_of_range",
            f"labels go from {int(data.y.min())} to {int(data.y.max())}, the architecture has "
            f"classes 0 to {network.classes - 1}",
            hint='"classes" of a family, or the last layer of a layer list',
        )


def pixels(x: Tensor) -> Tensor:
    """Floats in [0, 1]: k / 255 for bytes, rounded to float32 exactly as in a certification."""
    return x.to(torch.float32) / 255.0 if x.dtype == torch.uint8 else x.to(torch.float32)


def split(data: TrainingData, validation: int, seed: int) -> tuple[TrainingData, TrainingData]:
    """(training, validation): ``validation`` random samples are kept from training.

    Raises TrainingError where none would be left.
    """
    if validation >= len(data.x):
        raise TrainingError(
            "too_few_samples",
            f"{validation} validation samples of {len(data.x)} leave none to train on",
            hint='give "validation_samples" in the recipe',
            field="recipe.validation_samples",
        )
    if validation == 0:
        return data, TrainingData(data.x[:0], data.y[:0])
    order = torch.randperm(len(data.x), generator=seeded(seed, 0, 0)).to(data.x.device)
    kept, held = order[validation:].sort().values, order[:validation].sort().values
    return TrainingData(data.x[kept], data.y[kept]), TrainingData(data.x[held], data.y[held])


def _none(x: Tensor, generator: torch.Generator) -> Tensor:
    return x


def _shifted(
    x: Tensor, limit: int, generator: torch.Generator, outside: str = "constant"
) -> Tensor:
    """Every image moved by up to ``limit`` pixels each way; zeros, or its mirror image, outside."""
    if x.dim() != 4:
        raise TrainingError(
            "unsupported_augmentation", f"images [c, h, w] can be moved, not {tuple(x.shape[1:])}"
        )
    count, _, height, width = x.shape
    drawn = torch.randint(0, 2 * limit + 1, (2, count, 1, 1), generator=generator)
    offsets = drawn.to(x.device, non_blocking=True)
    rows = offsets[0] + torch.arange(height, device=x.device).reshape(1, -1, 1)
    columns = offsets[1] + torch.arange(width, device=x.device).reshape(1, 1, -1)
    place = torch.arange(count, device=x.device).reshape(-1, 1, 1)
    moved = F.pad(x, (limit, limit, limit, limit), mode=outside)[place, :, rows, columns]
    return moved.permute(0, 3, 1, 2).contiguous()


def _shift(x: Tensor, generator: torch.Generator) -> Tensor:
    return _shifted(x, 2, generator)


def _crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    return _flipped(_shifted(x, 4, generator), generator)


def _reflect_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    return _flipped(_shifted(x, 3, generator, "reflect"), generator)


def _flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every other image, by chance, mirrored left to right."""
    flip = torch.rand(len(x), generator=generator).to(x.device, non_blocking=True) < 0.5
    return torch.where(flip.reshape(-1, 1, 1, 1), x.flip(3), x)


#: Augmentations of a batch: a new one is one function and one row.
AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": _none,
    "crop-flip": _crop_flip,
    "reflect-flip": _reflect_flip,
    "shift": _shift,
}
