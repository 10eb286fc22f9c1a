"""Whether another normalisation fits the network far better than the one it was given.

With a wrong mean or standard deviation (in units of 0 to 255, another data set's, none at all,
channels in the order blue, green, red, or pixel by pixel), or with turned or inverted images, the
network is still valid and the certificate true, but of the wrong network. So the common conventions
are tried on a few labelled samples, and one that is far more accurate is named in a warning. It
costs at most about 2,000 forward passes, and none where the accuracy is high already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import ModelError
from models.network import per_channel
from workers.verification.answers import answers

__all__ = ["Convention", "conventions", "is_table", "normalization_doubt"]

#: Samples of the first round over all conventions, and of the second over the remaining ones.
FIRST, MAX_SAMPLES = 50, 200
#: An accuracy that no other convention could improve by much.
HIGH = 0.95
#: Smallest difference of accuracies that gives a warning, if it is significant.
LEAST_GAIN = 0.05
#: Gains must exceed losses by so many standard deviations of a fair coin.
SIGMAS = 3.0

#: The share of one byte in 255, a little rounded up.
_SHARE = 1.000001 / 255
#: Values that a flattened image has at least: fewer are features of a table.
_LEAST_IMAGE = 64

Logits = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Convention:
    """What a network may expect: (x - mean) / std per channel, channels turned round or not.

    interleaved: flat inputs hold the colours of one pixel after another, not colour by colour.
    transposed: rows and columns exchanged. inverted: 1 - x in the place of x. scaler: mean and std
    are those of the samples themselves, feature by feature.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reverse: bool = False
    interleaved: bool = False
    transposed: bool = False
    inverted: bool = False
    scaler: bool = False


_GREY = (
    Convention("MNIST", (0.1307,), (0.3081,)),
    Convention("Fashion-MNIST", (0.2860,), (0.3530,)),
)
_COLOUR = (
    Convention("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Convention("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    Convention("CIFAR-100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
)
_ANY = (
    Convention("no normalisation, pixels in [0, 1]", (0.0,), (1.0,)),
    Convention("pixels in [-1, 1]", (0.5,), (0.5,)),
    Convention("pixels in [0, 255]", (0.0,), (1 / 255,)),
)
_BYTE = (1 / 255,) * 3
_REVERSED = (
    Convention("[0, 1], blue first", (0.0,), (1.0,), reverse=True),
    Convention("[0, 255], blue first", (0.0,), (1 / 255,), reverse=True),
    Convention(
        "Caffe: [0, 255] less the mean, blue first",
        (103.939 / 255, 116.779 / 255, 123.68 / 255),
        _BYTE,
        reverse=True,
    ),
)


def conventions(
    shape: Sequence[int],
    given: Mapping[str, Sequence[float]] | None,
    x: NDArray[np.float32] | None = None,
) -> Iterator[Convention]:
    """What is tried for inputs of ``shape`` that are normalised as ``given``.

    x [N, *shape]: of features of a table, the samples whose own mean and std are tried.
    """
    colour = _channels(shape) == 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if given is not None:
        mean, std = (tuple(float(v) for v in given[key]) for key in ("mean", "std"))
        smaller = tuple(v / 255 for v in mean), tuple(v / 255 for v in std)
        if max(mean) > 1.0 >= max(std):
            yield Convention("the given mean divided by 255", smaller[0], std)
        if max(std) > 1.0 >= max(mean):
            yield Convention("the given std divided by 255", mean, smaller[1])
        if max(*mean, *std) > 1.0:
            yield Convention("the given values divided by 255", *smaller)
        larger = tuple(v * 255 for v in mean), tuple(v * 255 for v in std)
        if max(mean) <= _SHARE < max(std) and min(mean) > 0.0:
            yield Convention("the given mean times 255", larger[0], std)
        if max(std) <= _SHARE < max(mean):
            yield Convention("the given std times 255", mean, larger[1])
        if max(*mean, *std) <= _SHARE:
            yield Convention("the given values times 255", *larger)
        if min(mean) > 0.0 and len(mean) == len(std):
            yield Convention("the given mean and std exchanged", std, mean)
    if is_table(shape):
        yield from _of_features(given, x)
        return
    if colour and len(shape) == 1:
        yield Convention("[N, height, width, channels] flattened", mean, std, interleaved=True)
    if given is not None:
        if colour:
            yield Convention("the given values, blue first", mean, std, reverse=True)
    elif colour:
        yield _REVERSED[0]
    yield from _ANY
    yield from _COLOUR if colour else _GREY
    if colour:
        yield from _REVERSED[0 if given is not None else 1 :]
    if _square(shape) is not None:
        yield Convention("rows and columns exchanged", mean, std, transposed=True)
    yield Convention("1 - x in the place of x", mean, std, inverted=True)


def is_table(shape: Sequence[int]) -> bool:
    """Whether inputs of this shape are features of a table, not an image, flattened or not."""
    return len(shape) == 1 and (shape[0] < _LEAST_IMAGE or _square(shape) is None)


def _of_features(
    given: Mapping[str, Sequence[float]] | None, x: NDArray[np.float32] | None
) -> Iterator[Convention]:
    """No normalization, that of a scaler fitted on the samples x [N, features], and of shares."""
    if given is not None:
        yield Convention("no normalization, the features as they are", (0.0,), (1.0,))
    if x is None:
        return
    values = x.astype(np.float64)
    low, spread = values.min(0), values.max(0) - values.min(0)
    for name, mean, std in (
        ("each feature less its mean, divided by its standard deviation", *_moments(values)),
        ("each feature from 0 at its least value to 1 at its largest", low, spread),
    ):
        scale = np.where(std > 0.0, std, 1.0)
        yield Convention(name, tuple(mean.tolist()), tuple(scale.tolist()), scaler=True)


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return values.mean(0), values.std(0)


def normalization_doubt(
    logits: Logits,
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    found: NDArray[np.float32],
    given: Mapping[str, Sequence[float]] | None,
    scale: float = 1.0,
) -> str | None:
    """A sentence that names a far better normalisation, None where there is none.

    logits: the deployed network on pixels, ``given`` normalisation included; x [N, *shape] pixels
    from 0 to ``scale``; labels [N]; found [N, classes]: its logits at x. Samples are spread over
    the data, which may be sorted by class. Far better: at least 5 points of accuracy, significantly
    (3 standard deviations of a sign test), and better than naming one class always.
    """
    rows = _spread(len(x), MAX_SAMPLES)
    right = _right(found[rows], labels[rows])
    _, counts = np.unique(labels[rows], return_counts=True)
    if right.mean() >= HIGH or len(counts) < 2:
        return None
    some = _spread(len(rows), FIRST)
    best: tuple[int, Convention, NDArray[np.bool_]] | None = None
    shares = given and {key: [v / scale for v in values] for key, values in given.items()}
    for convention in conventions(x.shape[1:], shares, x):
        tried = _answered(logits, x[rows[some]], labels[rows[some]], convention, given, scale)
        if tried is None or int(tried.sum()) <= int(right[some].sum()):
            continue
        whole = tried
        if len(some) < len(rows):
            again = _answered(logits, x[rows], labels[rows], convention, given, scale)
            assert again is not None
            whole = again
        if best is None or int(whole.sum()) > best[0]:
            best = int(whole.sum()), convention, whole
    if best is None:
        return None
    count, convention, whole = best
    gains, losses = int((whole & ~right).sum()), int((right & ~whole).sum())
    better = gains - losses
    if (
        better < LEAST_GAIN * len(rows)
        or better <= SIGMAS * math.sqrt(gains + losses)
        or count <= (1 + LEAST_GAIN) * counts.max()
    ):
        return None
    return _sentence(float(right.mean()), count / len(rows), len(rows), convention, given, scale)


def _sentence(
    now: float,
    then: float,
    samples: int,
    convention: Convention,
    given: Mapping[str, Sequence[float]] | None,
    scale: float,
) -> str:
    was = "the given normalization" if given is not None else "no normalization in the spec"
    if convention.transposed or convention.inverted:
        return (
            f"The samples look {'turned' if convention.transposed else 'inverted'}: {now:.1%} of "
            f"{samples} are classified correctly; with {convention.name} {then:.1%} are. What is "
            "certified is the network on the samples as they were sent: store them as they were in "
            "training."
        )
    if convention.scaler:
        return (
            f"The scaling of the features looks wrong: with {was}, {now:.1%} of {samples} samples "
            f"are classified correctly; with {convention.name} (in these samples) {then:.1%} are. "
            "What is certified is the network as it was sent: was a scaler left out? Give the mean "
            'and the std that it was fitted to in training as "normalization" (scikit-learn: '
            "StandardScaler's mean_ and scale_), or export it with the model."
        )
    mean, std = (
        _rounded(v * scale for v in values) for values in (convention.mean, convention.std)
    )
    values = f'"mean": {mean}, "std": {std}'
    turned = ""
    if convention.reverse:
        turned = " and the channels of the data in the order blue, green, red"
    if convention.interleaved:
        turned = " and the red, green and blue of each pixel side by side"
    return (
        f"The normalization looks wrong: with {was}, {now:.1%} of {samples} samples are classified "
        f"correctly; with {{{values}}}{turned} ({convention.name}) {then:.1%} are. What is "
        "certified is the network as it was sent: check how its inputs were normalized in training."
    )


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _right(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return answers(torch.from_numpy(np.asarray(logits))).numpy() == labels


def _answered(
    logits: Logits,
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    convention: Convention,
    given: Mapping[str, Sequence[float]] | None,
    scale: float,
) -> NDArray[np.bool_] | None:
    """Which samples are classified correctly under a convention; None where it does not fit.

    The network's own (p - mean) / std is undone by the pixels p that it is shown.
    """
    shape = x.shape[1:]
    try:
        mean, std = (per_channel(v, shape).numpy() for v in (convention.mean, convention.std))
        own: Any = None
        if given is not None:
            own = [per_channel(given[key], shape).numpy() for key in ("mean", "std")]
    except ModelError:
        return None
    seen = (_reversed(x) if convention.reverse else x).astype(np.float64) / scale
    if convention.transposed:
        seen = _transposed(seen)
    shown = ((1.0 - seen if convention.inverted else seen) - mean) / std
    if convention.interleaved:
        shown = shown.reshape(len(x), 3, -1).swapaxes(1, 2).reshape(shown.shape)
    if own is not None:
        shown = shown * own[1] + own[0]
    with np.errstate(over="ignore"):
        pixels = shown.astype(np.float32)
    return _right(logits(pixels), labels) if bool(np.isfinite(pixels).all()) else None


def _channels(shape: Sequence[int]) -> int | None:
    """3 for colour images, flattened ones included; 1 for grey ones; None: no image."""
    if len(shape) == 3:
        return 3 if (shape[0] == 3) != (shape[2] == 3) else 1
    if len(shape) == 1 and shape[0] % 3 == 0 and shape[0] >= 3 * 64:
        return 3 if math.isqrt(shape[0] // 3) ** 2 == shape[0] // 3 else 1
    return 1


def _square(shape: Sequence[int]) -> tuple[int, ...] | None:
    """The axes of an image of as many rows as columns, (channels, rows, columns) or (rows, columns,
    channels), flattened or not; None for others."""
    if len(shape) == 3:
        return tuple(shape) if shape[1] == shape[2] or shape[0] == shape[1] else None
    if len(shape) != 1:
        return None
    channels = _channels(shape) or 1
    side = math.isqrt(shape[0] // channels)
    return (channels, side, side) if channels * side * side == shape[0] else None


def _transposed(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shape = _square(x.shape[1:])
    if shape is None:
        return x
    images = x.reshape(len(x), *shape)
    axes = (2, 3) if shape[1] == shape[2] else (1, 2)
    return images.swapaxes(*axes).reshape(x.shape)


def _reversed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    if x.ndim == 2:
        return x.reshape(len(x), 3, -1)[:, ::-1].reshape(x.shape)
    return x[:, ::-1] if x.shape[1] == 3 else x[..., ::-1]
