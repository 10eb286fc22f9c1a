"""Every value inside a file beside the network's value for it: shapes, and numbers on one input.

The comparison of logits (``workers.verification.cascade.parity``) does not see what a part of the
graph computes that is silent on ordinary inputs: a branch behind a Relu that is 0 nearly
everywhere. Were such a part read otherwise than ONNX Runtime reads it, a certificate would say
nothing of the place where it speaks. So the values on the way are compared too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto
from onnxruntime import InferenceSession

from models.errors import ModelError
from models.layers.activations import Sigmoid, Softplus, Step, Tanh
from models.layers.base import Layer
from models.layers.curves import CURVED, Log, Power
from models.layers.normalization import Softmax
from models.network import INPUT, Network
from models.onnx.forms.signature import signature_for
from models.onnx.graph import Activation
from models.onnx.importer import ImportedOnnx
from models.onnx.session import open_session

__all__ = ["refuse_other_values"]

#: Of the largest number of a value: far more than rounding makes of it, less than a mistake does.
ROUNDED = 1e-2
#: How much less of it float32 may make of the same graph, or the numbers say nothing.
SAFETY = 100
#: Rows where a file takes any number of them, and numbers of the values that are held at once.
ROWS, NUMBERS = 2, 1 << 25
#: Curved functions of which a kernel may be off by ``KERNEL`` (1 + its largest input) where their
#: value is far less, and how many times what that moves here it may move there.
BENT: tuple[type[Layer], ...] = (*(Sigmoid, Tanh, Softplus, Softmax, Log), *CURVED)
KERNEL, TIMES = 1e-6, 10.0


def refuse_other_values(imported: ImportedOnnx, *, seed: int = 0) -> None:
    """Raise ModelError (deployment_mismatch) where a value of the file is not the network's.

    A file that ONNX Runtime does not run is left to those who deploy it.
    """
    model = ModelProto.FromString(imported.deployed)
    network, graph = imported.network, model.graph
    names = [name for node in graph.node for name in node.output if name in imported.values]
    seen = {value.name for value in graph.output}
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name in imported.values:
            del graph.value_info[index]
    graph.output.extend(ValueInfoProto(name=name) for name in names if name not in seen)
    rows = imported.batch or ROWS
    x = np.random.default_rng(seed).standard_normal((rows, *network.input_shape), np.float32)
    signature = signature_for(graph, network.input_shape)
    feeds = {signature.name: x.reshape(signature.of_graph(rows))}
    session: InferenceSession | None = None
    for group in _groups(names, imported.values, rows):
        try:
            session = session or open_session(model.SerializeToString())
            results = session.run(group, feeds)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever ONNX Runtime raises
            return
        found = dict(zip(group, results, strict=True))
        _compare(network, torch.from_numpy(x), imported.values, found)


def _groups(
    names: Sequence[str], values: Mapping[str, Activation], rows: int
) -> Iterator[list[str]]:
    """The names in groups whose values have at most ``NUMBERS`` numbers, or are one."""
    group, held = list[str](), 0
    for name in names:
        size = rows * int(np.prod(values[name].shape, dtype=object))
        if group and held + size > NUMBERS:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _compare(
    network: Network,
    x: torch.Tensor,
    values: Mapping[str, Activation],
    found: Mapping[str, NDArray[Any]],
) -> None:
    by_node: dict[str, list[str]] = {}
    for name, array in found.items():
        value = values[name]
        if array.dtype != np.float32:
            continue
        expected = value.in_file(np.broadcast_to(np.float32(0), (len(x), *value.shape)))
        if array.shape != expected.shape:
            _refuse(name, f"has shape {list(array.shape)}", f"{list(expected.shape)}")
        by_node.setdefault(value.name, []).append(name)
    doubtful: dict[str, list[str]] = {}
    for node, rows in _values(network, x):
        for name in by_node.get(node, ()):
            if _difference(values[name].in_file(rows.numpy()), found[name]) > ROUNDED:
                doubtful.setdefault(node, []).append(name)
    if doubtful:
        _doubt(network, x, values, found, doubtful)


def _doubt(
    network: Network,
    x: torch.Tensor,
    values: Mapping[str, Activation],
    found: Mapping[str, NDArray[Any]],
    doubtful: Mapping[str, Sequence[str]],
) -> None:
    """Refuse the first of these names, by node, that differs where all before it is the file's."""
    given: dict[str, torch.Tensor] = {}
    for name, array in found.items():
        if array.dtype == np.float32:
            rows = torch.from_numpy(np.ascontiguousarray(values[name].from_file(array)))
            given.setdefault(values[name].name, rows)
    plain, bent = _values(network, x, given), _values(network, x, given, kernel=KERNEL)
    still: dict[str, tuple[str, float]] = {}
    for (node, rows), (_, moved) in zip(plain, bent, strict=True):
        kernel = _difference(moved.numpy(), rows.numpy(), share=False)
        for name in doubtful.get(node, ()):
            ours = values[name].in_file(rows.numpy())
            difference = _difference(ours, found[name])
            beyond = _difference(ours, found[name], share=False) > TIMES * kernel
            # Names of one value are of one kernel.
            others = _difference(values[name].in_file(given[node].numpy()), found[name])
            if difference > ROUNDED and (beyond or others > ROUNDED):
                still.setdefault(node, (name, difference))
    # Whether float32 alone moves a node's value about as far: numbers that cancel. Not across a
    # jump: what a step reads and gives is the file's, lest whatever follows be excused.
    nodes = [node for node in network.nodes if isinstance(network.layer(node.name), Step)]
    around = {name for node in nodes for name in (node.name, *node.inputs)}
    steps = {name: given[name] for name in around.intersection(given)}
    wide = {name: rows.double() for name, rows in steps.items()}
    exact = _values(copy.deepcopy(network).double(), x.double(), wide) if still else iter(())
    for (node, rows), (_, rounded) in zip(exact, _values(network, x, steps), strict=False):
        if node in still and _difference(rounded.numpy(), rows.numpy()) <= ROUNDED / SAFETY:
            name, difference = still[node]
            _refuse(name, "differs", f"other numbers, by {difference:.3g} of the largest")


def _values(
    network: Network,
    x: torch.Tensor,
    given: Mapping[str, torch.Tensor] | None = None,
    *,
    kernel: float = 0.0,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each node's value, in order; those that no later node reads are let go.

    given: what later nodes read in the place of these nodes' values; kernel: by how much curved
    functions are moved up and down, beside their largest input.
    """
    last = {source: node.name for node in network.nodes for source in node.inputs}
    held, generator = {INPUT: x}, torch.Generator().manual_seed(0)
    for node in network.nodes:
        layer, inputs = network.layer(node.name), [held[name] for name in node.inputs]
        with torch.no_grad():
            value = layer(*inputs)
        if kernel and isinstance(layer, BENT) and not isinstance(layer, Power):
            signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            size = 1.0 + float(inputs[0].abs().nan_to_num(0.0, 0.0, 0.0).amax())
            value = value + signs * kernel * size
        yield node.name, value
        held[node.name] = value if given is None else given.get(node.name, value)
        for source in set(node.inputs):
            if last[source] == node.name:
                del held[source]


def _difference(one: NDArray[Any], other: NDArray[Any], *, share: bool = True) -> float:
    """The largest difference of finite numbers, as a share of the largest number or as it is."""
    known = np.isfinite(one) & np.isfinite(other)
    first, second = one[known].astype(np.float64), other[known].astype(np.float64)
    difference = float(np.abs(first - second).max(initial=0.0))
    largest = float(np.abs(second).max(initial=0.0))
    return difference / largest if share and largest else difference


def _refuse(name: str, is_: str, here: str) -> NoReturn:
    raise ModelError(
        f"the value {name!r} of the file {is_} in ONNX Runtime; the graph that would be certified "
        f"has {here}",
        code="deployment_mismatch",
        hint="this is a fault of the import: please report it with the file",
    )
