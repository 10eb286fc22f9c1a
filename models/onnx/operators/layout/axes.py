"""Which axes an ONNX operator names, without the batch."""

from __future__ import annotations

from models.layers.kinds import Shape
from models.onnx.graph import Operation

__all__ = ["reduced_axes", "without"]


def reduced_axes(operation: Operation, rank: int | None = None) -> list[int]:
    """Axes without the batch, sorted, from the attribute or the second input; none: identity."""
    rank = operation.activation().rank if rank is None else rank
    given = operation.integers(1)
    if given is None:
        given = operation.attributes.get("axes")
    if not given:
        if operation.attributes.get("noop_with_empty_axes"):
            return []
        operation.refuse_batch("without axes it takes the batch axis along")
    axes = sorted(operation.axes(given, rank))
    if axes[0] == 0:
        operation.refuse_batch(f"axes {axes} name the batch axis")
    return [axis - 1 for axis in axes]


def without(shape: Shape, axis: int) -> Shape:
    """The shape without one of its axes."""
    return (*shape[:axis], *shape[axis + 1 :])
