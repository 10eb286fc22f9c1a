"""Files made to hurt: each is refused with its code, none reaches outside or takes memory."""

from __future__ import annotations

import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models.errors import ModelError
from models.onnx.importer import (
    SUPPORTED_OPERATORS,
    import_onnx,
    import_onnx_bytes,
    read_onnx_bytes,
)
from models.onnx.runtime import OnnxRuntimeModel
from models.onnx.safety import OnnxLimits
from tests.models.onnx.external_data import (
    good,
    in_constant,
    in_function,
    in_initializer,
    in_sparse_indices,
    in_sparse_initializer,
    in_subgraph,
    in_training,
    node,
)
from tests.models.onnx.graphs import graph_of, normal


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../../../etc/passwd"])
@pytest.mark.parametrize(
    "place",
    [in_initializer, in_constant, in_sparse_initializer, in_sparse_indices, in_subgraph,
     in_function, in_training],
)  # fmt: skip
def test_external_data_is_found_everywhere(place: Any, location: str) -> None:
    model = good()
    place(model, location)
    for read in (import_onnx_bytes, lambda data: OnnxRuntimeModel(data, (4,))):
        with pytest.raises(ModelError) as caught:
            read(model.SerializeToString())
        assert caught.value.code == "external_data"


def test_external_data_without_its_flag() -> None:
    model = good()
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "w.bin"
    assert code_of(model) == "external_data"


def code_of(model: ModelProto | bytes) -> str:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    assert str(caught.value)
    return caught.value.code


def test_a_graph_without_nodes_is_not_called_damaged() -> None:
    model = good()
    del model.graph.node[:]
    with pytest.raises(ModelError, match="holds no node") as caught:
        import_onnx_bytes(model.SerializeToString())
    assert (caught.value.code, caught.value.hint) == (
        "invalid_onnx",
        "export a network with layers",
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_end_in_a_model_error(data: st.DataObject) -> None:
    """Cut, flipped or foreign bytes: a ModelError or a network, nothing else."""
    whole = good().SerializeToString()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        import_onnx_bytes(bytes(damaged))
    except ModelError as error:
        assert error.code != "invalid_model"  # noqa: PT017 - some damage is harmless


@pytest.mark.parametrize("data", [b"", b"\x00", b"PK\x03\x04", b"\x80\x02}q\x00.", b"<html>" * 50])
def test_foreign_files(data: bytes) -> None:
    """And what to do about them is said."""
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    assert caught.value.code == "invalid_onnx"
    assert "onnx.checker" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "bad",
    [
        node("Loop", ["n", "c"], ["z"],
             body=graph_of([node("Relu", ["x"], ["q"])], (3,), output="q").graph),
        node("Scan", ["x"], ["z"], num_scan_inputs=1,
             body=graph_of([node("Relu", ["x"], ["q"])], (3,), output="q").graph),
        node("NoSuchOperator", ["y"], ["z"]),
        node("Gelu", ["y"], ["z"], domain="com.microsoft"),
        node("Relu", ["y"], ["z"], domain="own.ops"),
        node("SVMClassifier", ["y"], ["z", "q"], domain="ai.onnx.ml"),
    ],
)  # fmt: skip
def test_operators_not_on_the_list(bad: Any) -> None:
    model = good()
    model.graph.node.append(bad)
    model.graph.output[0].name = "z"
    assert code_of(model) == "unsupported_operator"
    # Where no output needs it, it is cut away before anything runs.
    model.graph.output[0].name = "y"
    assert import_onnx_bytes(model.SerializeToString()).classes == 3


def test_an_unsupported_operator_is_named_with_the_list() -> None:
    model = good()
    model.graph.node.append(node("Tan", ["y"], ["z"], name="block3/tan"))
    model.graph.output[0].name = "z"
    with pytest.raises(ModelError, match=r"Tan.*block3/tan") as caught:
        import_onnx_bytes(model.SerializeToString())
    assert all(name in caught.value.hint for name in SUPPORTED_OPERATORS)


def test_sizes_that_the_bytes_do_not_have() -> None:
    model = good()
    model.graph.initializer[0].dims[:] = [10**9, 10**9]
    assert code_of(model) == "invalid_onnx"
    model = good()
    model.graph.initializer[0].dims[:] = [-1, 3]
    assert code_of(model) == "invalid_onnx"
    model = good()
    model.graph.initializer[0].float_data.extend([1.0] * 12)
    assert code_of(model) == "invalid_onnx"


@pytest.mark.parametrize("dims", [[4, 0, 2**63 - 1, 2], [0, 2**32, 2**32], [1] * 65, [0] * 65])
@pytest.mark.parametrize("place", ["weight", "constant"])
def test_shapes_that_no_array_has(dims: list[int], place: str) -> None:
    """Without a number in them, or of one, but of more axes or longer strides than there can be."""
    model = good()
    empty = TensorProto(data_type=TensorProto.FLOAT, dims=dims, name="w")
    empty.float_data.extend([1.0] * math.prod(dims))
    if place == "weight":
        model.graph.initializer[0].CopyFrom(empty)
    else:
        del model.graph.initializer[0]
        nodes = [helper.make_node("Constant", [], ["w"], value=empty), *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    with pytest.raises(ModelError, match="impossible shape"):
        import_onnx_bytes(model.SerializeToString())
    assert code_of(model) == "invalid_onnx"


@pytest.mark.parametrize("shape", [(2**60,), (2**31, 2**31), (100_000, 100_000), (-5,)])
def test_folding_bombs(shape: tuple[int, ...]) -> None:
    constants = {"s": np.array(shape, np.int64)}
    model = graph_of([node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])], (4,),
                     constants)  # fmt: skip
    assert code_of(model) in {"model_too_large", "invalid_onnx"}


def test_growth_in_small_steps() -> None:
    """Each node doubles a constant, or takes the outer product of two."""
    doubling = [node("Concat", ["c0", "c0"], ["c1"], axis=0)]
    doubling += [node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(1, 60)]
    constants = {"c0": normal(0, 8), "col": normal(0, 30_000, 1), "row": normal(0, 1, 30_000)}
    last = node("Add", ["x", "c60"], ["y"])
    assert code_of(graph_of([*doubling, last], (4,), constants)) == "model_too_large"
    outer, added = node("Add", ["col", "row"], ["c"]), node("Add", ["x", "c"], ["y"])
    assert code_of(graph_of([outer, added], (4,), constants)) == "model_too_large"
    expand = [node("Expand", ["col", "s"], ["c"]), added]
    constants["s"] = np.array([30_000, 2**40], np.int64)
    assert code_of(graph_of(expand, (4,), constants)) in {"model_too_large", "invalid_onnx"}


def test_one_weight_used_by_many_nodes_is_counted_each_time() -> None:
    constants = {"w": normal(0, 300, 300)}
    nodes = [node("MatMul", ["x", "w"], ["h0"])]
    nodes += [node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(40)]
    model = graph_of(nodes, (300,), constants, output="h40")
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(model.SerializeToString(), OnnxLimits(parameters=1_000_000))
    assert caught.value.code == "model_too_large"


def test_work_is_limited() -> None:
    """A small file whose forward pass would take hours."""
    constants = {"w": normal(0, 1000, 3, 9, 9)}
    model = graph_of([node("Conv", ["x", "w"], ["y"], pads=[4] * 4)], (3, 200, 200), constants)
    with pytest.raises(ModelError, match="work") as caught:
        import_onnx_bytes(model.SerializeToString(), OnnxLimits(work=10**9))
    assert caught.value.code == "model_too_large"


def test_refusals_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (2**60, 2**36):
        test_folding_bombs((size,))
    model = graph_of([node("Relu", ["x"], ["y"])], (2**40,))
    assert code_of(model) == "model_too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_limits_on_file_and_nodes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(good().SerializeToString())
    with pytest.raises(ModelError, match="bytes") as caught:
        import_onnx(path, OnnxLimits(file_bytes=10))
    assert caught.value.code == "model_too_large"
    many = graph_of([node("Relu", ["x"], ["y"])] * 5001, (4,))
    assert code_of(many) == "model_too_large"


def test_opsets_types_inputs_and_outputs() -> None:
    for opset in (1, 6, 27, 99):
        model = good()
        model.opset_import[0].version = opset
        assert code_of(model) == "unsupported_opset"
    model = good()
    del model.opset_import[:]
    assert code_of(model) == "unsupported_opset"
    for dtype in (np.float64, np.float16, np.uint8):
        model = good()
        array = numpy_helper.from_array(normal(0, 4, 3).astype(dtype), "w")
        model.graph.initializer[0].CopyFrom(array)
        assert code_of(model) == "unsupported_dtype"
    model = good()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert code_of(model) == "unsupported_dtype"
    model = good()
    second = helper.make_tensor_value_info("x2", TensorProto.FLOAT, ["N", 4])
    model = graph_of([node("Add", ["x", "x2"], ["y"])], (4,))
    model.graph.input.append(second)
    assert code_of(model) == "invalid_network"
    model = good()
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    assert code_of(model) == "ambiguous_output"
    assert code_of(graph_of([node("Relu", ["x"], ["y"])], (4,), batch=0)) == "shape_mismatch"
    assert code_of(graph_of([node("Relu", ["x"], ["y"])], ("H",))) == "shape_mismatch"
    assert code_of(graph_of([node("Relu", ["x"], ["y"])], ())) == "shape_mismatch"
    assert code_of(graph_of([node("Relu", ["x"], ["y"])], (1,))) == "invalid_network"
    assert code_of(graph_of([node("Relu", ["x"], ["y"])], (2, 3))) == "shape_mismatch"


def test_what_old_and_foreign_exporters_add_is_harmless() -> None:
    """Initializers listed as inputs, another domain imported but unused, the domain's long name."""
    model = good()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    model.graph.node[0].domain = "ai.onnx"
    network = import_onnx_bytes(model.SerializeToString())
    assert network.input_shape == (4,)
    assert OnnxRuntimeModel(model.SerializeToString(), (4,))(normal(0, 2, 4)).shape == (2, 3)


def test_names_defined_twice() -> None:
    model = good()
    model.graph.initializer.append(numpy_helper.from_array(normal(0, 3), "b"))
    assert code_of(model) == "invalid_onnx"
    twice = [node("Relu", ["x"], ["y"]), node("Identity", ["x"], ["y"])]
    assert code_of(graph_of(twice, (4,))) == "invalid_onnx"


@pytest.mark.parametrize("place", ["input", "weight", "output left out", "node"])
def test_names_that_are_no_text(place: str) -> None:
    """Protobuf gives the bytes of a name that is no UTF-8, and no report holds bytes."""
    names = {"input": "xxxx", "weight": "wwww", "output left out": "oooo", "node": "nnnn"}
    model = graph_of(
        [
            node("MatMul", ["xxxx", "wwww"], ["y"], name="nnnn"),
            node("Shape", ["y"], ["oooo"]),
        ],
        (4,),
        {"wwww": normal(0, 4, 3)},
    )
    model.graph.input[0].name = "xxxx"
    model.graph.output.append(helper.make_tensor_value_info("oooo", TensorProto.INT64, None))
    written = model.SerializeToString()
    assert read_onnx_bytes(written).others == ("oooo",)
    assert code_of(written.replace(names[place].encode(), b"\xff\xfe\xff\xfe")) == "invalid_onnx"


def test_words_that_are_no_text() -> None:
    """An attribute's text may be any bytes."""
    for operator in ("Resize", "Pad", "Gelu"):
        word = {"Gelu": "approximate"}.get(operator, "mode")
        inputs = {"Resize": ["x", "", "s"], "Pad": ["x", "p"], "Gelu": ["x"]}[operator]
        constants = {"s": np.ones(4, np.float32), "p": np.array([0, 0, 1, 0, 0, 0, 0, 0])}
        model = graph_of(
            [node(operator, inputs, ["h"], **{word: b"\xff\xfe"}), node("Flatten", ["h"], ["y"])],
            (1, 2, 2),
            {name: constants[name] for name in inputs if name in constants},
            opset=20,
        )
        assert code_of(model) in ("invalid_onnx", "unsupported_operator")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    weight = normal(0, 4, 3)
    weight[1, 2] = value
    model = graph_of([node("Gemm", ["x", "w"], ["y"])], (4,), {"w": weight})
    assert code_of(model) == "non_finite_weights"


@pytest.mark.parametrize(
    ("read", "count"),
    [
        ([node("Reshape", ["r", "sizes"], ["y"])], 100_000),
        ([node("Slice", ["r", "many", "many", "many", "many"], ["y"])], 2_000_000),
        ([node("Slice", ["w", "many", "many"], ["v"]), node("Add", ["r", "v"], ["y"])], 4_000_000),
        ([node("Gather", ["r", "many"], ["y"], axis=1)], 4_000_000),
    ],
    ids=["a view", "places", "places of a constant", "gathered"],
)
def test_millions_of_axes_or_places_in_a_small_file(read: list[Any], count: int) -> None:
    """The product of five million sizes took half an hour, lists of places gigabytes."""
    given = {"c": np.int64(1000), "count": np.array([count]), "minus": np.array([-1])}
    made = [
        node("Expand", ["c", "count"], ["many"]),
        node("Concat", ["minus", "many"], ["sizes"], axis=0),
        node("Relu", ["x"], ["r"]),
        *read,
    ]
    data = graph_of(made, (2000,), {**given, "w": normal(0, 3)}).SerializeToString()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    assert caught.value.code in ("invalid_onnx", "model_too_large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000


def test_an_operator_whose_name_is_no_text() -> None:
    data = graph_of([node("Relu", ["x"], ["y"])], (3,)).SerializeToString()
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data.replace(b"Relu", b"Re\xff\xfe"))
    assert caught.value.code == "invalid_onnx"


@pytest.mark.parametrize("stored", [{"int32_data": [256, 1]}, {"raw_data": b"\x02\x01"}])
def test_truth_is_0_or_1(stored: dict[str, Any]) -> None:
    """Of 256 ONNX Runtime makes true, onnx's own reader false: a Where then takes another side."""
    sides = {"mask": np.array([[True, True]]), "zero": np.zeros((1, 2), np.float32)}
    model = graph_of([node("Where", ["mask", "x", "zero"], ["y"])], (2,), sides)
    (mask,) = (tensor for tensor in model.graph.initializer if tensor.name == "mask")
    mask.ClearField("raw_data")
    mask.MergeFrom(TensorProto(**stored))
    assert code_of(model) == "invalid_onnx"
