"""Pictures of the counterexamples: each as it is, and how it differs from its sample."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract.storage.pictures import is_picture, pack_pictures
from workers.jobs.datasets.thumbnails import difference_png, png, shown
from workers.verification.input_range import Clip
from workers.verification.results import SampleResults

__all__ = ["counterexample_pictures"]

#: Samples are read again for the differences only where that is little.
_MOST_READ = 512 * 1024 * 1024


def counterexample_pictures(
    results: SampleResults, epsilons: Sequence[Fraction], data: Path, clip: Clip
) -> bytes:
    """A file of pictures: number 2 i shows the counterexample of sample i of the data set that is
    nearest to it, number 2 i + 1 how it differs. ``data``: the prepared samples;
    ``clip``: the range of valid inputs.
    """
    nearest: dict[int, int] = {}
    for key in results.counterexamples:
        row, place = (int(part) for part in key.split(","))
        if row not in nearest or epsilons[place] < epsilons[nearest[row]]:
            nearest[row] = place
    found = {
        row: shown(results.counterexamples[f"{row},{place}"][None], clip)[0]
        for row, place in sorted(nearest.items())
    }
    if not found or not is_picture(next(iter(found.values())).shape):
        return pack_pictures(())
    samples = _samples(data, found)
    return pack_pictures(
        _made(found, results.index, None if samples is None else shown(samples, clip))
    )


def _made(
    found: Mapping[int, NDArray[np.float32]],
    index: NDArray[np.int64],
    samples: NDArray[np.float32] | None,
) -> Iterator[tuple[int, bytes]]:
    for row, x in found.items():
        number = 2 * int(index[row])
        yield number, png(x)
        if samples is not None:
            yield number + 1, difference_png(samples[row], x)


def _samples(data: Path, found: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32] | None:
    size = math.prod(next(iter(found.values())).shape) * 4 * (max(found) + 1)
    if size > _MOST_READ:
        return None
    with zipfile.ZipFile(data) as archive:
        if archive.getinfo("x.npy").file_size > _MOST_READ:
            return None
    with np.load(data, allow_pickle=False) as arrays:
        samples: NDArray[np.float32] = arrays["x"]
    return samples
