"""Operators that take places several times, or put zeros between them: import = ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from models.errors import ModelError
from models.onnx.importer import import_onnx_bytes
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, normal

node = helper.make_node


@settings(max_examples=examples(15), deadline=None)
@given(st.data())
def test_transposed_convolutions_of_any_stride(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 2))
    sizes = [data.draw(st.integers(1, 4)) for _ in range(axes)]
    kernel = [data.draw(st.integers(1, 3)) for _ in range(axes)]
    dilations = [data.draw(st.integers(1, 2)) for _ in range(axes)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(axes)]
    more = [data.draw(st.integers(0, s - 1)) for s in strides]
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    pads = [data.draw(st.integers(0, r)) for r in reach * 2]
    out = [
        (n - 1) * s + r + 1 + m - pads[i] - pads[i + axes]
        for i, (n, s, r, m) in enumerate(zip(sizes, strides, reach, more, strict=True))
    ]
    assume(min(out) >= 1)
    groups = data.draw(st.sampled_from([1, 2]))
    made = node("ConvTranspose", ["x", "w", "b"], ["y"], strides=strides, dilations=dilations,
                output_padding=more, pads=pads, group=groups)  # fmt: skip
    constants = {"w": normal(0, 4, 3, *kernel), "b": normal(1, 3 * groups)}
    assert_agrees(flattened([made], (4, *sizes), constants, opset=data.draw(OPSETS)))


OPSETS = st.sampled_from([7, 9, 11, 13, 18, 19, 21, 22, 26])


@settings(max_examples=examples(15), deadline=None)
@given(st.data())
def test_the_nearest_place_by_whole_factors(data: st.DataObject) -> None:
    opset = data.draw(OPSETS)
    shape = [data.draw(st.integers(1, 3)) for _ in range(data.draw(st.integers(1, 3)))]
    scales = [1.0, *(float(data.draw(st.integers(1, 4))) for _ in shape)]
    assume(np.prod([*shape, *scales]) > 1)
    constants = {"s": np.array(scales, np.float32)}
    how: dict[str, Any] = {}
    if opset >= 11:
        how = data.draw(
            st.sampled_from(
                [
                    {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
                    {"nearest_mode": "round_prefer_floor"},
                    {},
                ]
            )
        )
        # Up to opset 12 the region has a name, though nothing reads it.
        region = "" if opset > 12 else "region"
        constants |= {"region": np.zeros(0, np.float32)} if region else {}
        made = node("Resize", ["x", region, "s"], ["y"], mode="nearest", **how)
    elif opset == 7:
        made = node("Upsample", ["x"], ["y"], mode="nearest", scales=scales)
    else:
        made = node("Upsample", ["x", "s"], ["y"], mode="nearest")
    assert_agrees(flattened([made], shape, constants, opset=opset))


@settings(max_examples=examples(15), deadline=None)
@given(st.data(), st.sampled_from(["edge", "reflect", "wrap"]))
def test_padding_with_the_places_at_the_ends(data: st.DataObject, mode: str) -> None:
    shape = [data.draw(st.integers(2, 4)) for _ in range(data.draw(st.integers(1, 3)))]
    axes = data.draw(st.sets(st.integers(1, len(shape)), max_size=2))
    pads = [0] * (2 * len(shape) + 2)
    for axis in axes:
        for place in (axis, axis + len(shape) + 1):
            pads[place] = data.draw(st.integers(0, shape[axis - 1] - 1))
    made = node("Pad", ["x"], ["y"], mode=mode, pads=pads)
    if mode != "wrap":
        assert_agrees(flattened([made], shape, opset=9))
    constants = {"p": np.array(pads, np.int64)}
    made = node("Pad", ["x", "p"], ["y"], mode=mode)
    assert_agrees(flattened([made], shape, constants, opset=19 if mode == "wrap" else 13))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("given", [{}, {"alpha": 1 / 6, "beta": 0.5}, {"alpha": -2.0, "beta": 0.1}])
def test_a_hard_sigmoid_is_a_line_between_limits(scale: float, given: Any) -> None:
    data = flattened([node("HardSigmoid", ["x"], ["y"], **given)], (6,))
    network = assert_agrees(data, samples=20, scale=scale)
    assert "clip" in [network.layer(row.name).kind for row in network.nodes]


@settings(max_examples=examples(15), deadline=None)
@given(st.data())
def test_between_places_by_powers_of_two(data: st.DataObject) -> None:
    """Bilinear, larger and smaller, an image's sides by different factors."""
    opset = data.draw(st.sampled_from([11, 13, 18, 19, 22]))
    shape = (2, data.draw(st.integers(3, 8)), data.draw(st.integers(3, 8)))
    scales = [1.0, 1.0, *(data.draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])) for _ in range(2))]
    modes = st.sampled_from(["half_pixel", "asymmetric", "pytorch_half_pixel"])
    made = node("Resize", ["x", "region", "s"], ["y"], mode="linear",
                coordinate_transformation_mode=data.draw(modes))  # fmt: skip
    constants = {"s": np.array(scales, np.float32), "region": np.zeros(0, np.float32)}
    if min(scales) < 1 or max(scales) > 1:
        resized = [n for n, scale in zip(shape[1:], scales[2:], strict=True) if scale != 1]
        assume(sum(resized) >= 6)
    assert_agrees(flattened([made], shape, constants, opset=opset))


@pytest.mark.parametrize("opset", [11, 13, 18, 19])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes_in_the_place_of_factors(opset: int, mode: str) -> None:
    """F.interpolate(x, size=(8, 12)), the batch as it is."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "none", "two", "none"], ["kept"]),
        node("Concat", ["kept", "new"], ["sizes"], axis=0),
        node("Resize", ["x", "region", "empty", "sizes"], ["y"], mode=mode,
             nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
    ]  # fmt: skip
    constants = {
        "none": np.array([0], np.int64),
        "two": np.array([2], np.int64),
        "new": np.array([8, 12] if mode == "nearest" else [8, 3], np.int64),
        "region": np.zeros(0, np.float32),
        "empty": np.zeros(0, np.float32),
    }
    assert_agrees(flattened(nodes, (2, 4, 6), constants, opset=opset), samples=3)


NEAREST = {"mode": "nearest"}


@pytest.mark.parametrize(
    "made",
    [
        node("Resize", ["x", "", "whole"], ["y"], mode="cubic"),
        node("Resize", ["x", "", "half"], ["y"], mode="linear"),
        node("Resize", ["x", "", "whole"], ["y"], mode="linear", antialias=1),
        node("Resize", ["x", "", "channels"], ["y"], mode="linear"),
        node("Resize", ["x", "", "whole"], ["y"], mode="linear",
             coordinate_transformation_mode="align_corners"),
        node("Resize", ["x", "", "half"], ["y"], **NEAREST),
        node("Resize", ["x", "", "rows"], ["y"], **NEAREST),
        node("Resize", ["x", "", "many"], ["y"], **NEAREST),
        node("Resize", ["x", "", "whole"], ["y"], nearest_mode="ceil", **NEAREST),
        node("Resize", ["x", "", "", "sizes"], ["y"], **NEAREST),
        node("Pad", ["x", "far"], ["y"], mode="reflect"),
        node("Pad", ["x", "beyond"], ["y"], mode="wrap"),
        node("Pad", ["x", "whole_pads"], ["y"], mode="mirror"),
        node("ConvTranspose", ["x", "w"], ["y"], output_shape=[9, 9]),
        node("ConvTranspose", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2]),
        node("ConvTranspose", ["x", "w"], ["y"], output_padding=[1, 1]),
    ],
)  # fmt: skip
def test_refused(made: Any) -> None:
    constants = {
        "whole": np.array([1, 1, 2, 2], np.float32),
        "half": np.array([1, 1, 1.5, 2], np.float32),
        "rows": np.array([2, 1, 1, 1], np.float32),
        "channels": np.array([1, 2, 1, 1], np.float32),
        "many": np.array([1, 1, 1e9, 1], np.float32),
        "sizes": np.array([1, 2, 8, 8], np.int64),
        "far": np.array([0, 0, 4, 0, 0, 0, 0, 0], np.int64),
        "beyond": np.array([0, 0, 1, 0, 0, 0, 5, 0], np.int64),
        "whole_pads": np.array([0, 0, 1, 0, 0, 0, 0, 0], np.int64),
        "w": normal(0, 2, 3, 2, 2),
    }
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened([made], (2, 4, 4), constants, opset=19))
    assert caught.value.code in ("unsupported_operator", "batch_dependent")


@pytest.mark.parametrize("how", ["asymmetric", "half_pixel", "pytorch_half_pixel"])
def test_linear_resize_to_a_single_place(how: str) -> None:
    """The first place for pytorch_half_pixel, the middle for half_pixel."""
    made = node("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode=how)
    scales = np.array([1, 1, 0.125, 0.5], np.float32)
    assert_agrees(flattened([made], (2, 8, 8), {"s": scales}))


@pytest.mark.parametrize(
    ("size", "factor", "mode"), [(1_000_000, 2, "linear"), (40_000, 64, "nearest")]
)
def test_resize_of_axes_too_long_for_float32_or_memory(size: int, factor: int, mode: str) -> None:
    """A matrix of 8 TB; coordinates beyond 2^21, of which float32 takes some for others."""
    made = node("Resize", ["x", "", "s"], ["y"], mode=mode, nearest_mode="floor",
                coordinate_transformation_mode="asymmetric")  # fmt: skip
    scales = np.array([1, 1, 1, factor], np.float32)
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened([made], (1, 1, size), {"s": scales}))
    assert caught.value.code in ("model_too_large", "unsupported_operator")
