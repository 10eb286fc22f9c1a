"""Dense ONNX operators: Gemm, MatMul with a constant matrix on either side, LinearClassifier."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from models.layers.kinds import Conv2d, Linear, Multiply, Permute, Reshape, Shape
from models.onnx.graph import Activation, Constant, Operation, Translation
from models.onnx.operators.normalized.attention import matmul_of_two

__all__ = ["gemm", "gemm_at_every_place", "linear_classifier", "matmul", "vector_matmul"]

#: Largest alpha: it multiplies the error of underflow in a sum, which stays far below 2^-120.
LARGEST_ALPHA = 2.0**20


def gemm(operation: Operation, translation: Translation) -> Activation:
    """alpha * x @ B + beta * C with constant B and C, alpha a power of two: one dense layer.

    ONNX Runtime multiplies SUMS of x @ B by alpha. A factor below 1 is a layer of its own, as those
    sums may overflow where the result does not. A power of two from 1 on goes into the weights: the
    larger numbers are the ones that overflow. Other factors round as no layers of ours do.
    """
    x = operation.activation(0)
    if operation.attributes["transA"]:
        operation.refuse_batch("transA = 1 moves the batch axis")
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
    if constant is not None:
        row = _row(operation, constant, weight.shape[0])
        # ONNX Runtime multiplies C by beta in float32 before anything is added to it.
        scaled = row if beta == 1 else row * beta
        bias = scaled if beta != 0 else None
    into_weights = 1 <= abs(alpha) <= LARGEST_ALPHA
    if into_weights:
        weight = _scaled(operation, weight, alpha)
    elif abs(alpha) > 1:
        _refuse_alpha(operation, alpha)
    elif bias is not None:
        bias = _scaled(operation, bias, 1 / alpha if alpha else alpha)
    elif alpha and abs(math.frexp(float(alpha))[0]) != 0.5:
        # ONNX Runtime multiplies the sums of stretches by it, each of which is rounded, and they
        # may cancel; what a factor behind the whole sum rounds is a share of the result.
        _refuse_alpha(operation, alpha)
    dense = Linear(
        translation.weight(operation, weight),
        None if bias is None else translation.weight(operation, bias),
    )
    result = translation.emit(operation, dense, x)
    if into_weights:
        return result
    factor = translation.weight(operation, np.asarray(alpha))
    return translation.emit(operation, Multiply(factor), result)


def gemm_at_every_place(operation: Operation, translation: Translation) -> Activation:
    """x @ B + C of rows that are places of samples, [N, ..., k]: one matrix at each of them."""
    x, attributes = operation.activation(0), operation.attributes
    if not operation.batched and len(x.shape) != 2:
        operation.refuse("both factors must be matrices", code="shape_mismatch")
    matrix, constant = operation.constant(1), operation.constant(2)
    if matrix is None or matrix.ndim != 2 or attributes["transA"]:
        operation.refuse_batch("only one matrix for all rows is supported")
    if attributes["alpha"] != 1.0 or attributes["beta"] != 1.0:
        operation.refuse("alpha and beta other than 1 are not supported here")
    weight = matrix if attributes["transB"] else matrix.T
    if weight.shape[1] != x.shape[-1]:
        operation.refuse(f"a matrix of shape {matrix.shape} does not fit", code="shape_mismatch")
    row = None if constant is None else _row(operation, constant, weight.shape[0])
    flat = _view(operation, translation, x, (math.prod(x.shape[:-1]), x.shape[-1]))
    result = _at_every_place(operation, translation, flat, weight, row, left=False)
    return _view(operation, translation, result, (*x.shape[:-1], len(weight)))


def _scaled(operation: Operation, array: NDArray[Any], factor: np.float32) -> NDArray[Any]:
    """factor * array for a power of two, exactly: every sum then rounds as the unscaled one."""
    if factor == 1 or array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        scaled: NDArray[Any] = array * factor
    exact = (scaled.astype(np.float64) == array.astype(np.float64) * float(factor)).all()
    alpha = np.float32(operation.attributes["alpha"])
    if abs(math.frexp(float(alpha))[0]) != 0.5 or not exact:
        _refuse_alpha(operation, alpha)
    return scaled


def _refuse_alpha(operation: Operation, alpha: np.float32) -> NoReturn:
    operation.refuse(
        f"alpha = {alpha} is not supported here", hint="scale the weights before the export"
    )


def _row(operation: Operation, constant: NDArray[Any], size: int) -> NDArray[Any]:
    """C of a Gemm as one row [size], the same for the whole batch."""
    if constant.ndim > 2 or (constant.ndim == 2 and constant.shape[0] != 1):
        operation.refuse_batch(f"C of shape {constant.shape} differs over the batch")
    if constant.size not in (1, size):
        operation.refuse(f"C of shape {constant.shape} does not fit {size}", code="shape_mismatch")
    return np.broadcast_to(constant.reshape(-1), (size,)).copy()


def matmul(operation: Operation, translation: Translation) -> Activation:
    """x @ W for a constant matrix W and x [N, ..., k], or W @ x for x [N, k, b]; or of two
    activations [N, ..., m, k] and [N, ..., k, n]."""
    if all(isinstance(value, Activation) for value in operation.inputs):
        return matmul_of_two(operation, translation)
    left = isinstance(operation.input(0), Constant)
    x, array = operation.activation(1 if left else 0), operation.constant(0 if left else 1)
    assert array is not None
    if (left and x.rank == 2 and array.ndim > 0) or array.ndim > max(x.rank, 2):
        operation.refuse_batch(
            f"a constant of shape {array.shape} with an activation of rank {x.rank}"
        )
    if array.ndim == x.rank > 2 and array.shape[0] != 1:
        operation.refuse_batch(f"a constant of shape {array.shape} differs over the batch")
    while array.ndim > 2 and array.shape[0] == 1 and array.ndim <= x.rank:
        array = array[0]
    rank_ok = len(x.shape) == 2 if left else len(x.shape) >= 1
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
    places, kept = math.prod(x.shape) // contracted, x.shape[:-1]
    if places != 1:
        if len(x.shape) > 2:
            x = _view(operation, translation, x, (places, contracted))
        result = _at_every_place(operation, translation, x, weight, left=left)
        return result if left else _view(operation, translation, result, (*kept, len(weight)))
    tensor = translation.weight(operation, weight)
    flat = _view(operation, translation, x, (contracted,))
    result = translation.emit(operation, Linear(tensor), flat)
    translation.open_matmuls[operation.outputs[0]] = len(translation.rows) - 1
    out = weight.shape[0]
    return _view(operation, translation, result, (out, 1) if left else (*kept, out))


def vector_matmul(operation: Operation, translation: Translation) -> Activation:
    """x @ W or W @ x for a constant matrix W and x [..., k] without a batch axis; x @ y of two."""
    if all(isinstance(value, Activation) for value in operation.inputs):
        return matmul_of_two(operation, translation)
    left = isinstance(operation.input(0), Constant)
    x, array = operation.activation(1 if left else 0), operation.constant(0 if left else 1)
    assert array is not None
    if array.ndim == 2 and len(x.shape) > 1:
        # Of several axes it is as of a batch of one row, with the row's axis in front.
        return matmul(operation, translation)
    if array.ndim != 2 or len(x.shape) != 1:
        operation.refuse(f"a constant of shape {array.shape} with a value of shape {x.shape}")
    weight = array if left else array.T
    if weight.shape[1] != x.shape[0]:
        operation.refuse(
            f"a matrix of shape {array.shape} does not fit {x.shape}", code="shape_mismatch"
        )
    result = translation.emit(operation, Linear(translation.weight(operation, weight)), x)
    translation.open_matmuls[operation.outputs[0]] = len(translation.rows) - 1
    return result


def linear_classifier(operation: Operation, translation: Translation) -> list[Activation]:
    """LinearClassifier (scikit-learn): x @ coefficients^T + intercepts, as scores alone.

    Two outputs: labels, which nothing may read, and the scores [N, classes].
    """
    x, attributes = operation.activation(), operation.attributes
    if attributes["post_transform"] != b"NONE":
        operation.refuse(
            f"post_transform {attributes['post_transform'].decode(errors='replace')!r} is not "
            "supported here: only SOFTMAX, and LOGISTIC of two opposite scores, at the very end",
            hint="export the raw scores (skl2onnx: raw_scores=True)",
        )
    if len(operation.outputs) != 2 or translation.uses[operation.outputs[0]]:
        operation.refuse("only its second output, the scores, is supported")
    intercepts = np.array(attributes.get("intercepts", ()), dtype=np.float32)
    weights = np.array(attributes["coefficients"], dtype=np.float32)
    classes = len(intercepts)
    if len(x.shape) != 1 or classes < 2 or weights.size != classes * x.shape[0]:
        operation.refuse(
            f"{weights.size} coefficients and {classes} intercepts do not fit inputs of shape "
            f"{x.shape}: two classes or more are supported, each with scores of its own",
            code="shape_mismatch",
        )
    layer = Linear(
        translation.weight(operation, weights.reshape(classes, -1)),
        translation.weight(operation, intercepts),
    )
    scores = translation.emit(operation, layer, x)
    return [scores, scores]


def _at_every_place(
    operation: Operation,
    translation: Translation,
    x: Activation,
    weight: NDArray[Any],
    row: NDArray[Any] | None = None,
    *,
    left: bool,
) -> Activation:
    """One matrix applied at several places is a convolution with a 1 x 1 window."""
    tensor = translation.weight(operation, weight[:, :, None, None])
    bias = None if row is None else translation.weight(operation, row)
    if not left:
        x = translation.emit(operation, Permute(axes=(1, 0)), x)
    x = _view(operation, translation, x, (*x.shape, 1))
    x = translation.emit(operation, Conv2d(tensor, bias), x)
    x = _view(operation, translation, x, x.shape[:2])
    return x if left else translation.emit(operation, Permute(axes=(1, 0)), x)


def _view(
    operation: Operation, translation: Translation, x: Activation, shape: Shape
) -> Activation:
    if shape == x.shape:
        return x
    return translation.emit(operation, Reshape(shape=shape), x)
