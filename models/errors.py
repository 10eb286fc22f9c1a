"""Errors of uploaded models.

    ModelError                       a code for machines, a sentence for people, what to do about it
    +-- layers.ShapeError            shape_mismatch
    +-- network.NetworkError         invalid_network

Codes in use: invalid_onnx, external_data, unsupported_operator, unsupported_opset,
unsupported_dtype, shape_mismatch, batch_dependent, invalid_network, non_finite_weights,
model_too_large, invalid_checkpoint, pickle_refused, unsafe_checkpoint, architecture_mismatch,
unknown_architecture, invalid_architecture, runtime_failed.
"""

from __future__ import annotations

__all__ = ["ModelError"]


class ModelError(ValueError):
    """A model that is refused: ``code`` for machines, ``message`` and ``hint`` for people."""

    code = "invalid_model"

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code
