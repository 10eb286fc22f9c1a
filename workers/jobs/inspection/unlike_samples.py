"""Whether a normalisation cannot be that of the samples: mean and std exchanged, or other units.

This needs no labels: a mean and std that were taken of such images lie near the samples' own. So it
is told also where nobody knows the accuracy, where it is high all the same, or samples are few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.network import per_channel

__all__ = ["unlike_the_samples"]

#: Samples that are looked at, spread over the data.
MOST = 200
BYTE = 255.0

Pair = tuple[float, float]
Given = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class _Mistake:
    """Another mean and std that may have been meant: the given ones, exchanged or times a factor.

    far: it is looked at where the given ones are this many standard deviations of the samples away
    from the samples' own, and this far: least. share: it fits where it is at most this share as far
    away.
    """

    what: str
    factors: Pair = (1.0, 1.0)
    exchanged: bool = False
    far: float = 0.5
    least: float = 0.0
    share: float = 1 / 3

    def of(self, mean: float, std: float) -> Pair:
        if self.exchanged:
            return std, mean
        return mean * self.factors[0], std * self.factors[1]


def unlike_the_samples(
    x: NDArray[np.float32], given: Given | None, *, features: bool
) -> str | None:
    """A sentence where the given mean and std are the samples' exchanged, or in bytes where the
    samples are in [0, 1], or the other way round; None else.

    x [N, *shape]: all samples as the network gets them, labelled or not. features: they are those
    of a table, whose units are anybody's.
    """
    if given is None or not len(x):
        return None
    rows = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST)).round().astype(np.int64))
    values = x[rows].astype(np.float64)
    groups = _groups(values, given)
    if groups is None:
        return None
    spread = sum(own[1] for _, own in groups)
    off = _off(groups, _Mistake("as it is"))
    found = [
        (_off(groups, mistake), mistake.what, mistake)
        for mistake in (*_exchanged(given), *(() if features else _units(given, values.max())))
        if off >= max(mistake.far * spread, mistake.least * len(groups))
        and _off(groups, mistake) <= mistake.share * off
    ]
    return _sentence(min(found)[2], given, values) if found else None


def _groups(values: NDArray[np.float64], given: Given) -> list[tuple[Pair, Pair]] | None:
    """(mean, std) given and the samples' own, for all that have the same given ones. None where
    the given ones do not fit samples of this shape."""
    shape = values.shape[1:]
    try:
        mean, std = (
            np.broadcast_to(per_channel(given[key], shape).numpy(), shape).reshape(-1)
            for key in ("mean", "std")
        )
    except ModelError:
        return None
    pairs, place = np.unique(np.stack([mean, std]), axis=1, return_inverse=True)
    found = []
    for group in range(pairs.shape[1]):
        those = values.reshape(len(values), -1)[:, place.reshape(-1) == group]
        first, second = pairs[:, group].tolist()
        found.append(((first, second), (float(those.mean()), float(those.std()))))
    return found


def _off(groups: list[tuple[Pair, Pair]], mistake: _Mistake) -> float:
    """How far a mean and std are from the samples' own, summed over the groups."""
    return sum(
        abs(pair[0] - own[0]) + abs(pair[1] - own[1])
        for pair, own in ((mistake.of(*given), own) for given, own in groups)
    )


def _exchanged(given: Given) -> Iterator[_Mistake]:
    if min(given["mean"]) > 0.0:
        yield _Mistake("exchanged", exchanged=True)


def _units(given: Given, largest: float) -> Iterator[_Mistake]:
    """Units that may have been mixed up. Nothing usual is 20 standard deviations away from samples
    in [0, 1]; of samples in [0, 255] a mean and std of their shares are but three."""
    mean, std = (max(given[key]) for key in ("mean", "std"))
    if max(mean, std) > 1.0:
        what, factors = _changed(mean > 1.0, std > 1.0, 1.0 / BYTE)
        yield _Mistake(f"{what} divided by 255", factors, far=20.0, least=4.0, share=1 / 20)
    if largest > 1.0 and min(given["mean"]) > 0.0 and min(mean, std) <= 1.0:
        what, factors = _changed(mean <= 1.0, std <= 1.0, BYTE)
        yield _Mistake(f"{what} times 255", factors, share=0.4)


def _changed(mean: bool, std: bool, factor: float) -> tuple[str, Pair]:
    what = "the given values" if mean and std else "the given mean" if mean else "the given std"
    return what, (factor if mean else 1.0, factor if std else 1.0)


def _sentence(mistake: _Mistake, given: Given, values: NDArray[np.float64]) -> str:
    if mistake.exchanged:
        return (
            "The normalization looks exchanged: the given mean is the data's standard deviation "
            "and the given std their mean. What is certified is the network as it was sent: check "
            "whether mean and std were mixed up."
        )
    mean, std = (
        [float(f"{value * factor:.4g}") for value in given[key]]
        for key, factor in zip(("mean", "std"), mistake.factors, strict=True)
    )
    return (
        "The normalization looks as if it were in other units than the samples, which are from "
        f'{values.min():.4g} to {values.max():.4g}: {{"mean": {mean}, "std": {std}}} '
        f"({mistake.what}) is near their own. What is certified is the network as it was sent: "
        "check how its inputs were normalized in training."
    )
