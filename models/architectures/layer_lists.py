"""Layer lists of a request, checked and turned into a network without weights.

Every layer may carry ``name`` (unique) and ``from`` (the name of an earlier layer, or ``input``);
without ``from`` it takes the layer before it. Layers of several inputs (``add``, also called
``residual``, ``concat``, ``maximum``, ``minimum``, ``product``) take the layer before them and
``from``, or the layers that ``from`` lists. What each kind takes:
``models.architectures.layer_makers``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from torch import Tensor

from models.architectures.layer_makers import KINDS, MAX_PARAMETERS
from models.architectures.layer_rows import MAX_SIZE, LayerRow
from models.errors import ModelError
from models.layers.kinds import Layer, Normalize, Shape
from models.network import INPUT, Network

__all__ = ["Blueprint", "blueprint_of"]

#: Kinds that join the layer before them with the one that a single ``from`` names.
JOINING = ("add", "concat", "maximum", "minimum", "product", "residual")
#: How weights may begin, see ``models.architectures.initial_values``.
INITS = ("default", "glorot", "he", "ibp", "orthogonal")
MAX_LAYERS = 1_000
MAX_ACTIVATION = 1 << 26
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}")


@dataclass(frozen=True)
class Blueprint:
    """A network whose weights are still missing: they live on torch's ``meta`` device."""

    skeleton: Network
    init: str
    #: Tensors that the list itself gives (normalisation, constants of what is deployed), by their
    #: name in the state dict.
    given: Mapping[str, Tensor]
    #: The request's own names of layers, by node.
    names: Mapping[str, str]
    #: The rows of the list, by node: what initial values are read from.
    rows: Mapping[str, Mapping[str, Any]]

    def network(self, tensors: Mapping[str, Tensor]) -> Network:
        """The network with these tensors, named as in the skeleton's state dict."""
        return Network.from_description(
            self.skeleton.description(), {**tensors, **self.given}
        ).eval()

    def deployed(self) -> Blueprint:
        """The same for the layers that are deployed: what a checkpoint holds."""
        skeleton = self.skeleton.deployed()
        tensors = skeleton.stored_tensors()
        trained = {key.rpartition(".")[0] for key, tensor in tensors.items() if tensor.is_meta}
        given = {k: t for k, t in tensors.items() if k.rpartition(".")[0] not in trained}
        return replace(self, skeleton=skeleton, given=given)


def blueprint_of(description: Mapping[str, Any], *, classifier: bool = True) -> Blueprint:
    """The network of a layer list, without weights; one output is no classifier's.

    Raises ModelError.
    """
    known = {"input", "layers", "init"}
    unknown = sorted(str(key)[:40] for key in description if key not in known)
    rows, shape, init = (description.get(key) for key in ("layers", "input", "init"))
    if unknown or init not in (None, *INITS):
        _invalid(f"an architecture has {sorted(known)}, not {unknown or init!r}")
    if (
        not isinstance(shape, list | tuple)
        or not 1 <= len(shape) <= 4
        or any(type(size) is not int or not 1 <= size <= MAX_SIZE for size in shape)
        or math.prod(shape) > MAX_ACTIVATION
    ):
        _invalid('"input" must be the shape of one sample, such as [3, 32, 32]')
    if not isinstance(rows, list | tuple) or not 1 <= len(rows) <= MAX_LAYERS:
        _invalid(f'"layers" must be a list of 1 to {MAX_LAYERS} layers')
    plan = _Plan(tuple(shape))
    for index, raw in enumerate(rows):
        plan.append(LayerRow(index, raw), index)
    skeleton = Network(plan.input_shape, plan.layers)
    if classifier and skeleton.classes < 2:
        _invalid("a classifier needs at least two outputs")
    return Blueprint(skeleton, init or "default", plan.given, plan.names, plan.rows)


class _Plan:
    """The layers built so far, by node, with their shapes and the request's names."""

    def __init__(self, input_shape: Shape) -> None:
        self.input_shape = input_shape
        self.layers: list[tuple[str, Layer, tuple[str, ...]]] = []
        self.shapes: dict[str, Shape] = {INPUT: input_shape}
        self.nodes: dict[str, str] = {INPUT: INPUT}
        self.names: dict[str, str] = {}
        self.given: dict[str, Tensor] = {}
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.parameters = 0
        self.last = INPUT

    def append(self, row: LayerRow, index: int) -> None:
        maker = KINDS.get(row.kind)
        if maker is None:
            row.refuse("is of an unknown kind", "known: " + ", ".join(sorted(KINDS)))
        inputs = self._inputs(row)
        layer = maker(row, self.shapes[inputs[0]])
        row.finish()
        if not layer.takes(len(inputs)):
            row.refuse(f"takes {layer.arity or 'two or more'} inputs, not {len(inputs)}")
        try:
            shape = layer.output_shape(*(self.shapes[source] for source in inputs))
        except ModelError as error:
            row.refuse(f"does not fit: {error}")
        self.parameters += sum(tensor.numel() for tensor in layer.state_dict().values())
        if self.parameters > MAX_PARAMETERS or math.prod(shape) > MAX_ACTIVATION:
            raise ModelError(f"{row.label} makes the network too large", code="model_too_large")
        node = f"{layer.kind}_{index}"
        self.layers.append((node, layer, inputs))
        self.shapes[node] = tuple(shape)
        self._name(row, node)
        self.rows[node] = row.row
        if isinstance(layer, Normalize):
            self.given.update({f"layers.{node}.mean": layer.mean, f"layers.{node}.std": layer.std})
        self.last = node

    def _name(self, row: LayerRow, node: str) -> None:
        name = row.row.get("name")
        if name is None:
            return
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in self.nodes:
            row.refuse(f"has a name that is taken or not usable: {name!r:.60}")
        self.nodes[name] = node
        self.names[node] = name

    def _inputs(self, row: LayerRow) -> tuple[str, ...]:
        given = row.row.get("from")
        joins = row.kind in JOINING
        sources = list(given) if isinstance(given, list | tuple) else [given]
        unknown = [s for s in sources if s is not None and (not isinstance(s, str))]
        unknown += [s for s in sources if isinstance(s, str) and s not in self.nodes]
        if unknown or (joins and given is None):
            row.refuse(
                f'needs "from": names of earlier layers or "{INPUT}", not {str(given)[:60]!r}'
            )
        nodes = tuple(self.nodes[source] for source in sources if source is not None)
        if joins and len(nodes) == 1:
            return (self.last, *nodes)
        return nodes or (self.last,)


def _invalid(message: str) -> NoReturn:
    raise ModelError(message, code="invalid_architecture")
