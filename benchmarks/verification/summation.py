"""What float32 leaves of the radius of wide networks of norm 1, as exported and in partial sums.

    PYTHONPATH=. python -m benchmarks.verification.summation [--network NAME]

Six layers, one input whose radius is 0.005 of its length. ``uploaded``, ``partial``: the certified
share of the radius that the layers' norms allow, of the plain export and of the file that
``"summation": "partial-sums"`` makes of it, as a job has it (import, rewriting, export, import).
``times``: seconds of a forward pass in ONNX Runtime over those of the plain file, for one input and
for a batch of 32, one thread, the least of several.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from models.layers.activations import Abs
from models.layers.base import Layer
from models.layers.kinds import Conv2d, Linear, Reshape
from models.network import INPUT, Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from models.rewriting import LOST, rewritten
from tests.workers.verification.uploads.wide_networks import (
    LAYERS,
    SHARE,
    WideNetwork,
    dense_network,
    image_network,
    orthogonal_kernel,
)
from workers.verification.bounds.lipschitz import lipschitz_radius
from workers.verification.graph.affine import Affine, Norms
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.rounding import Rounding

F64 = torch.float64
NETWORKS: dict[str, Callable[[], WideNetwork]] = {
    "dense 256": lambda: dense_network(256),
    "dense 512": lambda: dense_network(512),
    "dense 1024": lambda: dense_network(1024),
    "dense 2048": lambda: dense_network(2048),
    "3x3 around, 32 channels on 4": lambda: image_network(32, 4),
    "3x3 around, 64 channels on 4": lambda: image_network(64, 4),
    "3x3 around, 128 channels on 4": lambda: image_network(128, 4),
}
#: Too wide to have all norms proved in minutes: one convolution, whose norm is 1 by construction,
#: and six times what it may round: channels, side of the map.
CONVOLUTIONS = {"3x3, 256 channels on 4": (256, 4), "3x3, 512 channels on 4": (512, 4)}
BATCHES, RUNS = (1, 32), 7


def shares(network: Network, x: torch.Tensor) -> tuple[float, CompiledNetwork]:
    """Certified radius of x, over what it would be without rounding."""
    compiled, label = CompiledNetwork.compile(network), torch.zeros(1, dtype=torch.int64)
    found = [
        float(lipschitz_radius(compiled, x, label, norm="l2", rounding=rounding, dtype=F64))
        for rounding in (Rounding.sound(F64), Rounding.ignored())
    ]
    return found[0] / found[1], compiled


def seconds(file: bytes, shape: tuple[int, ...], batch: int) -> float:
    """A forward pass of a batch in ONNX Runtime."""
    model, x = OnnxRuntimeModel(file, shape), np.random.default_rng(0).random((batch, *shape))
    inputs, least = x.astype(np.float32), math.inf
    for _ in range(RUNS):
        began = time.perf_counter()
        model(inputs)
        least = min(least, time.perf_counter() - began)
    return least


@torch.no_grad()
def measure_convolution(name: str) -> dict[str, object]:
    """One row, of six such layers by what one of them may round."""
    channels, side = CONVOLUTIONS[name]
    shape, count = (channels, side, side), channels * side * side
    layers: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("z", Conv2d(orthogonal_kernel(channels, 0), padding=1), (INPUT,)),
        ("flat", Reshape(shape=(count,)), ("z",)),
        ("bent", Abs(), ("flat",)),
        ("y", Linear(torch.ones(2, count)), ("bent",)),
    ]
    network = Network(shape, layers).eval()
    found, unit = rewritten(network, lost=LOST * 2 / 7), Rounding.sound(F64).deployed
    kept, ops = [], []
    for one in (network, found.network):
        steps = CompiledNetwork.compile(one, norms=False).steps
        op = next(step.op for step in steps if isinstance(step.op, Affine))
        norms = Norms(1.0 + 1e-5, op.absolute_norm())
        share = op.rounding_share(norms, unit, op.terms, op.summation)
        kept.append(round(1.0 - LAYERS * share / SHARE, 3))
        ops.append(op)
    files = [export_onnx(one) for one in (network, found.network)]
    return {
        "network": name,
        "terms": ops[0].terms,
        "uploaded": kept[0],
        "partial": kept[1],
        "sums": None if ops[1].summation is None else ops[1].summation.sizes,
        "times": {
            batch: round(seconds(files[1], shape, batch) / seconds(files[0], shape, batch), 1)
            for batch in BATCHES
        },
    }


def measure(name: str) -> dict[str, object]:
    """One row."""
    wide = NETWORKS[name]()
    network = import_onnx_bytes(wide.onnx)
    shape = network.input_shape
    with torch.no_grad():
        uploaded, plain = shares(network, wide.x)
        found = rewritten(network)
        file = export_onnx(found.network)
        again = import_onnx_bytes(file)
        partial, compiled = shares(again, wide.x)
    layer = next(
        layer
        for node in again.nodes
        if isinstance(layer := again.layer(node.name), Conv2d) and layer.groups > 1
    )
    maps = [step.op for step in plain.steps if isinstance(step.op, Affine)]
    parts = [step.op for step in compiled.steps if isinstance(step.op, Affine)]
    trees = parts[-1].summation
    return {
        "network": name,
        "terms": maps[-1].terms,
        "uploaded": round(uploaded, 3),
        "partial": round(partial, 3),
        "groups": layer.groups,
        "sums": None if trees is None else trees.sizes,
        "mb": [round(len(data) / 2**20, 1) for data in (wide.onnx, file)],
        "times": {
            batch: round(seconds(file, shape, batch) / seconds(wide.onnx, shape, batch), 1)
            for batch in BATCHES
        },
    }


def main() -> None:
    """Print a row per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*NETWORKS, *CONVOLUTIONS]
    parser.add_argument("--network", choices=names, action="append", help="by default all")
    torch.set_num_threads(1)
    for name in parser.parse_args().network or names:
        row = measure(name) if name in NETWORKS else measure_convolution(name)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
