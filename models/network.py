"""The network: an explicit graph of layers, the same for verification and training.

It is stored as a JSON description and one safetensors file. ``graph_digest`` identifies what was
certified: architecture, weights and normalisation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.layers.base import DeployedLayer
from models.layers.kinds import (
    LAYER_KINDS,
    AvgPool2d,
    Conv2d,
    Layer,
    Linear,
    MaxPool2d,
    Normalize,
    Shape,
    ShapeError,
)

__all__ = ["INPUT", "Network", "NetworkError", "Node", "multiplications", "per_channel"]

#: Name under which a node refers to the network's input.
INPUT = "input"


class NetworkError(ModelError):
    """A graph that cannot be a network: unknown layer, missing input, wrong shape, not finite."""

    code = "invalid_network"


#: Name of a node, its layer, names of its inputs.
Row = tuple[str, Layer, Iterable[str]]


@dataclass(frozen=True)
class Node:
    """One node: the layer ``layers[name]`` applied to the outputs of ``inputs``.

    ``shape`` is the output's shape without the batch.
    """

    name: str
    inputs: tuple[str, ...]
    shape: Shape


#: Pixels of a channel, 4 x 4: a flat input with fewer to a value is a table, no image.
SMALLEST_PLANE = 16


def per_channel(values: Iterable[float], shape: Shape) -> Tensor:
    """One value per channel as a float32 tensor that broadcasts to ``shape`` (without the batch).

    Channels are the first axis (NCHW) or the last (NHWC); of a flattened image [n] or [n, 1] with
    more than one channel, equal stretches (flattened NCHW) of at least ``SMALLEST_PLANE`` places:
    fewer are features of a table. Raises NetworkError where the values fit nowhere or in two ways.
    """
    tensor = torch.tensor(list(values), dtype=torch.float32)
    count = tensor.numel()
    if count == 1:
        return tensor.reshape([1] * len(shape))
    if len(shape) == 3 and (shape[0] == count) != (shape[2] == count):
        return tensor.reshape(-1, 1, 1) if shape[0] == count else tensor.reshape(1, 1, -1)
    flat = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    places = shape[0] // count if flat and count and shape[0] % count == 0 else 0
    if places == 1 or places >= SMALLEST_PLANE:
        repeated = tensor.repeat_interleave(places)
        return repeated.reshape(-1, *([1] * (len(shape) - 1)))
    raise NetworkError(
        f"normalisation with {count} values does not fit inputs of shape {shape}",
        hint="give one value, or one per channel of the first or the last axis, or per feature",
    )


class Network(nn.Module):
    """Nodes in topological order; the last one's output, [classes], holds the logits.

    ``layers`` is a list of (name, layer, names of inputs); the name ``input`` is the input,
    of shape ``input_shape``. Every node but the last must be used. ``dropped_output`` names the
    operator (Softmax, LogSoftmax) that the deployed file applies to the logits and that is left
    out here: it keeps the order of logits that differ by more than its rounding. One layer object
    may stand at several nodes: its weights are shared, and stored once.
    Raises NetworkError.
    """

    def __init__(
        self,
        input_shape: Iterable[int],
        layers: Iterable[Row],
        *,
        dropped_output: str | None = None,
    ) -> None:
        super().__init__()
        self.dropped_output = dropped_output
        self.input_shape: Shape = tuple(int(size) for size in input_shape)
        self.layers = nn.ModuleDict()
        self.nodes: list[Node] = []
        #: Of nodes whose layer stands at an earlier node too: the first such node.
        self.shared: dict[str, str] = {}
        first: dict[Layer, str] = {}
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        used: set[str] = set()
        for name, layer, inputs in layers:
            inputs = tuple(inputs)
            if name in shapes or not name or "." in name:
                raise NetworkError(f"node name {name!r} is empty, taken or holds a dot")
            missing = [source for source in inputs if source not in shapes]
            if missing or not layer.takes(len(inputs)):
                raise NetworkError(f"node {name!r} ({layer.kind}) has inputs {list(inputs)}")
            try:
                shape = layer.output_shape(*(shapes[source] for source in inputs))
            except ShapeError as error:
                raise NetworkError(f"node {name!r}: {error}") from error
            shapes[name] = tuple(shape)
            used.update(inputs)
            self.layers[name] = layer
            if first.setdefault(layer, name) != name:
                self.shared[name] = first[layer]
            self.nodes.append(Node(name, inputs, tuple(shape)))
        if not self.nodes:
            raise NetworkError("a network needs at least one layer")
        idle = [node.name for node in self.nodes[:-1] if node.name not in used]
        if idle:
            raise NetworkError(f"the outputs of nodes {idle} are not used")
        if len(self.nodes[-1].shape) != 1:
            raise NetworkError(f"the output must be [classes], not {self.nodes[-1].shape}")

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.nodes[-1].shape[0]

    @property
    def largest(self) -> int:
        """Numbers of the largest value of a sample."""
        shapes = [self.input_shape, *(node.shape for node in self.nodes)]
        return max(math.prod(shape) for shape in shapes)

    @property
    def parameter_count(self) -> int:
        """Number of stored values, frozen ones (batch norm statistics) included."""
        tensors = self.stored_tensors().values()
        return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())

    def layer(self, name: str) -> Layer:
        """The layer of the node ``name``."""
        layer = self.layers[name]
        assert isinstance(layer, Layer)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of inputs [batch, *input_shape]."""
        values = {INPUT: x}
        last_use = self._last_use()
        for index, node in enumerate(self.nodes):
            values[node.name] = self.layers[node.name](*(values[s] for s in node.inputs))
            for source in set(node.inputs):
                if last_use[source] == index:
                    del values[source]
        return values[self.nodes[-1].name]

    def _last_use(self) -> dict[str, int]:
        return {source: index for index, node in enumerate(self.nodes) for source in node.inputs}

    def deployed(self) -> Network:
        """The same network as it is deployed: every layer's weight as it acts (no gradients).

        Where a layer becomes several, its node's name stands for the last of them, and the others
        are ``node/name``: names and digest depend on nothing else in the network.
        """
        shapes = {INPUT: self.input_shape, **{node.name: node.shape for node in self.nodes}}
        subgraphs: dict[tuple[Layer, tuple[Shape, ...]], tuple[DeployedLayer, ...]] = {}
        rows: list[Row] = []

        def lay_down(name: str, layer: Layer, inputs: tuple[str, ...]) -> None:
            key = (layer, tuple(shapes[source] for source in inputs))
            if key not in subgraphs:
                subgraphs[key] = layer.deployed(*key[1])
            if subgraphs[key] == (DeployedLayer(layer),):
                rows.append((name, layer, inputs))
                shapes[name] = layer.output_shape(*key[1])
                return
            for part in subgraphs[key]:
                wanted = range(len(inputs)) if part.inputs is None else part.inputs
                lay_down(
                    f"{name}/{part.name}" if part.name else name,
                    part.layer,
                    tuple(inputs[s] if isinstance(s, int) else f"{name}/{s}" for s in wanted),
                )

        with torch.no_grad():
            for node in self.nodes:
                lay_down(node.name, self.layer(node.name), node.inputs)
        return Network(self.input_shape, rows, dropped_output=self.dropped_output).eval()

    def normalized(self, mean: Iterable[float], std: Iterable[float]) -> Network:
        """The same network behind (x - mean) / std, so that its input is raw pixels.

        One value for all or one per channel; the channels may be the first or the last axis, or
        stand one after the other in a flattened image (``per_channel``). Raises NetworkError.
        """
        normalize = Normalize(
            per_channel(mean, self.input_shape), per_channel(std, self.input_shape)
        )
        name = "normalization"
        while name in self.layers:
            name += "_"
        rows: list[Row] = [(name, normalize, (INPUT,))]
        rows += [
            (
                node.name,
                self.layer(node.name),
                tuple(name if source == INPUT else source for source in node.inputs),
            )
            for node in self.nodes
        ]
        return Network(self.input_shape, rows, dropped_output=self.dropped_output)

    def non_finite(self) -> list[str]:
        """Names of the tensors that hold a NaN or an infinity."""
        return [n for n, t in self.state_dict().items() if not bool(torch.isfinite(t).all())]

    def stored_tensors(self) -> dict[str, Tensor]:
        """The state dict with the tensors of a shared layer once, under its first node's name."""
        return {
            key: tensor.contiguous()
            for key, tensor in self.state_dict().items()
            if key.split(".", 2)[1] not in self.shared
        }

    def description(self) -> dict[str, Any]:
        """Input shape, layers, what is shared and dropped, as JSON-able values (no tensors)."""
        dropped = {} if self.dropped_output is None else {"dropped_output": self.dropped_output}
        return {
            **dropped,
            **({"shared": dict(self.shared)} if self.shared else {}),
            "input_shape": list(self.input_shape),
            "layers": [
                {
                    "name": node.name,
                    "kind": self.layer(node.name).kind,
                    "inputs": list(node.inputs),
                    "config": self.layer(node.name).config(),
                }
                for node in self.nodes
            ],
        }

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Network:
        """The network of ``description()`` and ``stored_tensors()``. Raises NetworkError."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            _, name, parameter = key.split(".", 2)
            grouped.setdefault(name, {})[parameter] = tensor
        shared = description.get("shared", {})
        layers: dict[str, Layer] = {}
        rows: list[Row] = []
        for row in description["layers"]:
            name = row["name"]
            layer_class = LAYER_KINDS.get(row["kind"])
            if layer_class is None:
                raise NetworkError(f"unknown layer kind {row['kind']!r}")
            layers[name] = (
                layers[shared[name]]
                if name in shared
                else layer_class.build(row["config"], grouped.get(name, {}))
            )
            rows.append((name, layers[name], tuple(row["inputs"])))
        dropped = description.get("dropped_output")
        return cls(description["input_shape"], rows, dropped_output=dropped)

    def save(self, folder: Path) -> None:
        """Write ``network.json`` and ``weights.safetensors`` into an existing folder."""
        safetensors.torch.save_file(self.stored_tensors(), folder / "weights.safetensors")
        (folder / "network.json").write_text(json.dumps(self.description(), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Network:
        """What ``save`` wrote. Raises NetworkError."""
        description = json.loads((folder / "network.json").read_text())
        tensors = safetensors.torch.load_file(folder / "weights.safetensors")
        return cls.from_description(description, tensors).eval()

    def graph_digest(self) -> str:
        """``sha256:...`` over architecture, normalisation and every weight's bytes.

        Weights of a shared layer count at each of its nodes: how they are stored is no matter.
        """
        description = {k: v for k, v in self.description().items() if k != "shared"}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        for key, tensor in sorted(self.state_dict().items()):
            digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return "sha256:" + digest.hexdigest()


def multiplications(layer: Layer, shape: Shape) -> int:
    """Multiplications that a layer with this output shape takes per sample."""
    if isinstance(layer, Conv2d):
        return layer.weight.numel() * math.prod(shape[1:])
    if isinstance(layer, Linear):
        return layer.weight.numel()
    if isinstance(layer, AvgPool2d | MaxPool2d):
        return math.prod(layer.kernel) * math.prod(shape)
    return math.prod(shape)
