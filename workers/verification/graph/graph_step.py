"""One step of a compiled network, and the error for a layer that no bound covers."""

from __future__ import annotations

from dataclasses import dataclass

from models.layers.base import Layer
from workers.verification.graph.affine import Affine, Norms

__all__ = ["GraphStep", "UnsupportedLayer"]


class UnsupportedLayer(ValueError):
    """A layer that no bound of this verifier covers."""

    code = "unsupported_layer"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class GraphStep:
    """One step: ``op`` (an affine map or a layer with rules) applied to earlier values.

    sources: positions of earlier values, 0 is the input; value i + 1 is step i's result.
    norms: of an affine map. overlap: largest number of windows that one input of a max pool is in.
    """

    name: str
    op: Affine | Layer
    sources: tuple[int, ...]
    shape: tuple[int, ...]
    norms: Norms | None = None
    overlap: int = 1
