"""The types that a graph declares of its values, which must be those that its nodes compute.

Runtimes differ on a graph where they are not: ONNX Runtime refuses another element type, and takes
another shape as it likes. Both are refused here by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from onnx import GraphProto, TensorProto, TypeProto, ValueInfoProto, helper

from models.errors import ModelError
from models.onnx.graph import Activation, Choice, Comparison, Normaliser, Squares, Value

__all__ = ["declared_values", "refuse_contradictions"]

#: (name, where it stands, declared type)
Declaration = tuple[str, str, TypeProto.Tensor]


def declared_values(graph: GraphProto) -> list[Declaration]:
    """Every tensor type that the graph declares of a value; an output may be a list of maps."""
    places: tuple[tuple[str, Iterable[ValueInfoProto]], ...] = (
        ("its inputs", graph.input),
        ("its value_info", graph.value_info),
        ("its outputs", graph.output),
    )
    found = []
    for where, values in places:
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind == "sequence_type" and where == "its outputs":
                if value.type.sequence_type.elem_type.WhichOneof("value") == "map_type":
                    continue
                kind = "sequence_type of other things than maps"
            if kind not in (None, "tensor_type"):
                raise ModelError(
                    f"the graph declares {value.name!r} in {where} as {kind}, not as a tensor",
                    code="invalid_onnx",
                )
            copy = TypeProto.Tensor.FromString(value.type.tensor_type.SerializeToString())
            found.append((value.name, where, copy))
    return found


def refuse_contradictions(declared: Iterable[Declaration], values: Mapping[str, Value]) -> None:
    """Raise ModelError (invalid_onnx) where a declared type is not the value's own.

    Element type, rank and sizes; the batch axis is left out, for which files say much. Values that
    the graph does not hold are nobody's.
    """
    for name, where, tensor in declared:
        value = values.get(name)
        if value is None:
            continue
        code, sizes = _own(value)
        if tensor.elem_type not in (TensorProto.UNDEFINED, code):
            _refuse(name, where, _type_name(tensor.elem_type), _type_name(code))
        if not tensor.HasField("shape"):
            continue
        said = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
        fits = len(said) == len(sizes) and all(
            None in (one, other) or one == other for one, other in zip(said, sizes, strict=True)
        )
        if not fits:
            _refuse(name, where, f"shape {_shown(said)}", f"shape {_shown(sizes)}")


def _own(value: Value) -> tuple[int, list[int | None]]:
    """Element type and sizes of a value; None where a size is the batch's or depends on it."""
    if isinstance(value, Activation) and not value.batched:
        return TensorProto.FLOAT, [*value.shape]
    if isinstance(value, Activation | Squares | Normaliser):
        if not isinstance(value, Activation):
            return TensorProto.FLOAT, [None, *value.shape]
        own: list[int | None] = [*value.shape[value.merged :]]
        own.insert(value.batch_axis, None)
        return TensorProto.FLOAT, own
    if isinstance(value, Comparison):
        code = TensorProto.FLOAT if value.number else TensorProto.BOOL
        return code, [None, *value.of.shape]
    if isinstance(value, Choice):
        return TensorProto.FLOAT, [None, *value.chosen.shape]
    code = helper.np_dtype_to_tensor_dtype(value.value.dtype)
    sizes = zip(value.value.shape, value.other.shape, strict=False)
    return code, [one if one == other else None for one, other in sizes]


def _refuse(name: str, where: str, said: str, is_: str) -> NoReturn:
    raise ModelError(
        f"the graph declares {name!r} in {where} with {said}, but it has {is_}",
        code="invalid_onnx",
        hint="export the model again, or delete the declaration and run "
        "onnx.shape_inference.infer_shapes",
    )


def _type_name(code: int) -> str:
    known = code in TensorProto.DataType.values()
    return f"element type {TensorProto.DataType.Name(code) if known else code}"


def _shown(sizes: Iterable[Any]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"
