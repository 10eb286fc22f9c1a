"""ONNX convolutions over images and lines: Conv, and ConvTranspose with a stride of 1."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from models.layers.kinds import Conv2d
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.operators.windows import (
    Windows,
    charge_padded,
    four_pads,
    image_of,
    in_shape_of,
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
    """ConvTranspose with a stride of 1: a convolution with the kernel turned around."""
    array, constant = _kernels(operation), operation.constant(2)
    x = image_of(operation, translation)
    attributes, groups = operation.attributes, operation.attributes["group"]
    kernel = tuple(array.shape[2:])
    plain = not any(attributes.get("output_padding", ())) and not attributes.get("output_shape")
    auto = attributes["auto_pad"].decode(errors="replace")
    if pair_of(operation, "strides") != (1, 1) or not plain or auto not in ("NOTSET", "VALID"):
        operation.refuse(
            "only a stride of 1 with explicit pads is supported",
            hint="write the layer as a convolution, or as DepthToSpace and one",
        )
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
