"""Convolution, pooling and padding: import = ONNX Runtime, whatever the attributes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from models.errors import ModelError
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, normal

OPSETS = st.sampled_from([7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 19, 21, 22, 24, 26])
SIZES = st.integers(1, 3)


@st.composite
def windows(draw: st.DrawFn, *, dilated: bool) -> dict[str, Any]:
    """Attributes of a window: kernel, stride, dilation, and padding of every kind."""
    attributes: dict[str, Any] = {
        "kernel_shape": [draw(SIZES), draw(SIZES)],
        "strides": [draw(SIZES), draw(SIZES)],
    }
    if dilated:
        attributes["dilations"] = [draw(SIZES), draw(SIZES)]
    mode = draw(st.sampled_from(["NOTSET", "absent", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode == "NOTSET":
        pads = [draw(st.integers(0, k - 1)) for k in attributes["kernel_shape"] * 2]
        attributes["pads"] = pads
    elif mode != "absent":
        attributes["auto_pad"] = mode
    return attributes


def runtime_takes(data: bytes, shape: tuple[int, ...]) -> bool:
    try:
        return OnnxRuntimeModel(data, shape)(np.zeros((1, *shape), np.float32)).size > 1
    except ModelError:
        return False


def refusal(data: bytes) -> str:
    try:
        import_onnx_bytes(data)
    except ModelError as error:
        return f"{error.code}: {error}"
    return ""


def may_be_refused(attributes: dict[str, Any], size: tuple[int, int]) -> bool:
    """Settings where ONNX Runtime leaves the standard, or where a window may be empty."""
    kernel = attributes["kernel_shape"]
    dilations = attributes.get("dilations", [1, 1])
    pads = attributes.get("pads", [0] * 4)
    for axis in range(2):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if reach > size[axis]:
            return True
        if attributes.get("auto_pad", "").startswith("SAME"):
            if kernel[axis] < attributes["strides"][axis] or dilations != [1, 1]:
                return True
        elif dilations[axis] > 1 and pads[axis] + pads[axis + 2] > 0:
            return True
    return False


def counts_beyond(attributes: dict[str, Any], opset: int, size: tuple[int, int]) -> bool:
    """Before opset 22 the standard counts a last window that starts beyond the image."""
    if opset >= 22 or not attributes.get("ceil_mode"):
        return False
    pads = attributes.get("pads", [0] * 4)
    for axis in range(2):
        reach = attributes.get("dilations", [1, 1])[axis] * (attributes["kernel_shape"][axis] - 1)
        end, stride = size[axis] + pads[axis], attributes["strides"][axis]
        count = math.ceil((end + pads[axis + 2] - reach - 1) / stride) + 1
        if (count - 1) * stride >= end:
            return True
    return False


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(4, 1, 2), (6, 2, 3), (6, 1, 3)])
def test_a_window_of_ceil_mode_beyond_the_image(
    kind: str, size: int, kernel: int, stride: int
) -> None:
    """Opset 22 leaves it out, as runtimes do; before it their shapes count what they leave out."""
    axes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "ceil_mode": 1}
    node = helper.make_node(kind, ["x"], ["y"], **axes)
    assert "opset 22" in refusal(flattened([node], (2, size, size), opset=21))
    assert_agrees(flattened([node], (2, size, size), opset=22))
    # One place more, and the window starts inside: nothing is ambiguous.
    assert_agrees(flattened([node], (2, size + 1, size + 1), opset=18))


@settings(max_examples=examples(50), deadline=None)
@given(
    windows(dilated=True), OPSETS, SIZES, SIZES, st.booleans(), st.tuples(*[st.integers(4, 9)] * 2)
)
def test_conv(
    attributes: dict[str, Any],
    opset: int,
    groups: int,
    per_group: int,
    bias: bool,
    size: tuple[int, int],
) -> None:
    shape = (groups * per_group, *size)
    weight = normal(1, 2 * groups, per_group, *attributes["kernel_shape"])
    constants = {"w": weight} | ({"b": normal(2, 2 * groups)} if bias else {})
    node = helper.make_node("Conv", ["x", *constants], ["y"], group=groups, **attributes)
    data = flattened([node], shape, constants, opset=opset)
    assume(runtime_takes(data, shape))
    if refusal(data):
        assert may_be_refused(attributes, size), refusal(data)
    else:
        assert_agrees(data)


@settings(max_examples=examples(50), deadline=None)
@given(windows(dilated=True), OPSETS, st.booleans(), st.tuples(*[st.integers(4, 9)] * 2))
def test_max_pool(
    attributes: dict[str, Any], opset: int, ceil: bool, size: tuple[int, int]
) -> None:
    if opset < 10:
        attributes.pop("dilations")
    elif ceil:
        attributes["ceil_mode"] = 1
    node = helper.make_node("MaxPool", ["x"], ["y"], **attributes)
    data = flattened([node], (2, *size), opset=opset)
    assume(runtime_takes(data, (2, *size)))
    if refusal(data):
        beyond = counts_beyond(attributes, opset, size)
        assert beyond or may_be_refused(attributes, size), refusal(data)
    else:
        assert_agrees(data)


@settings(max_examples=examples(70), deadline=None)
@given(
    windows(dilated=True),
    OPSETS,
    st.booleans(),
    st.booleans(),
    st.tuples(*[st.integers(4, 9)] * 2),
)
def test_average_pool(
    attributes: dict[str, Any], opset: int, ceil: bool, include: bool, size: tuple[int, int]
) -> None:
    if opset < 19:
        attributes.pop("dilations")
    if ceil and opset >= 10:
        attributes["ceil_mode"] = 1
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], count_include_pad=int(include), **attributes
    )
    data = flattened([node], (2, *size), opset=opset)
    assume(runtime_takes(data, (2, *size)))
    if refusal(data):
        beyond = counts_beyond(attributes, opset, size)
        assert beyond or may_be_refused(attributes, size), refusal(data)
    else:
        assert_agrees(data)


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(1, 4), st.data())
def test_pad(rank: int, data: st.DataObject) -> None:
    """Any two axes of a sample, in the attribute's form and in the inputs'."""
    shape = tuple(data.draw(st.integers(2, 4)) for _ in range(rank))
    axes = data.draw(st.sets(st.integers(1, rank), max_size=2))
    before, after = ([0] * (rank + 1) for _ in range(2))
    for axis in axes:
        before[axis], after[axis] = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    value = data.draw(st.sampled_from([0.0, 1.5, -2.0]))
    old = helper.make_node("Pad", ["x"], ["y"], pads=before + after, value=value)
    assert_agrees(flattened([old], shape, opset=9))
    constants = {"p": np.array(before + after, np.int64), "v": np.array(value, np.float32)}
    new = helper.make_node("Pad", ["x", "p", "v"], ["y"], mode="constant")
    assert_agrees(flattened([new], shape, constants, opset=13))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [7, 8])
def test_shortcut_of_a_tensorflow_resnet(mode: str, size: int) -> None:
    """A 1 x 1 convolution with stride 2 and SAME padding, which would be negative."""
    conv = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], auto_pad=mode)
    assert_agrees(flattened([conv], (3, size, size), {"w": normal(0, 4, 3, 1, 1)}))


def test_pad_of_named_axes() -> None:
    constants = {
        "p": np.array([1, 2, 0, 3], np.int64),
        "v": np.array(0.5, np.float32),
        "a": np.array([-1, 2], np.int64),
    }
    node = helper.make_node("Pad", ["x", "p", "v", "a"], ["y"])
    assert_agrees(flattened([node], (2, 3, 4), constants, opset=18))


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_global_average_pool(opset: int) -> None:
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    assert_agrees(flattened([node], (3, 5, 4), opset=opset))


@pytest.mark.parametrize(
    ("node", "code"),
    [
        (helper.make_node("Pad", ["x"], ["y"], mode="reflect", pads=[0, 0, 6, 1, 0, 0, 1, 1]),
         "unsupported_operator"),
        (helper.make_node("Pad", ["x"], ["y"], mode="edge", pads=[0, 0, -1, 0, 0, 0, 0, 0]),
         "unsupported_operator"),
        (helper.make_node("Pad", ["x"], ["y"], pads=[0, 0, -4, 0, 0, 0, -2, 0]),
         "shape_mismatch"),
        (helper.make_node("Pad", ["x"], ["y"], pads=[1, 0, 0, 0, 0, 0, 0, 0]),
         "batch_dependent"),
        (helper.make_node("Pad", ["x"], ["y"], pads=[0, 0, 1, 0, 0, 0, 0, 0],
                          value=float("nan")), "non_finite_weights"),
        (helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]),
         "unsupported_operator"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[9, 9]), "shape_mismatch"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[3, 3, 3, 3]),
         "invalid_network"),
        (helper.make_node("Conv", ["x", "w"], ["y"], pads=[20000] * 4), "model_too_large"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[10**9, 0, 0, 0]),
         "model_too_large"),
        (helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[10**9, 10**9],
                          pads=[10**9] * 4), "model_too_large"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[10**6, 0, 0, 0]),
         "invalid_network"),
        (helper.make_node("Conv", ["x", "w"], ["y"], strides=[0, 1]), "unsupported_operator"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2**63 - 1, 1]),
         "unsupported_operator"),
        (helper.make_node("Conv", ["x", "w"], ["y"], strides=[2**40, 1]), "unsupported_operator"),
        (helper.make_node("Conv", ["x", "w"], ["y"], group=2), "shape_mismatch"),
        (helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1]), "shape_mismatch"),
    ],
)  # fmt: skip
def test_refused(node: Any, code: str) -> None:
    data = flattened([node], (3, 6, 6), {"w": normal(0, 2, 3, 3, 3)}, opset=9)
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    assert caught.value.code == code
