"""The certificate of a job: what ``certserve-check`` can prove once more, without this service.

The claims are made by the checker's own formulas (``check``), so that it finds the same numbers:
the Lipschitz radius of every sample, and the margin by interval bounds where ``ibp`` decided. What
other bounds proved is in the report alone.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from torch import Tensor

from check.bounds import ball_radius, growth, interval_margin
from check.file import MAX_BYTES, Unreadable, digest_of, sealed
from check.network import KINDS, Affine
from check.network import Network as CheckedNetwork
from check.verify import FORMAT, ROUNDING, blocks, certified, parse
from models.chains import Chain, chain_at
from models.layers.kinds import Shift
from models.network import INPUT, Network
from models.skew_chains import skew_series_at

__all__ = ["Samples", "certificate"]

Tensors = dict[str, NDArray[Any]]
Row = dict[str, Any]

#: Multiplications that a certificate may take: seconds. Samples beyond them are left out.
WORK = 5e10
#: Bytes that are kept for the header.
HEADER = 2**20
#: Norms are stated so much above what was found, and confirmed up to 2^-20 above: a machine that
#: adds in another order finds nearly the same.
STATED = 1.0 + 2.0**-22


@dataclass(frozen=True)
class Samples:
    """The rows of a job: x float32 [n, *shape]; label, prediction, index [n]; by_ibp [n, epsilons]:
    where interval bounds decided."""

    x: NDArray[np.float32]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    index: NDArray[np.int64]
    by_ibp: NDArray[np.bool_]


def certificate(
    network: Network,
    samples: Samples,
    *,
    norm: str,
    epsilons: Sequence[Fraction],
    clip: bool,
    about: Mapping[str, Any],
) -> bytes | None:
    """The file, for as many of the first samples as its limits allow; None where there is nothing
    that the checker could prove: other layers, too large a network, no claim.
    """
    written = _layers(network.deployed())
    if written is None:
        return None
    rows, tensors = written
    shape, ends_in = [*network.input_shape], network.dropped_output
    try:
        checked = CheckedNetwork(shape, rows, ends_in, dict(tensors))
    except Unreadable:
        return None
    stored = _as_bytes(samples.x)
    count = _fitting(checked, tensors, stored, samples.by_ibp)
    if count == 0:
        return None
    x, label = samples.x[:count], samples.label[:count]
    radius, margin = np.zeros(count), np.zeros((count, len(epsilons)))
    with np.errstate(all="ignore"):
        _state_norms(checked, rows)
        for some in blocks(np.arange(count), checked):
            grown = growth(checked, x[some])
            radius[some] = ball_radius(checked, grown, label[some], norm, 1)
        by_radius = certified(radius, margin, tuple(epsilons))
        for place, epsilon in enumerate(epsilons):
            wanted = samples.by_ibp[:count, place] & ~by_radius[:, place]
            for some in blocks(np.flatnonzero(wanted), checked):
                found = interval_margin(checked, x[some], label[some], epsilon, clip, 1)
                margin[some, place] = found
    if not radius.any() and not margin.any():
        return None
    tensors |= {
        "rows.input": stored[:count],
        "rows.index": samples.index[:count],
        "rows.label": label,
        "rows.prediction": samples.prediction[:count],
        "rows.radius": radius,
        "rows.margin": margin,
    }
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    document = sealed(
        {
            "format": FORMAT,
            "about": dict(about),
            "rounding": ROUNDING,
            "threat": {"norm": norm, "epsilons": [*map(str, epsilons)], "clip": clip},
            "input_shape": shape,
            "ends_in": ends_in,
            "layers": rows,
            "tensors": {name: digest_of(array.tobytes()) for name, array in tensors.items()},
            "samples": count,
            "certified": certified(radius, margin, tuple(epsilons)).sum(0).tolist(),
        }
    )
    data = safetensors.numpy.save(tensors, {"certificate": json.dumps(document)})
    try:
        parse(io.BytesIO(data))
    except Unreadable:
        # An epsilon of too many digits, or another limit of the checker.
        return None
    return data


def _as_bytes(x: NDArray[np.float32]) -> NDArray[Any]:
    """The samples as bytes k where they are the float32 numbers k / 255, else as they are."""
    with np.errstate(over="ignore"):
        pixels = np.clip(np.rint(x * 255), 0, 255).astype(np.uint8)
    same = pixels.astype(np.float32) / np.float32(255) == x
    return pixels if bool(same.all()) else x


def _fitting(
    network: CheckedNetwork, tensors: Tensors, stored: NDArray[Any], by_ibp: NDArray[np.bool_]
) -> int:
    """How many of the samples fit into the file and into the work."""
    room = MAX_BYTES - HEADER - sum(array.nbytes for array in tensors.values())
    row = stored.itemsize * math.prod(network.in_shape) + 8 * (4 + by_ibp.shape[1])
    norms = network.work(0, 0)
    each = network.work(1, int(by_ibp.any(0).sum())) - norms
    return max(0, min(len(stored), room // row, int((WORK - norms) // each)))


def _state_norms(network: CheckedNetwork, rows: list[Row]) -> None:
    """Fill in the norms, a little above what is proved."""
    for (_, layer), row in zip(network.layers, rows, strict=True):
        if isinstance(layer, Affine):
            layer.norm, layer.absolute = (float(norm * STATED) for norm in layer.norms())
            row |= {"norm": layer.norm, "absolute": layer.absolute}


def _layers(network: Network) -> tuple[list[Row], Tensors] | None:
    """The layers of a chain and their tensors; None where the checker does not cover them."""
    rows: list[Row] = []
    tensors: Tensors = {}
    before, shape, place = INPUT, network.input_shape, 0
    while place < len(network.nodes):
        node = network.nodes[place]
        several = _several(network, place) if node.inputs == (before,) else None
        if several is not None:
            place, made, held = several
            rows.append(made)
            tensors |= held
            before, shape = network.nodes[place].name, network.nodes[place].shape
            place += 1
            continue
        place += 1
        layer = network.layer(node.name)
        row: Row = {"name": node.name, "kind": layer.kind, **layer.config()}
        if node.inputs != (before,) or layer.kind not in KINDS:
            return None
        if layer.kind == "avg-pool2d":
            if not row.pop("count_include_pad") and any(row["padding"]):
                return None
        elif layer.kind in ("linear", "conv2d"):
            row["bias"] = None
        for name, tensor in layer.state_dict().items():
            row[name] = f"layers.{node.name}.{name}"
            array = tensor.detach().cpu().numpy()
            if layer.kind == "normalize" and array.ndim != len(shape):
                # One value, or one per channel of the first axis.
                array = array.reshape(-1, *([1] * (len(shape) - 1)))
            tensors[row[name]] = array
        if "norm" in KINDS[layer.kind][0]:
            row |= {"norm": 0.0, "absolute": 0.0}
        rows.append(row)
        before, shape = node.name, node.shape
    return rows, tensors


def _several(network: Network, first: int) -> tuple[int, Row, Tensors] | None:
    """Of several nodes that are one row: the place of the last one, the row and its tensors."""
    series, chain = skew_series_at(network, first), chain_at(network, first)
    if series is None:
        return None if chain is None else _summed(network, chain)
    name = network.nodes[first].name
    row: Row = {"name": name, "kind": "skew-series", "weight": f"layers.{name}.weight"}
    row |= {"levels": [*series.levels], "divisors": [*series.divisors]}
    tensors = {row["weight"]: series.conv.weight.detach().cpu().numpy()}
    return series.last, row | {"norm": 0.0, "absolute": 0.0}, tensors


def _summed(network: Network, chain: Chain) -> tuple[int, Row, Tensors]:
    """Of a chain of partial sums: the place of its last node, which may add a bias, its row and its
    tensors, as they are in the file."""
    nodes, name, last = network.nodes, network.nodes[chain.last].name, chain.last
    row: Row = {"name": name, "kind": "summed", "levels": [*chain.levels]}
    if chain.kept == 1:
        row["flat"] = chain.flat
    else:
        row |= {"kind": "summed-groups", "groups": chain.kept}
    row |= {key: chain.conv.config()[key] for key in ("stride", "padding", "dilation")}
    found: dict[str, Tensor | None] = {"weight": chain.conv.weight, "bias": chain.conv.bias}
    after = network.layer(nodes[last + 1].name) if last + 1 < len(nodes) else None
    alone = sum(node.inputs.count(name) for node in nodes) == 1
    out = nodes[last].shape[0]
    if (
        isinstance(after, Shift)
        and nodes[last + 1].inputs == (name,)
        and alone
        and found["bias"] is None
        and after.value.shape == (out, *(1 for _ in nodes[last].shape[1:]))
    ):
        found["bias"], last = after.value.reshape(out), last + 1
    tensors: Tensors = {}
    for key, tensor in found.items():
        row[key] = None if tensor is None else f"layers.{name}.{key}"
        if tensor is not None:
            tensors[row[key]] = tensor.detach().cpu().numpy()
    return last, row | {"norm": 0.0, "absolute": 0.0}, tensors
