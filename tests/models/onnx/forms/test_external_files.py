"""Exports of several files become one from the uploaded bytes alone, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from models.errors import ModelError
from models.onnx.forms.external import self_contained
from models.onnx.importer import import_onnx_bytes
from models.onnx.safety import OnnxLimits
from tests.models.onnx.external_data import (
    in_constant,
    in_function,
    in_sparse_indices,
    in_sparse_initializer,
    in_subgraph,
    in_training,
    node,
)
from tests.models.onnx.graphs import graph_of, normal


def model() -> ModelProto:
    """Two dense layers: four tensors."""
    constants = {"w": normal(0, 4, 6), "b": normal(1, 6), "v": normal(2, 6, 3), "c": normal(3, 3)}
    nodes = [node("Gemm", ["x", "w", "b"], ["h"]), node("Relu", ["h"], ["r"])]
    return graph_of([*nodes, node("Gemm", ["r", "v", "c"], ["y"])], (4,), constants)


def split(folder: Path, *, files: int = 1) -> tuple[ModelProto, dict[str, Path]]:
    """The model with its tensors laid out, with gaps, in so many files."""
    whole = model()
    contents = [bytearray(b"gap") for _ in range(files)]
    for index, tensor in enumerate(whole.graph.initializer):
        place = contents[index % files]
        entries = {
            "location": f"m.onnx.data{index % files}",
            "offset": str(len(place)),
            "length": str(len(tensor.raw_data)),
        }
        place += tensor.raw_data + b"."
        point(tensor, entries)
    paths = {}
    for index, content in enumerate(contents):
        paths[f"m.onnx.data{index}"] = folder / f"blob{index}"
        paths[f"m.onnx.data{index}"].write_bytes(content)
    return whole, paths


def test_an_empty_file_that_no_tensor_names_may_be_sent_too(tmp_path: Path) -> None:
    """torch writes one beside a model whose weights are few enough to stay inside."""
    data, empty = model().SerializeToString(), tmp_path / "blob"
    empty.write_bytes(b"")
    found = self_contained(data, {"m.onnx.data": empty})
    assert import_onnx_bytes(found).graph_digest() == import_onnx_bytes(data).graph_digest()
    empty.write_bytes(b"0")
    with pytest.raises(ModelError, match="no tensor of the model lies in"):
        self_contained(data, {"m.onnx.data": empty})


def point(tensor: TensorProto, entries: dict[str, str]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 4))
def test_the_tensors_of_any_number_of_files_are_the_models_own(tmp_path: Path, files: int) -> None:
    apart, paths = split(tmp_path, files=files)
    found = self_contained(apart.SerializeToString(), paths)
    assert import_onnx_bytes(found).graph_digest() == (
        import_onnx_bytes(model().SerializeToString()).graph_digest()
    )
    assert b"m.onnx.data" not in found


def test_what_onnx_itself_writes_is_read(tmp_path: Path) -> None:
    onnx.save_model(
        model(), tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    data = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    assert caught.value.code == "external_data"
    assert "m.onnx.data" in str(caught.value)
    assert "model_data" in caught.value.hint
    found = self_contained(data, {"m.onnx.data": tmp_path / "m.onnx.data"})
    again = import_onnx_bytes(found)
    assert again.graph_digest() == import_onnx_bytes(model().SerializeToString()).graph_digest()


def change(**entries: str) -> Callable[[ModelProto], None]:
    """Say something else of where the first tensor lies."""

    def apply(whole: ModelProto) -> None:
        tensor = whole.graph.initializer[0]
        point(tensor, {e.key: e.value for e in tensor.external_data} | entries)

    return apply


def doubled(whole: ModelProto) -> None:
    entry = whole.graph.initializer[0].external_data.add()
    entry.key, entry.value = "offset", "3"


def inside_too(whole: ModelProto) -> None:
    whole.graph.initializer[0].float_data.append(1.0)


def reshaped(whole: ModelProto) -> None:
    whole.graph.initializer[0].dims[:] = [4, 5]


def negative(whole: ModelProto) -> None:
    whole.graph.initializer[0].dims[:] = [-4, -6]


def huge(whole: ModelProto) -> None:
    whole.graph.initializer[0].dims[:] = [2**40, 2**40]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (change(location="other.data"), "missing_model_data"),
        (change(location="/etc/passwd"), "missing_model_data"),
        (change(location="../m.onnx.data0"), "missing_model_data"),
        (change(location="./m.onnx.data0"), "missing_model_data"),
        (change(location="M.onnx.data0"), "missing_model_data"),
        (change(location=""), "missing_model_data"),
        (change(offset="100000"), "invalid_model_data"),
        (change(offset="-1"), "invalid_model_data"),
        (change(offset="1e3"), "invalid_model_data"),
        (change(offset="9" * 40), "invalid_model_data"),
        (change(length="95"), "invalid_model_data"),
        (change(length="97"), "invalid_model_data"),
        (change(length=""), "invalid_model_data"),
        (change(basepath="/"), "invalid_model_data"),
        (doubled, "invalid_model_data"),
        (inside_too, "invalid_model_data"),
        (reshaped, "invalid_model_data"),
        (negative, "invalid_onnx"),
        (huge, "invalid_model_data"),
    ],
)
def test_refused(damage: Callable[[ModelProto], None], code: str, tmp_path: Path) -> None:
    whole, paths = split(tmp_path)
    damage(whole)
    with pytest.raises(ModelError) as caught:
        self_contained(whole.SerializeToString(), paths)
    assert caught.value.code == code
    assert str(caught.value)


def test_a_file_that_no_tensor_names_is_refused(tmp_path: Path) -> None:
    whole, paths = split(tmp_path)
    with pytest.raises(ModelError, match="'extra'"):
        self_contained(whole.SerializeToString(), {**paths, "extra": tmp_path / "blob0"})
    with pytest.raises(ModelError, match="no tensor"):
        self_contained(model().SerializeToString(), paths)


def test_the_sum_is_limited_before_anything_is_copied(tmp_path: Path) -> None:
    """Many tensors may name the same bytes: a small upload that would become a large one."""
    whole, paths = split(tmp_path)
    first = whole.graph.initializer[0]
    for index in range(2000):
        other = whole.graph.initializer.add()
        other.CopyFrom(first)
        other.name = f"copy{index}"
    data = whole.SerializeToString()
    with pytest.raises(ModelError) as caught:
        self_contained(data, paths, OnnxLimits(file_bytes=len(data) + 100_000))
    assert caught.value.code == "model_too_large"


@pytest.mark.parametrize(
    "place",
    [in_constant, in_sparse_initializer, in_sparse_indices, in_subgraph, in_function, in_training],
)
def test_only_initializers_may_lie_outside(
    place: Callable[[ModelProto, str], None], tmp_path: Path
) -> None:
    whole, paths = split(tmp_path)
    place(whole, "m.onnx.data0")
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(self_contained(whole.SerializeToString(), paths))
    assert caught.value.code == "external_data"


def test_a_file_that_ends_early_is_noticed(tmp_path: Path) -> None:
    whole, paths = split(tmp_path)
    content = paths["m.onnx.data0"].read_bytes()
    paths["m.onnx.data0"].write_bytes(content[:-20])
    with pytest.raises(ModelError, match="which has") as caught:
        self_contained(whole.SerializeToString(), paths)
    assert caught.value.code == "invalid_model_data"
