"""One random node on constants by its seed: computed as the importer does, and by the standard.

Shapes, element types, places and switches are odd on purpose: empty tensors, ranks that do not fit,
numbers at the ends of int64. What is not refused must be what ONNX's own reference computes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from models.errors import ModelError
from models.onnx.constant_rules import CONSTANT_OPERATORS
from models.onnx.constants import evaluate
from models.onnx.graph import FIXED_BATCH, Constant, Operation, Translation
from models.onnx.safety import OPSETS, OnnxLimits
from tests.models.differential.comparison import Outcome

__all__ = ["compare_constants", "evaluated"]

Array = NDArray[Any]

KINDS = sorted({*CONSTANT_OPERATORS} - {"Constant"})
SMALL, ODD = [-3, -2, -1, 0, 1, 2, 3], [-(2**63), -(2**31), -4, 0, 1, 5, 2**31, 2**63 - 1]
#: Operators whose further inputs are axes, sizes or places.
STEERED = (
    *("Expand", "Gather", "ReduceProd", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
    "Unsqueeze",
)
ELEMENT_TYPES = [1, 6, 7, 9, 10, 11]


def evaluated(node: NodeProto, opset: int, arrays: list[Array]) -> list[Array]:
    """What the importer makes of a node on these constants. Raises ModelError."""
    known = {name: Constant.of(array) for name, array in zip(node.input, arrays, strict=True)}
    operation = Operation.read(node, 0, opset, {**known})
    return [c.value for c in evaluate(operation, Translation(FIXED_BATCH, OnnxLimits(), Counter()))]


def compare_constants(seed: int) -> Outcome:
    """A node of this seed: refused with a code, or what the reference computes, or wrong."""
    rng = np.random.default_rng(seed)
    node, opset, arrays = _node(rng)
    kinds = [f"constant {node.op_type}"]
    try:
        found = evaluated(node, opset, arrays)
    except ModelError as error:
        status = "refused" if error.code != ModelError.code else "wrong"
        return Outcome(seed, status, error.code, kinds)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test looks for
        return Outcome(seed, "wrong", f"{type(error).__name__}: {error}", kinds)
    try:
        expected = _reference(node, opset, arrays)
    except Exception:  # noqa: BLE001 - the reference takes fewer forms than ONNX Runtime
        return Outcome(seed, "refused", "no_reference", kinds)
    for given, right in zip(found, expected, strict=True):
        if given.dtype != right.dtype or given.shape != right.shape:
            return Outcome(seed, "wrong", f"{given.dtype} {given.shape}, not {right.shape}", kinds)
        if not np.allclose(given, right, rtol=1e-6, atol=0.0, equal_nan=given.dtype.kind == "f"):
            return Outcome(seed, "wrong", "other numbers than the reference", kinds)
    return Outcome(seed, "accepted", "", kinds)


def _reference(node: NodeProto, opset: int, arrays: list[Array]) -> list[Array]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), None)
        for name, a in zip(node.input, arrays, strict=True)
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        results = ReferenceEvaluator(model).run(None, dict(zip(node.input, arrays, strict=True)))
    assert isinstance(results, list)
    return [np.asarray(result) for result in results]


def _node(rng: np.random.Generator) -> tuple[NodeProto, int, list[Array]]:
    while True:
        kind, opset = str(rng.choice(KINDS)), int(rng.choice(np.array(OPSETS)))
        if onnx.defs.has(kind, opset, ""):
            break
    schema = onnx.defs.get_schema(kind, opset, "")
    count = int(rng.integers(schema.min_input, min(schema.max_input, 5) + 1))
    arrays = [_tensor(rng)]
    if kind in ("ConstantOfShape", "Range"):
        arrays = [_places(rng, 1 if kind == "Range" else None) for _ in range(count)]
        arrays = [array.reshape(() if kind == "Range" else -1) for array in arrays]
    if kind in ("GatherND", "ScatterElements", "ScatterND"):
        return _placed(rng, kind, opset)
    if kind == "Einsum":
        equation = str(rng.choice(["ij->ji", "i,j->ij", "ij,j->ij", "ij,jk->ik", "ii->i", "ij,ij"]))
        return (
            helper.make_node(kind, ["n0", "n1"][:count], ["o0"], equation=equation),
            opset,
            [
                _tensor(rng, (2,) * int(rng.integers(1, 3))).astype(np.float32)
                for _ in range(min(count, 2))
            ],
        )
    if kind == "Where":
        chosen = _like(rng, arrays[0])
        arrays = [arrays[0].astype(bool if rng.random() < 0.9 else np.int64), chosen]
        arrays.append(_like(rng, chosen))
    while len(arrays) < count:
        arrays.append(_places(rng) if kind in STEERED else _like(rng, arrays[0]))
    node = helper.make_node(kind, [f"n{i}" for i in range(count)], ["o0"])
    if kind == "Split":
        node.output.extend(["o1", "o2"][: int(rng.integers(0, 3))])
    for name, declared in schema.attributes.items():
        if declared.required or rng.random() < 0.6:
            attribute = _attribute(rng, name, int(declared.type.value), arrays[0].ndim)
            if attribute is not None:
                node.attribute.append(attribute)
    return node, opset, arrays


def _placed(rng: np.random.Generator, kind: str, opset: int) -> tuple[NodeProto, int, list[Array]]:
    """Places on axes of a tensor, a few of them outside or twice, and what is put there."""
    data = _tensor(rng, tuple(int(n) for n in rng.integers(1, 5, int(rng.integers(1, 4)))))
    attributes: dict[str, Any] = {}
    if kind == "ScatterElements":
        shape = tuple(int(rng.integers(0, size + 1)) for size in data.shape)
        axis = int(rng.integers(-data.ndim, data.ndim))
        attributes["axis"], size = axis, data.shape[axis]
        places = rng.integers(-size, size + (rng.random() < 0.1), shape)
        after = shape
    else:
        width = int(rng.integers(1, data.ndim + 1))
        rows = tuple(int(n) for n in rng.integers(0, 3, int(rng.integers(0, 3))))
        sizes = np.array(data.shape[:width]) + int(rng.random() < 0.1)
        places = rng.integers(0, sizes, (*rows, width))
        after = (*rows, *data.shape[width:])
    if kind != "GatherND" and opset >= 16 and rng.random() < 0.2:
        attributes["reduction"] = str(rng.choice(["none", "add"]))
    arrays = [data, np.asarray(places, np.int64)]
    if kind != "GatherND":
        new = _tensor(rng, after)
        arrays.append(new if rng.random() < 0.1 else new.astype(data.dtype))
    names = [f"n{index}" for index in range(len(arrays))]
    return helper.make_node(kind, names, ["o0"], **attributes), opset, arrays


def _attribute(rng: np.random.Generator, name: str, kind: int, rank: int) -> AttributeProto | None:
    if kind == AttributeProto.INT:
        numbers = ELEMENT_TYPES if name == "to" else SMALL
        if name in ("start", "end"):  # the reference does not clamp them as the standard says
            numbers = [*range(-rank, rank + 1)]
        return helper.make_attribute(name, int(rng.choice(numbers)))
    if kind == AttributeProto.INTS:
        given = [int(n) for n in rng.choice(SMALL, int(rng.integers(1, 5)))]
        if name == "axes":  # the reference of old opsets reads them one after another
            given = sorted(n for n in given if n >= 0) or [0]
        return helper.make_attribute(name, given)
    if kind == AttributeProto.TENSOR:
        return helper.make_attribute(name, numpy_helper.from_array(_tensor(rng)))
    return None


def _tensor(rng: np.random.Generator, shape: tuple[int, ...] | None = None) -> Array:
    if shape is None:
        shape = tuple(int(n) for n in rng.choice([0, 1, 1, 2, 3], int(rng.integers(0, 5))))
    kind = rng.choice(["float32", "float32", "int64", "int32", "bool"])
    if kind == "float32":
        return np.asarray(rng.standard_normal(shape), np.float32)
    numbers = ODD if kind == "int64" and rng.random() < 0.3 else SMALL
    return np.asarray(rng.choice(np.array(numbers), shape)).astype(str(kind))


def _like(rng: np.random.Generator, first: Array) -> Array:
    """A tensor of nearly the same form: a size, the rank or the element type may be another."""
    shape = list(first.shape)
    if shape and rng.random() < 0.6:
        shape[int(rng.integers(len(shape)))] = int(rng.choice([0, 1, 2, 3]))
    if rng.random() < 0.2:
        shape = shape[1:] if rng.random() < 0.5 else [*shape, int(rng.choice([0, 1]))]
    made = _tensor(rng, tuple(shape))
    return made if rng.random() < 0.15 else made.astype(first.dtype)


def _places(rng: np.random.Generator, count: int | None = None) -> Array:
    size = int(rng.integers(0, 5)) if count is None else count
    numbers = ODD if rng.random() < 0.15 else SMALL
    return np.asarray(rng.choice(np.array(numbers), size)).astype(np.int64)
