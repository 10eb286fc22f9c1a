"""One step of a compiled network, and the error for a layer that no bound covers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from models.layers.base import Layer
from workers.verification.graph.affine import Affine, Norms

__all__ = ["GraphStep", "Section", "UnsupportedLayer"]


class UnsupportedLayer(ValueError):
    """A layer that no bound of this verifier covers."""

    code = "unsupported_layer"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


AnyLayer = TypeVar("AnyLayer", bound=Layer)

#: What is known of norms that nobody computed.
UNBOUNDED = Norms(math.inf, math.inf)


@dataclass(frozen=True)
class Section:
    """A part of the graph that is known as a whole: from value ``start`` to the last of ``steps``.

    In real arithmetic the last result moves by at most ``norm`` times as much as the start (l2),
    whatever the start is. Every way from the input to the last step leads through the start;
    ``steps`` are the positions of all steps between them, in order.

    whole: norms of all steps together as a map of the start, where they only lay an image around
    itself and the last one, a convolution, takes every number of the image in each of its taps at
    one place at most.
    """

    start: int
    steps: tuple[int, ...]
    norm: float
    whole: Norms | None = None


@dataclass(frozen=True)
class GraphStep:
    """One step: ``op`` (an affine map or a layer with rules) applied to earlier values.

    sources: positions of earlier values, 0 is the input; value i + 1 is step i's result.
    norms: of an affine map, infinite where nobody computed them. overlap: largest number of windows
    that one input of a pool is in. section: what is known of a part of the graph that ends here.
    also: another step that gives the same result from earlier values, whose box counts too.
    """

    name: str
    op: Affine | Layer
    sources: tuple[int, ...]
    shape: tuple[int, ...]
    norms: Norms = UNBOUNDED
    overlap: int = 1
    section: Section | None = None
    also: GraphStep | None = None

    @property
    def kind(self) -> str:
        """What messages call the operator."""
        return self.op.kind if isinstance(self.op, Layer) else type(self.op).__name__.lower()

    @property
    def affine(self) -> Affine:
        """``op`` as an affine map. Raises UnsupportedLayer where it is none."""
        if not isinstance(self.op, Affine):
            raise UnsupportedLayer(f"the layer {self.kind!r} ({self.name}) is no affine map")
        return self.op

    def layer(self, kind: type[AnyLayer]) -> AnyLayer:
        """``op`` as a layer of this class. Raises UnsupportedLayer where it is none."""
        if not isinstance(self.op, kind):
            raise UnsupportedLayer(f"the step {self.name} ({self.kind}) is no {kind.__name__}")
        return self.op
