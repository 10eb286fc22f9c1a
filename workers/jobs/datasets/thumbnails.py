"""Thumbnails of the samples for people, made here so that the API decodes no upload."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from service.contract.storage.pictures import is_picture, pack_pictures
from workers.verification.input_range import Clip, InputRange

__all__ = ["difference_png", "png", "shown", "thumbnails"]

#: Longest side of a thumbnail.
_SIDE = 64


def shown(x: NDArray[np.float32], clip: Clip) -> NDArray[np.float32]:
    """Samples [N, *shape] in [0, 1]: as they are, or as shares of the range of valid inputs."""
    if not isinstance(clip, InputRange) or not is_picture(x.shape[1:]):
        return x
    low, high = (end.numpy() for end in clip.ends(torch.from_numpy(x)))
    return ((x.astype(np.float64) - low) / (high - low.astype(np.float64))).astype(np.float32)


def png(x: NDArray[np.float32]) -> bytes:
    """A sample [C, H, W] or [H, W, C] (C: 1 or 3) with values in [0, 1] as a PNG of at most
    64 x 64; other values are clipped."""
    if x.shape[0] not in (1, 3):
        x = x.transpose(2, 0, 1)
    pixels = np.nan_to_num(np.clip(x, 0.0, 1.0) * np.float32(255) + np.float32(0.5))
    image = Image.fromarray(_channels_last(pixels.astype(np.uint8)))
    if max(image.size) > _SIDE:
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


def difference_png(x: NDArray[np.float32], other: NDArray[np.float32]) -> bytes:
    """``other - x`` around grey, stretched so that the largest difference is black or white."""
    change = np.nan_to_num(other).astype(np.float64) - np.nan_to_num(x).astype(np.float64)
    largest = float(np.abs(change).max(initial=0.0))
    return png((0.5 + (change / largest if largest > 0 else change) / 2).astype(np.float32))


def thumbnails(x: NDArray[np.float32], index: NDArray[np.int64]) -> bytes:
    """A file of the samples ``x`` [n, ...] under their places ``index`` [n] in the data set.

    It holds none where samples are no pictures, and fewer than n where they are too many.
    """

    def made() -> Iterator[tuple[int, bytes]]:
        for place, sample in zip(index.tolist(), x, strict=True):
            yield place, png(sample)

    return pack_pictures(made() if is_picture(x.shape[1:]) else ())


def _channels_last(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
