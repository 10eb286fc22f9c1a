"""Bringing the samples of a data set into the form of a network's input: layout, dtype, range."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.jobs.datasets.arrays import DataError
from workers.verification.input_range import PIXELS, Clip, in_range, range_of

__all__ = ["as_network_input", "to_pixels", "with_channels"]

#: Sizes an axis of colour channels may have.
CHANNELS = {1, 3, 4}


def with_channels(x: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Images of files, [N, H, W] or [N, H, W, 3], with as many channels as ``shape`` has.

    Exact, as the public loaders do it: grey becomes three equal channels, three channels that are
    equal in every pixel become one. Any other images are left as they are.
    """
    height, width = x.shape[1:3]
    if x.ndim == 3 and shape in ((3, height, width), (height, width, 3)):
        return np.repeat(x[..., None], 3, axis=3)
    if x.ndim == 4 and shape in ((1, height, width), (height, width, 1), (height, width)):
        return x[..., :1] if bool((x == x[..., :1]).all()) else x
    return x


def as_network_input(x: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The samples [N, ...] in the network's input shape [N, *shape].

    Same shape: as it is. Else NHWC <-> NCHW. Else the same number of elements, flattened in NCHW
    order. Raises DataError ``ambiguous_layout`` where two orders are possible (also where the sizes
    are the network's in another order: turned images), ``shape_mismatch`` where none is.
    """
    sample = x.shape[1:]
    if sample == shape:
        return x
    if len(sample) == 3 and len(shape) == 3:
        height, width, channels = sample
        if (channels, height, width) == shape:
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        channels, height, width = sample
        if (height, width, channels) == shape:
            return np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if len(sample) == 2 and shape in ((1, *sample), (*sample, 1)):
        return x.reshape(len(x), *shape)
    if _count(sample) != _count(shape):
        raise DataError(
            "shape_mismatch",
            f"samples of shape {list(sample)} do not fit the network's input {list(shape)}",
            hint="the data set must hold as many values per sample as the network takes",
        )
    if _bare(sample) != _bare(shape) and sorted(_bare(sample)) == sorted(_bare(shape)):
        raise DataError(
            "ambiguous_layout",
            f"samples of shape {list(sample)} have the sizes of the network's input {list(shape)} "
            "in another order: are they turned?",
            hint="store the samples in the network's own input shape",
        )
    flat = _channels_first(x, "the data set's samples").reshape(len(x), -1)
    return _from_channels_first(flat, shape)


def _channels_first(x: NDArray[Any], what: str) -> NDArray[Any]:
    """The same samples in NCHW order."""
    if _channels_last(x.shape[1:], what):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x


def _from_channels_first(flat: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if _channels_last(shape, "the network's input"):
        height, width, channels = shape
        images = flat.reshape(len(flat), channels, height, width)
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return flat.reshape(len(flat), *shape)


def _channels_last(sample: tuple[int, ...], what: str) -> bool:
    """Whether the last of three axes is the channels', in a way that matters for the order."""
    if len(sample) != 3 or sample[2] == 1 or sample[0] * sample[1] == 1:
        return False
    first, last = sample[0] in CHANNELS, sample[2] in CHANNELS
    if first == last:
        raise DataError(
            "ambiguous_layout",
            f"{what} of shape {list(sample)} can be read as NCHW and as NHWC",
            hint="store the samples in the network's own input shape",
        )
    return last


def _bare(sample: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sample if size != 1)


def _count(sample: tuple[int, ...]) -> int:
    return int(np.prod(sample, dtype=object))


def to_pixels(x: NDArray[Any], *, clip: Clip, numbers: bool = False) -> NDArray[np.float32]:
    """float32 inputs: uint8 k becomes float32(k/255), floats are rounded to float32.

    k/255 rounded once equals float32(k)/float32(255) for all 256 values (a test checks each), so it
    does not matter how the user's own pipeline divides. numbers: k itself in place of k/255.
    Raises DataError where values are not in the range ``clip``.
    """
    limits = range_of(clip)
    if limits is not None and limits.whole and x.dtype != np.uint8:
        raise DataError(
            "unsupported_dtype",
            f"the model takes bytes, the samples are {x.dtype}",
            hint="store them as uint8, 0 to 255: x.astype(numpy.uint8)",
        )
    if x.dtype == np.uint8:
        pixels = x.astype(np.float32) if numbers else (x / 255.0).astype(np.float32)
        return _valid(pixels, clip)
    if x.dtype.kind != "f":
        raise DataError(
            "unsupported_dtype",
            f"samples of type {x.dtype} are not read",
            hint="uint8 in [0, 255] or floats in [0, 1]",
        )
    if not bool(np.isfinite(x).all()):
        raise _not_finite(x, "holds NaN or an infinity")
    with np.errstate(over="ignore"):
        pixels = x.astype(np.float32)
    if not bool(np.isfinite(pixels).all()):
        raise _not_finite(pixels, "is too large for float32")
    return _valid(pixels, clip)


def _not_finite(x: NDArray[Any], what: str) -> DataError:
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return DataError(
        "non_finite_samples",
        f"sample {int(bad[0])} of those asked for {what}{more}",
        hint="leave such samples out, or fill missing values as in training: "
        "keep = numpy.isfinite(x).reshape(len(x), -1).all(1); x, y = x[keep], y[keep]",
    )


def _pixels_in(x: NDArray[np.float32]) -> str:
    """What to do with pixels in another range than [0, 1], by the usual one that x lies in."""
    low, high = float(x.min()), float(x.max())
    if low >= 0.0 and 2.0 < high <= 255.0:
        whole = bool((x == np.floor(x)).all())
        store = "store them as bytes, x.astype(numpy.uint8), or divide" if whole else "divide"
        return f"pixels from 0 to 255: {store} them by 255, and keep epsilons in [0, 1]; "
    if -1.0 <= low < 0.0 and high <= 1.0:
        return (
            "pixels from -1 to 1: store (x + 1) / 2, and send "
            '"normalization": {"mean": [0.5], "std": [0.5]}; '
        )
    if low < 0.0:
        return (
            "normalized pixels: store them as they were before, in [0, 1], and send mean and std "
            'as "normalization"; '
        )
    return 'store pixels in [0, 1], give mean and std as "normalization"; '


def _valid(x: NDArray[np.float32], clip: Clip) -> NDArray[np.float32]:
    """The same inputs. Raises DataError where they are not in the range."""
    limits = range_of(clip)
    if limits is None or in_range(x, clip):
        return x
    if limits == PIXELS:
        raise DataError(
            "sample_out_of_range",
            f"values from {float(x.min()):g} to {float(x.max()):g} are not all in [0, 1]",
            hint=_pixels_in(x) + 'of other data say what is valid, "input_range": [low, high], or '
            "null for any number",
        )
    low, high = (end.numpy() for end in limits.ends(torch.from_numpy(x)))
    beyond = np.argwhere((x < low) | (x > high))[0]
    place = tuple(int(axis) for axis in beyond[1:])
    least, most = (float(np.broadcast_to(end, x.shape[1:])[place]) for end in (low, high))
    raise DataError(
        "sample_out_of_range",
        f"the value {float(x[tuple(beyond)]):g} at {list(place)} of sample {int(beyond[0])} is not "
        f"in the input_range from {least:g} to {most:g}",
        hint='correct "input_range", or write "input_range": null where any number is valid',
    )
