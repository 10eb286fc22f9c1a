"""What the ONNX standard says of a node on constants, before ONNX Runtime runs it.

ONNX Runtime checks less than the standard asks for where a tensor is empty: a Concat of [3, 0] and
[2, 2] gives numbers that stand in neither, one of [0] and [3, 2] ends the process. So the
standard's own inference of shapes goes first, on the shapes (and small vectors of integers) that
are there.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, TypeProto, helper, numpy_helper

from models.onnx.constant_rules import Array, Arrays

__all__ = ["inferred_shapes"]

#: Integers of so many elements may be axes, sizes or places, which decide about shapes.
_STEERING = 1 << 10

Sizes = tuple[int, ...]


def inferred_shapes(model: ModelProto, arrays: Arrays) -> list[Sizes | None]:
    """The shape of each named output of a one-node model, None where the standard leaves it open.

    ``arrays``: its inputs, None where one is left out; graph input ``i<k>`` is the k-th of them.
    Raises ValueError where the standard forbids the node on inputs of these shapes.
    """
    known = ModelProto.FromString(model.SerializeToString())
    del known.graph.input[:]
    for index, array in enumerate(arrays):
        if array is None:
            continue
        name = f"i{index}"
        if array.dtype.kind == "i" and array.size <= _STEERING:
            known.graph.initializer.append(numpy_helper.from_array(_plain(array), name))
        else:
            code = helper.np_dtype_to_tensor_dtype(array.dtype)
            known.graph.input.append(helper.make_tensor_value_info(name, code, array.shape))
    try:
        found = onnx.shape_inference.infer_shapes(known, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"shapes {_listed(arrays)}: {lines[-1][-200:]}") from error
    return [_sizes(value.type.tensor_type) for value in found.graph.output]


def _plain(array: Array) -> Array:
    """The same array in row-major order, with the shape that it has (also of rank 0)."""
    return array.copy(order="C")


def _listed(arrays: Arrays) -> list[list[int]]:
    return [list(array.shape) for array in arrays if array is not None][:8]


def _sizes(tensor: TypeProto.Tensor) -> Sizes | None:
    # No shape at all is not the shape () of one number: old opsets do not know a negative axis.
    if not tensor.HasField("shape"):
        return None
    if not all(size.HasField("dim_value") for size in tensor.shape.dim):
        return None
    return tuple(size.dim_value for size in tensor.shape.dim)
