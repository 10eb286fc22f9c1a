"""Convolutions and pools over lines [batch, channels, length]: images of height 1, exactly."""

from __future__ import annotations

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

KINDS = ["Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"]


@st.composite
def nodes(draw: st.DrawFn) -> tuple[Any, dict[str, Any], int]:
    """A node on [batch, 4, length], its constants, and an opset."""
    kind, opset = draw(st.sampled_from(KINDS)), draw(st.sampled_from([7, 9, 11, 13, 19, 22, 26]))
    attributes: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    size = draw(st.integers(1, 3))
    if not kind.startswith("Global"):
        stride = 1 if kind.startswith("Global") else draw(st.integers(1, 3))
        attributes = {"strides": [stride]} if stride > 1 or draw(st.booleans()) else {}
        if draw(st.booleans()):
            attributes["pads"] = [draw(st.integers(0, size - 1)) for _ in range(2)]
        elif kind != "ConvTranspose" and draw(st.booleans()):
            attributes["auto_pad"] = draw(st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]))
        if kind.startswith("Conv") and draw(st.booleans()):
            attributes["dilations"] = [draw(st.integers(1, 2))]
    if kind.startswith("Conv"):
        groups = draw(st.sampled_from([1, 2]))
        attributes |= {"group": groups} if groups > 1 else {}
        constants["w"] = normal(1, *((4, 6 // groups) if kind[4:] else (6, 4 // groups)), size)
        constants |= {"b": normal(2, 6)} if draw(st.booleans()) else {}
    elif "Global" not in kind:
        attributes["kernel_shape"] = [size]
        if opset >= 10 and draw(st.booleans()):
            attributes["ceil_mode"] = 1
    if kind == "AveragePool" and draw(st.booleans()):
        attributes["count_include_pad"] = 1
    return helper.make_node(kind, ["x", *constants], ["y"], **attributes), constants, opset


@settings(max_examples=examples(80), deadline=None)
@given(nodes(), st.integers(4, 9))
def test_a_window_on_a_line_is_onnx_runtimes(made: Any, length: int) -> None:
    node, constants, opset = made
    data = flattened([node], (4, length), constants, opset=opset)
    try:
        OnnxRuntimeModel(data, (4, length))(np.zeros((1, 4, length), np.float32))
    except ModelError:
        assume(False)
    try:
        import_onnx_bytes(data)
    except ModelError as error:
        # Windows that lie in the padding alone, and paddings on which runtimes differ.
        given = {attribute.name for attribute in node.attribute}
        allowed = error.code in ("invalid_network", "unsupported_operator")
        assert allowed and given & {"pads", "auto_pad", "ceil_mode"}, error  # noqa: PT017, PT018
        return
    assert_agrees(data)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[1, 1]),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[0, 0, 0, 0]),
        helper.make_node("Conv", ["x", "square"], ["y"]),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[1, 2]),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], dilations=[1, 1]),
    ],
)
def test_two_axes_on_a_line_are_refused(node: Any) -> None:
    constants = {"w": normal(0, 2, 3, 2), "square": normal(0, 2, 3, 1, 2)}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened([node], (3, 6), constants))
    assert caught.value.code in ("unsupported_operator", "shape_mismatch")
