"""Curved activations that are one ONNX operator: ELU and its kin, GELU, Mish, waves and others."""

from __future__ import annotations

import torch

from models.errors import ModelError
from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    GELU_FORMS,
    LARGEST_FACTOR,
    SELU,
    Atan,
    Cos,
    Erf,
    HardSwish,
    Mish,
    SiLU,
    Sin,
    Softsign,
)
from models.layers.kinds import Layer, Multiply
from models.onnx.graph import Activation, Operation, Translation

__all__ = [
    "atan",
    "celu",
    "cos",
    "elu",
    "erf",
    "gelu",
    "hard_swish",
    "mish",
    "scaled_silu",
    "selu",
    "sin",
    "softsign",
    "swish",
    "times",
]


def _emit(
    operation: Operation, translation: Translation, kind: type[Layer], **given: float
) -> Activation:
    try:
        layer = kind(**given)
    except ModelError as error:
        operation.refuse(str(error))
    return translation.emit(operation, layer, operation.activation())


def elu(operation: Operation, translation: Translation) -> Activation:
    """Elu: x where x > 0, alpha (exp(x) - 1) elsewhere; alpha from 0.001 to 1000."""
    return _emit(operation, translation, ELU, alpha=float(operation.attributes["alpha"]))


def selu(operation: Operation, translation: Translation) -> Activation:
    """Selu: gamma x where x > 0, gamma alpha (exp(x) - 1) elsewhere; both from 0.001 to 1000."""
    alpha, gamma = (float(operation.attributes[name]) for name in ("alpha", "gamma"))
    return _emit(operation, translation, SELU, alpha=alpha, gamma=gamma)


def celu(operation: Operation, translation: Translation) -> Activation:
    """Celu: x where x > 0, alpha (exp(x / alpha) - 1) elsewhere; alpha from 0.001 to 1000."""
    return _emit(operation, translation, CELU, alpha=float(operation.attributes["alpha"]))


def softsign(operation: Operation, translation: Translation) -> Activation:
    """x / (1 + |x|), elementwise."""
    return _emit(operation, translation, Softsign)


def erf(operation: Operation, translation: Translation) -> Activation:
    """Erf, elementwise; x (1 + erf(x / sqrt 2)) / 2 is read as one GELU, however it is written."""
    return _emit(operation, translation, Erf)


def atan(operation: Operation, translation: Translation) -> Activation:
    """The inverse of the tangent, elementwise."""
    return _emit(operation, translation, Atan)


def sin(operation: Operation, translation: Translation) -> Activation:
    """The sine of x in radians, elementwise, up to 2^20 in size."""
    return _emit(operation, translation, Sin)


def cos(operation: Operation, translation: Translation) -> Activation:
    """The cosine of x in radians, elementwise, up to 2^20 in size."""
    return _emit(operation, translation, Cos)


def gelu(operation: Operation, translation: Translation) -> Activation:
    """Gelu, exact or by tanh."""
    form = operation.attributes.get("approximate", b"none").decode(errors="replace")
    if form not in GELU_FORMS:
        operation.refuse(f"approximate = {form!r}", code="invalid_onnx")
    return translation.emit(operation, GELU(approximate=form), operation.activation())


def hard_swish(operation: Operation, translation: Translation) -> Activation:
    """x min(max(x / 6 + 1/2, 0), 1), elementwise."""
    return _emit(operation, translation, HardSwish)


def mish(operation: Operation, translation: Translation) -> Activation:
    """x tanh(log(1 + exp(x))), elementwise."""
    return _emit(operation, translation, Mish)


def swish(operation: Operation, translation: Translation) -> Activation:
    """x sigmoid(alpha x), elementwise; alpha from 0.001 to 1000 in size."""
    alpha = float(operation.attributes["alpha"])
    if not 1.0 / LARGEST_FACTOR <= abs(alpha) <= LARGEST_FACTOR:
        operation.refuse(f"alpha = {alpha}: only 0.001 to 1000 in size is supported")
    return scaled_silu(operation, translation, operation.activation(), alpha, 1.0)


def scaled_silu(
    operation: Operation, translation: Translation, x: Activation, inner: float, outer: float
) -> Activation:
    """outer x sigmoid(inner x) = (outer / inner) SiLU(inner x)."""
    x = times(operation, translation, x, inner)
    x = translation.emit(operation, SiLU(), x)
    return times(operation, translation, x, outer / inner)


def times(
    operation: Operation, translation: Translation, x: Activation, factor: float
) -> Activation:
    """factor x."""
    if factor == 1.0:
        return x
    return translation.emit(operation, Multiply(torch.tensor(factor, dtype=torch.float32)), x)
