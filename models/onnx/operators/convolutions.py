"""ONNX convolutions over images and lines: Conv and ConvTranspose."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from models.layers.joins import Slice
from models.layers.kinds import Conv2d, Reshape
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.operators.windows import (
    Windows,
    charge_padded,
    four_pads,
    image_of,
    in_shape_of,
    pad_axes,
    pair_of,
    two,
    windows_of,
)

__all__ = ["conv", "conv_transpose"]


def conv(operation: Operation, translation: Translation) -> Activation:
    """Conv on images [N, c, h, w] and lines [N, c, l] with constant weights."""
    array, constant = _kernels(operation), operation.constant(2)
    x = image_of(operation, translation)
    kernel = tuple(array.shape[2:])
    if constant is not None and constant.shape != (array.shape[0],):
        operation.refuse(f"a bias of shape {constant.shape} does not fit", code="shape_mismatch")
    groups = operation.attributes["group"]
    if groups < 1:
        operation.refuse(f"group = {groups}", code="invalid_onnx")
    windows = windows_of(operation, x.shape, kernel)
    # A kernel that stands at several nodes, in the same way, is one layer.
    key = (*operation.input_names[1:], windows, groups)
    layer = translation.shared.get(key)
    if layer is None:
        layer = translation.shared[key] = Conv2d(
            translation.weight(operation, array),
            None if constant is None else translation.weight(operation, constant),
            stride=windows.stride,
            padding=windows.padding,
            dilation=windows.dilation,
            groups=groups,
        )
    charge_padded(operation, translation, x.shape, windows)
    return in_shape_of(operation, translation, translation.emit(operation, layer, x))


def conv_transpose(operation: Operation, translation: Translation) -> Activation:
    """ConvTranspose: a convolution with the kernel turned around, of the input with zeros between
    its places where the stride is more than 1.

    They add terms to every sum, which the error bounds count, and change no number.
    """
    array, constant = _kernels(operation), operation.constant(2)
    x = image_of(operation, translation)
    attributes, groups = operation.attributes, operation.attributes["group"]
    kernel = tuple(array.shape[2:])
    stride = pair_of(operation, "strides")
    given = attributes.get("output_padding")
    # Along a line the axis of size 1 gains nothing.
    more = (0,) * (2 - len(given or ())) + tuple(given or ())
    auto = attributes["auto_pad"].decode(errors="replace")
    if attributes.get("output_shape") or auto not in ("NOTSET", "VALID"):
        operation.refuse(
            "only explicit pads are supported", hint="write pads and output_padding out"
        )
    if len(more) != 2 or any(not 0 <= n < s for n, s in zip(more, stride, strict=True)):
        operation.refuse(f"output_padding {list(given or ())} is not less than the strides")
    if groups < 1 or array.shape[0] % groups:
        operation.refuse(f"group = {groups}", code="invalid_onnx")
    out = array.shape[1] * groups
    if constant is not None and constant.shape != (out,):
        operation.refuse(f"a bias of shape {constant.shape} does not fit", code="shape_mismatch")
    dilation = pair_of(operation, "dilations")
    pads = four_pads(operation) if auto == "NOTSET" else [0, 0, 0, 0]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)] * 2
    if any(pad > size for pad, size in zip(pads, reach, strict=True)):
        operation.refuse(f"pads {pads} cut into the result of a window of {kernel}")
    top, left, bottom, right = (size - pad for size, pad in zip(reach, pads, strict=True))
    bottom, right = bottom + more[0], right + more[1]
    x = _spread(operation, translation, x, stride)
    per_group = array.reshape(groups, -1, *array.shape[1:]).swapaxes(1, 2)
    weight = per_group.reshape(out, -1, *kernel)[:, :, ::-1, ::-1]
    layer = Conv2d(
        translation.weight(operation, weight),
        None if constant is None else translation.weight(operation, constant),
        padding=(top, left, bottom, right),
        dilation=dilation,
        groups=groups,
    )
    windows = Windows((kernel[0], kernel[1]), (1, 1), dilation, (top, left, bottom, right))
    charge_padded(operation, translation, x.shape, windows)
    return in_shape_of(operation, translation, translation.emit(operation, layer, x))


def _spread(
    operation: Operation, translation: Translation, x: Activation, stride: tuple[int, int]
) -> Activation:
    """The image with ``stride`` - 1 zeros between neighbouring places of each axis."""
    if stride == (1, 1):
        return x
    channels, height, width = x.shape
    amounts = {2 * axis + 2: (0, step - 1) for axis, step in enumerate(stride) if step > 1}
    size = (channels, height * stride[0], width * stride[1])
    translation.charge(operation, size)
    x = translation.emit(operation, Reshape(shape=(channels, height, 1, width, 1)), x)
    x = pad_axes(operation, translation, x, amounts, 0.0)
    x = translation.emit(operation, Reshape(shape=size), x)
    for axis, step in enumerate(stride, start=1):
        if step > 1:
            cut = Slice(axis=axis, start=0, stop=x.shape[axis] - step + 1)
            x = translation.emit(operation, cut, x)
    return x


def _kernels(operation: Operation) -> NDArray[Any]:
    """The weights [out, in / groups, kernel_h, kernel_w]; those of a line with a height of 1."""
    array = operation.constant(1)
    assert array is not None
    rank = operation.activation().rank
    if array.ndim != rank or rank not in (3, 4) or 0 in array.shape:
        operation.refuse(
            f"weights of shape {array.shape} with an activation of rank {rank} are not supported: "
            "only convolutions of images and lines"
        )
    kernel = tuple(array.shape[2:])
    if tuple(operation.attributes.get("kernel_shape", kernel)) != kernel:
        operation.refuse("kernel_shape is not the shape of the weights", code="shape_mismatch")
    return array.reshape(*array.shape[:2], *two(operation, kernel))
