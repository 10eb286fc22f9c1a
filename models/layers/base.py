"""The base class of layers: ``forward``, output shape, and serialised form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from models.errors import ModelError

__all__ = [
    "ConstantLayer",
    "DeployedLayer",
    "Layer",
    "Shape",
    "ShapeError",
    "content_of",
    "parameter",
    "require_broadcast",
]

#: A shape without the batch.
Shape = tuple[int, ...]


class ShapeError(ModelError):
    """A layer was given an input whose shape it cannot take."""

    code = "shape_mismatch"


class Layer(nn.Module):
    """One operator of the graph: ``forward`` on batched tensors, shapes, and a JSON description."""

    kind: ClassVar[str]
    #: Number of inputs the layer takes; None: two or more.
    arity: ClassVar[int | None] = 1
    #: Whether the layer never stretches l2 distances, whatever its weights: by construction.
    one_lipschitz: ClassVar[bool] = False

    @classmethod
    def takes(cls, count: int) -> bool:
        """Whether the layer can have that many inputs."""
        return count >= 2 if cls.arity is None else count == cls.arity

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the output, without the batch, for inputs of these shapes. Raises ShapeError."""
        return shapes[0]

    def config(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON-able values; ``build`` takes it back."""
        return {}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        """The sub-graph that is deployed and certified in this layer's place, usually itself.

        For inputs of these shapes, in topological order; the last layer gives the output. A layer
        object that stands there several times is stored once. Layers on torch's ``meta`` device
        are asked too: which layers there are follows from shapes and ``config()`` alone, weights
        stay on ``meta``, and constants that nothing trained goes into are real, on the CPU.
        """
        return (DeployedLayer(self),)

    def project(self) -> None:
        """Bring the parameters back into their range, in place, after a training step."""

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Layer:
        """The layer from ``config()`` and its tensors by name (as in ``state_dict``)."""
        return cls(**tensors, **config)


class DeployedLayer(NamedTuple):
    """One layer of what is deployed in another one's place (``Layer.deployed``).

    inputs: positions among the inputs of the layer that is replaced, and names of earlier layers of
    the sub-graph; None: all inputs of the layer that is replaced, in order.
    name: unique in the sub-graph, without a dot; the last layer has none and takes the node's.
    """

    layer: Layer
    inputs: tuple[int | str, ...] | None = None
    name: str = ""


def as_float32(value: float) -> float:
    """The float32 nearest to ``value``: what an ONNX attribute can hold."""
    return float(torch.tensor(value, dtype=torch.float32))


def parameter(value: Tensor) -> nn.Parameter:
    """A layer's own copy of a tensor."""
    return nn.Parameter(value.detach().clone().contiguous())


def content_of(value: Tensor) -> bytes:
    """A digest of a tensor's numbers, to keep by it what takes long to compute of them.

    Not ``_version``: optimizers in one pass (``fused``) and writes to ``.data`` do not count it up.
    """
    return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).digest()


def require_broadcast(kind: str, value: Tensor, shape: Shape) -> None:
    """Raise ShapeError unless a constant broadcasts to exactly this shape."""
    try:
        result = tuple(torch.broadcast_shapes(shape, tuple(value.shape)))
    except RuntimeError:
        result = None
    if result != shape:
        raise ShapeError(
            f"{kind}: a constant of shape {tuple(value.shape)} does not broadcast to {shape}"
        )


class ConstantLayer(Layer):
    """An elementwise operator with a constant that broadcasts to the input's shape."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = parameter(value)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require_broadcast(self.kind, self.value, shape)
        return shape
