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
    for node, rows in _values(network, x):
        for name in by_node.get(node, ()):
            ours = values[name].in_file(rows.numpy())
            difference = _difference(ours, found[name])
            if difference > ROUNDED and not _rounds_away(network, x, node):
                _refuse(name, "differs", f"other numbers, by {difference:.3g} of the largest")


def _values(network: Network, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Each node's value, in order; those that no later node reads are let go."""
    last = {source: node.name for node in network.nodes for source in node.inputs}
    held = {INPUT: x}
    for node in network.nodes:
        with torch.no_grad():
            held[node.name] = network.layer(node.name)(*(held[name] for name in node.inputs))
        yield node.name, held[node.name]
        for source in set(node.inputs):
            if last[source] == node.name:
                del held[source]


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference of finite numbers, as a share of the largest number."""
    known = np.isfinite(one) & np.isfinite(other)
    first, second = one[known].astype(np.float64), other[known].astype(np.float64)
    difference = float(np.abs(first - second).max(initial=0.0))
    largest = float(np.abs(second).max(initial=0.0))
    return difference / largest if largest else difference


def _rounds_away(network: Network, x: torch.Tensor, name: str) -> bool:
    """Whether float32 alone moves this node's value about as far: numbers that cancel."""
    exact = _values(copy.deepcopy(network).double(), x.double())
    for (node, rows), (_, rounded) in zip(exact, _values(network, x), strict=True):
        if node == name:
            return _difference(rounded.numpy(), rows.numpy()) > ROUNDED / SAFETY
    return False


def _refuse(name: str, is_: str, here: str) -> NoReturn:
    raise ModelError(
        f"the value {name!r} of the file {is_} in ONNX Runtime; the graph that would be certified "
        f"has {here}",
        code="deployment_mismatch",
        hint="this is a fault of the import: please report it with the file",
    )
