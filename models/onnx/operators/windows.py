"""ONNX operators that slide a window over an image or a line, and padding.

A line [c, l] is an image of height 1: views on both sides of the layer, which move no number.
Automatic padding and ``ceil_mode`` are resolved here, as ONNX Runtime resolves them, to explicit
padding (top, left, bottom, right), so that layers know one form only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.layers.joins import Slice
from models.layers.kinds import AvgPool2d, MaxPool2d, Pad, Permute, Reshape, Shape
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.operators.rearrangements import padded_by_copies

__all__ = [
    "Windows",
    "average_pool",
    "charge_padded",
    "four_pads",
    "global_average_pool",
    "global_max_pool",
    "image_of",
    "in_shape_of",
    "max_pool",
    "pad",
    "pad_axes",
    "pair_of",
    "two",
    "windows_of",
]


#: Largest number of windows that may start in the padding.
MAX_EARLY_WINDOWS = 10_000
#: From here on the standard leaves out a last window of ``ceil_mode`` beyond the image.
OPSET_OF_CEILINGS = 22
#: Larger strides and dilations than any image; the runtimes' integers overflow far above it.
MAX_STEP = 1 << 24


@dataclass(frozen=True)
class Windows:
    """Where the windows stand; ``extra`` (bottom, right) is what ``ceil_mode`` adds to ``pads``."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]
    extra: tuple[int, int] = (0, 0)

    @property
    def padding(self) -> tuple[int, int, int, int]:
        top, left, bottom, right = self.pads
        return (top, left, bottom + self.extra[0], right + self.extra[1])


def max_pool(operation: Operation, translation: Translation) -> Activation:
    """MaxPool on images and lines; the indices' output must be unused."""
    x = image_of(operation, translation)
    if any(operation.outputs[1:]):
        operation.refuse("the output of indices is not supported")
    windows = windows_of(operation, x.shape, two(operation, operation.attributes["kernel_shape"]))
    charge_padded(operation, translation, x.shape, windows)
    _refuse_emptywindows_of(operation, x.shape, windows)
    layer = MaxPool2d(
        kernel=windows.kernel,
        stride=windows.stride,
        padding=windows.padding,
        dilation=windows.dilation,
    )
    return in_shape_of(operation, translation, translation.emit(operation, layer, x))


def average_pool(operation: Operation, translation: Translation) -> Activation:
    """AveragePool on images and lines.

    With ``count_include_pad`` ONNX Runtime divides by the places inside the padded image: those
    that ``ceil_mode`` adds beyond it never count. Then the padding is a layer of its own.
    """
    x = image_of(operation, translation)
    windows = windows_of(operation, x.shape, two(operation, operation.attributes["kernel_shape"]))
    include = bool(operation.attributes["count_include_pad"])
    charge_padded(operation, translation, x.shape, windows)
    if include and any(windows.extra) and any(windows.pads):
        x = translation.emit(operation, Pad(padding=windows.pads), x)
        windows = Windows(
            windows.kernel, windows.stride, windows.dilation, (0, 0, 0, 0), windows.extra
        )
    if any(windows.extra):
        include = False
    if not include:
        _refuse_emptywindows_of(operation, x.shape, windows)
    layer = AvgPool2d(
        kernel=windows.kernel,
        stride=windows.stride,
        padding=windows.padding,
        dilation=windows.dilation,
        count_include_pad=include,
    )
    return in_shape_of(operation, translation, translation.emit(operation, layer, x))


def global_average_pool(operation: Operation, translation: Translation) -> Activation:
    """GlobalAveragePool on images and lines: one window as large as the image."""
    x = image_of(operation, translation)
    kernel = (x.shape[1], x.shape[2])
    pooled = translation.emit(operation, AvgPool2d(kernel=kernel, stride=1), x)
    return in_shape_of(operation, translation, pooled)


def global_max_pool(operation: Operation, translation: Translation) -> Activation:
    """GlobalMaxPool on images and lines: one window as large as the image."""
    x = image_of(operation, translation)
    kernel = (x.shape[1], x.shape[2])
    pooled = translation.emit(operation, MaxPool2d(kernel=kernel, stride=kernel), x)
    return in_shape_of(operation, translation, pooled)


def pad(operation: Operation, translation: Translation) -> Activation:
    """Padding of at most two axes (never the batch): constant, edge, reflect or wrap; below 0: a
    cut."""
    x = operation.activation()
    mode = operation.attributes["mode"].decode(errors="replace")
    if mode not in ("constant", "edge", "reflect", "wrap") or (
        mode == "wrap" and operation.opset < 19
    ):
        operation.refuse(f"mode {mode!r} is not supported")
    if operation.opset < 11:
        pads, value = list(operation.attributes["pads"]), operation.attributes["value"]
        axes = list(range(x.rank))
    else:
        pads = operation.integers(1) or []
        array = operation.constant(2)
        if array is not None and (array.dtype != np.float32 or array.size != 1):
            operation.refuse("the value must be one float32 number", code="unsupported_dtype")
        value = 0.0 if array is None else float(array.reshape(())[()])
        given = operation.integers(3)
        axes = [operation.axis(a, x.rank) for a in (range(x.rank) if given is None else given)]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        operation.refuse(f"pads {pads} do not fit rank {x.rank}", code="shape_mismatch")
    if not math.isfinite(value):
        operation.refuse("the value is NaN or infinite", code="non_finite_weights")
    amounts = {a: (pads[i], pads[i + len(axes)]) for i, a in enumerate(axes)}
    if any(amounts.get(0, (0, 0))):
        operation.refuse_batch("it pads the batch axis")
    if min(pads, default=0) < 0:
        if mode != "constant":
            operation.refuse(f"negative pads are not supported with mode {mode!r}")
        x = _cut(operation, translation, x, amounts)
        amounts = {axis: (max(a, 0), max(b, 0)) for axis, (a, b) in amounts.items()}
    padded = [axis for axis in sorted(amounts) if any(amounts[axis])]
    if len(padded) > 2:
        operation.refuse(f"padding of axes {padded} is not supported: at most two")
    if not padded:
        return x
    if mode != "constant":
        rows = {axis - 1: amounts[axis] for axis in padded}
        return padded_by_copies(operation, translation, x, rows, mode)
    return pad_axes(operation, translation, x, {a - 1: amounts[a] for a in padded}, value)


def _cut(
    operation: Operation,
    translation: Translation,
    x: Activation,
    amounts: dict[int, tuple[int, int]],
) -> Activation:
    """The activation without the places that negative pads (by axes, batch included) take away."""
    for axis, (before, after) in sorted(amounts.items()):
        size = x.shape[axis - 1] if axis else 0
        start, stop = max(0, -before), size - max(0, -after)
        if axis and (start, stop) != (0, size):
            if start >= stop:
                operation.refuse(f"nothing is left of axis {axis}", code="shape_mismatch")
            x = translation.emit(operation, Slice(axis=axis - 1, start=start, stop=stop), x)
    return x


def pad_axes(
    operation: Operation,
    translation: Translation,
    x: Activation,
    amounts: dict[int, tuple[int, int]],
    value: float,
) -> Activation:
    """Pad one or two axes (without the batch): brought to the end, padded, and brought back."""
    if len(x.shape) == 1:
        (before, after) = amounts[0]
        x = translation.emit(operation, Reshape(shape=(1, *x.shape)), x)
        x = translation.emit(operation, Pad(padding=(0, before, 0, after), value=value), x)
        return translation.emit(operation, Reshape(shape=x.shape[1:]), x)
    rank = len(x.shape)
    last = sorted(
        {*amounts, *[a for a in range(rank - 1, -1, -1) if a not in amounts][: 2 - len(amounts)]}
    )
    order = [axis for axis in range(rank) if axis not in last] + last
    (top, bottom), (left, right) = (amounts.get(axis, (0, 0)) for axis in last)
    layer = Pad(padding=(top, left, bottom, right), value=value)
    if order == sorted(order):
        return translation.emit(operation, layer, x)
    x = translation.emit(operation, Permute(axes=order), x)
    x = translation.emit(operation, layer, x)
    back = [order.index(axis) for axis in range(rank)]
    return translation.emit(operation, Permute(axes=back), x)


def image_of(operation: Operation, translation: Translation) -> Activation:
    """The operator's input as an image [c, h, w]; a line [c, l] as one of height 1."""
    x = operation.activation()
    if len(x.shape) == 2:
        return translation.emit(operation, Reshape(shape=(x.shape[0], 1, x.shape[1])), x)
    if len(x.shape) != 3:
        operation.refuse(
            f"only images [batch, c, h, w] and lines [batch, c, l] are supported, not rank {x.rank}"
        )
    return x


def in_shape_of(operation: Operation, translation: Translation, image: Activation) -> Activation:
    """The result as the operator gives it: of a line a line again."""
    if len(operation.activation().shape) == 3:
        return image
    shape = (image.shape[0], image.shape[2])
    return translation.emit(operation, Reshape(shape=shape), image)


def two(operation: Operation, sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes along a line as along both axes of an image of height 1."""
    if len(operation.activation().shape) != 2:
        return tuple(sizes)
    if len(sizes) != 1:
        operation.refuse(f"{list(sizes)} do not fit a line [batch, c, l]", code="shape_mismatch")
    return (1, sizes[0])


def four_pads(operation: Operation) -> list[int]:
    """The pads as (top, left, bottom, right); zeros where there are none."""
    given = operation.attributes.get("pads")
    if given is None:
        return [0, 0, 0, 0]
    axes = len(operation.activation().shape) - 1
    if len(given) != 2 * axes or min(given) < 0:
        operation.refuse(f"pads {list(given)} are not supported: two numbers >= 0 per axis")
    return [0, given[0], 0, given[1]] if axes == 1 else list(given)


def windows_of(operation: Operation, shape: Shape, kernel: tuple[int, ...]) -> Windows:
    attributes = operation.attributes
    stride = pair_of(operation, "strides")
    dilation = pair_of(operation, "dilations")
    if len(kernel) != 2 or min(kernel) < 1:
        operation.refuse(f"a window of {kernel} is not supported: only of one or two axes")
    size = (kernel[0], kernel[1])
    auto = attributes["auto_pad"].decode(errors="replace")
    pads = four_pads(operation)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if dilation != (1, 1):
            # ONNX Runtime refuses such a Conv; for pooling the standard and it disagree.
            operation.refuse(
                "auto_pad SAME together with dilations is not supported",
                hint="write the pads out",
            )
        pads = _same(operation, shape, size, stride, dilation, lower=auto == "SAME_LOWER")
    elif auto == "VALID":
        pads = [0, 0, 0, 0]
    elif auto != "NOTSET":
        operation.refuse(f"auto_pad {auto!r} is not supported")
    top, left, bottom, right = pads
    extra = [0, 0]
    if attributes.get("ceil_mode"):
        for axis, (before, after) in enumerate(((top, bottom), (left, right))):
            extra[axis] = _ceil_extra(
                *(operation, shape[1 + axis], before, after),
                *(size[axis], stride[axis], dilation[axis]),
            )
    return Windows(size, stride, dilation, (top, left, bottom, right), (extra[0], extra[1]))


def pair_of(operation: Operation, name: str) -> tuple[int, int]:
    given = operation.attributes.get(name)
    given = (1, 1) if given is None else two(operation, given)
    if len(given) != 2 or min(given) < 1:
        operation.refuse(f"{name} {list(given)} are not supported: one number >= 1 per axis")
    if max(given) > MAX_STEP:
        operation.refuse(f"{name} {list(given)} are larger than any image")
    return (int(given[0]), int(given[1]))


def _same(
    operation: Operation,
    shape: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    *,
    lower: bool,
) -> list[int]:
    """Padding so that there are ceil(size / stride) windows, the odd one below (or above)."""
    begins, ends = [], []
    for size, k, s, d in zip(shape[1:], kernel, stride, dilation, strict=True):
        needed = (math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size
        if needed == -1 and operation.op_type == "Conv":
            # A 1 x 1 window with stride 2: ONNX Runtime pads nothing. Below -1 it cuts the image.
            needed = 0
        if needed < 0:
            operation.refuse(f"auto_pad SAME with a window of {k} and a stride of {s}")
        begins.append((needed + 1) // 2 if lower else needed // 2)
        ends.append(needed - begins[-1])
    return begins + ends


def _ceil_extra(
    operation: Operation, size: int, before: int, after: int, k: int, s: int, d: int
) -> int:
    """How far the last window of ``ceil_mode`` reaches beyond the padded image.

    A last window that would start beyond the image and the padding before it is left out, which the
    standard says from opset 22 on. Before it, ONNX Runtime's kernels leave it out and its inferred
    shapes count it: plans of memory made of these shapes may end a run, so it is refused.
    """
    reach = d * (k - 1) + 1
    count = -(-(size + before + after - reach) // s) + 1
    if (count - 1) * s >= size + before:
        if operation.opset < OPSET_OF_CEILINGS:
            operation.refuse(
                f"with ceil_mode the last window of {k} (stride {s}) would start beyond the image: "
                f"the standard counts it before opset {OPSET_OF_CEILINGS} and runtimes do not",
                hint=f"export with opset {OPSET_OF_CEILINGS}, or without ceil_mode",
            )
        count -= 1
    return max(0, (count - 1) * s + reach - (size + before + after))


def _refuse_emptywindows_of(operation: Operation, shape: Shape, windows: Windows) -> None:
    """Every window must hold at least one place of the image itself."""
    top, left, bottom, right = windows.padding
    for size, k, s, d, before, after in zip(
        shape[1:],
        windows.kernel,
        windows.stride,
        windows.dilation,
        (top, left),
        (bottom, right),
        strict=True,
    ):
        count = (size + before + after - d * (k - 1) - 1) // s + 1
        last = -before + (count - 1) * s
        # A window that starts before the image meets it first at its start modulo the dilation.
        early = range(-before, min(0, last + 1), s)
        empty = last >= size or len(early) > MAX_EARLY_WINDOWS
        if empty or any(start % d >= size or start // d < 1 - k for start in early):
            operation.refuse("a window lies in the padding alone", code="invalid_network")


def charge_padded(
    operation: Operation, translation: Translation, shape: Shape, windows: Windows
) -> None:
    """Padding is real memory while the layer runs: count it like an intermediate result."""
    top, left, bottom, right = windows.padding
    padded: tuple[Any, ...] = (shape[0], shape[1] + top + bottom, shape[2] + left + right)
    translation.charge(operation, padded)
