"""Dense ONNX operators: Gemm and MatMul with a constant matrix on either side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.layers import Conv2d, Linear, Multiply, Permute, Reshape, Shape
from models.onnx_graph import Activation, Constant, Operation, Translation

__all__ = ["gemm", "matmul"]


def gemm(operation: Operation, translation: Translation) -> Activation:
    """alpha * x @ B + beta * C with constant B and C: one dense layer.

    A factor alpha that scales the weights exactly (a power of two) goes into them; another one is
    a layer of its own, and is refused together with C, where no layer rounds as the operator does.
    """
    x = operation.activation(0)
    if operation.attributes["transA"]:
        operation.refuse("transA = 1 moves the batch axis", code="shape_mismatch")
    matrix, constant = operation.constant(1), operation.constant(2)
    assert matrix is not None
    if matrix.ndim != 2 or len(x.shape) != 1:
        operation.refuse("both factors must be matrices", code="shape_mismatch")
    weight = matrix if operation.attributes["transB"] else matrix.T
    alpha = np.float32(operation.attributes["alpha"])
    beta = np.float32(operation.attributes["beta"])
    if not (np.isfinite(alpha) and np.isfinite(beta)):
        operation.refuse("alpha or beta is NaN or infinite", code="non_finite_weights")
    bias = None
    if constant is not None and beta != 0:
        bias = _row(operation, constant, weight.shape[0])
        # ONNX Runtime multiplies C by beta in float32 before anything is added to it.
        bias = bias if beta == 1 else bias * beta
    scaled, exact = _scaled(weight, alpha)
    if not exact and bias is not None:
        operation.refuse(
            f"alpha = {alpha} together with C is not supported",
            hint="scale the weights before the export",
        )
    dense = Linear(
        translation.weight(operation, scaled if exact else weight),
        None if bias is None else translation.weight(operation, bias),
    )
    result = translation.emit(operation, dense, x)
    if exact:
        return result
    factor = translation.weight(operation, np.asarray(alpha))
    return translation.emit(operation, Multiply(factor), result)


def _scaled(weight: NDArray[Any], alpha: np.float32) -> tuple[NDArray[Any], bool]:
    """alpha * weight, and whether every sum with it rounds as the unscaled one does."""
    if alpha == 1 or weight.dtype != np.float32:
        return weight, True
    scaled = weight * alpha
    power_of_two = abs(math.frexp(float(alpha))[0]) == 0.5
    undone = bool((scaled.astype(np.float64) == weight.astype(np.float64) * float(alpha)).all())
    return scaled, power_of_two and undone


def _row(operation: Operation, constant: NDArray[Any], size: int) -> NDArray[Any]:
    """C of a Gemm as one row [size], the same for the whole batch."""
    if constant.ndim > 2 or (constant.ndim == 2 and constant.shape[0] != 1):
        operation.refuse(
            f"C of shape {constant.shape} differs over the batch", code="shape_mismatch"
        )
    if constant.size not in (1, size):
        operation.refuse(f"C of shape {constant.shape} does not fit {size}", code="shape_mismatch")
    return np.broadcast_to(constant.reshape(-1), (size,)).copy()


def matmul(operation: Operation, translation: Translation) -> Activation:
    """x @ W or W @ x for a constant matrix W and x [N, k], [N, a, k] or [N, k, b]."""
    left = isinstance(operation.input(0), Constant)
    x, array = operation.activation(1 if left else 0), operation.constant(0 if left else 1)
    assert array is not None
    while array.ndim > 2 and array.shape[0] == 1 and array.ndim <= x.rank:
        array = array[0]
    rank_ok = len(x.shape) == 2 if left else len(x.shape) in (1, 2)
    if array.ndim != 2 or not rank_ok:
        operation.refuse(
            f"a constant of shape {array.shape} with an activation of rank {x.rank} "
            "is not supported",
            hint="the constant must be a matrix and the batch axis must stay apart",
        )
    weight = array if left else array.T
    contracted = x.shape[0] if left else x.shape[-1]
    if weight.shape[1] != contracted:
        operation.refuse(
            f"a matrix of shape {array.shape} does not fit [batch, {', '.join(map(str, x.shape))}]",
            code="shape_mismatch",
        )
    places = math.prod(x.shape) // contracted
    if places != 1:
        return _at_every_place(operation, translation, x, weight, left=left)
    tensor = translation.weight(operation, weight)
    flat = _view(operation, translation, x, (contracted,))
    result = translation.emit(operation, Linear(tensor), flat)
    translation.open_matmuls[operation.outputs[0]] = len(translation.rows) - 1
    out = weight.shape[0]
    shape = {1: (out,), 2: (out, 1) if left else (1, out)}[len(x.shape)]
    return _view(operation, translation, result, shape)


def _at_every_place(
    operation: Operation,
    translation: Translation,
    x: Activation,
    weight: NDArray[Any],
    *,
    left: bool,
) -> Activation:
    """One matrix applied at several places is a convolution with a 1 x 1 window."""
    tensor = translation.weight(operation, weight[:, :, None, None])
    if not left:
        x = translation.emit(operation, Permute(axes=(1, 0)), x)
    x = _view(operation, translation, x, (*x.shape, 1))
    x = translation.emit(operation, Conv2d(tensor), x)
    x = _view(operation, translation, x, x.shape[:2])
    return x if left else translation.emit(operation, Permute(axes=(1, 0)), x)


def _view(
    operation: Operation, translation: Translation, x: Activation, shape: Shape
) -> Activation:
    if shape == x.shape:
        return x
    return translation.emit(operation, Reshape(shape=shape), x)
