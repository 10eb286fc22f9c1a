"""Places of an axis taken in any order and any number of times."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from models.layers.kinds import Conv2d, Gather, Permute, Reshape
from models.onnx.graph import Activation, Operation, Translation

__all__ = ["MOVED_AXES", "gather_nd", "selected"]

#: Attribute of a GatherND that says that its places are of axes beside the batch.
MOVED_AXES = "moved axes"


def selected(
    operation: Operation,
    translation: Translation,
    x: Activation,
    places: NDArray[np.int64],
    axis: int,
) -> Activation:
    """The numbers at these places of an axis (without the batch), in their order.

    Different places are a Gather. Where one is taken twice, it is a convolution 1 x 1 with weights
    0 and 1, in which no sum rounds.
    """
    if len(np.unique(places)) == len(places):
        return translation.emit(operation, Gather(torch.from_numpy(places), axis=axis), x)
    size, order = x.shape[axis], [axis, *(a for a in range(len(x.shape)) if a != axis)]
    translation.charge(operation, (len(places), size))
    weight = np.zeros((len(places), size, 1, 1), dtype=np.float32)
    weight[np.arange(len(places)), places] = 1.0
    if axis:
        x = translation.emit(operation, Permute(axes=order), x)
    others = x.shape[1:]
    x = translation.emit(operation, Reshape(shape=(size, math.prod(others), 1)), x)
    x = translation.emit(operation, Conv2d(translation.weight(operation, weight)), x)
    x = translation.emit(operation, Reshape(shape=(len(places), *others)), x)
    if not axis:
        return x
    back = [order.index(place) for place in range(len(order))]
    return translation.emit(operation, Permute(axes=back), x)


def gather_nd(operation: Operation, translation: Translation) -> Activation:
    """GatherND of constant places of leading axes, where the batch axis comes behind these."""
    x, places = operation.activation(), operation.constant(1)
    if places is None or places.dtype.kind != "i" or places.ndim < 1 or not places.size:
        operation.refuse("only constant places are supported")
    if not operation.attributes.get(MOVED_AXES) or operation.attributes.get("batch_dims"):
        operation.refuse_batch("it takes rows out of the batch")
    depth = int(places.shape[-1])
    sizes, rest = x.shape[:depth], x.shape[depth:]
    bounds = np.array(sizes)
    if ((places < -bounds) | (places >= bounds)).any():
        operation.refuse(f"places outside {sizes}", code="shape_mismatch")
    flat = np.ravel_multi_index(tuple(np.moveaxis(places % bounds, -1, 0)), sizes).reshape(-1)
    x = translation.emit(operation, Reshape(shape=(math.prod(sizes), *rest)), x)
    taken = selected(operation, translation, x, flat, 0)
    shape = (*places.shape[:-1], *rest)
    return translation.emit(operation, Reshape(shape=shape), taken)
