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

from models.layers.kinds import Conv2d
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from models.rewriting import rewritten
from tests.workers.verification.uploads.wide_networks import (
    WideNetwork,
    dense_network,
    image_network,
)
from workers.verification.bounds.lipschitz import lipschitz_radius
from workers.verification.graph.affine import Affine
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
    "3x3 around, 256 channels on 4": lambda: image_network(256, 4),
    "3x3 around, 512 channels on 4": lambda: image_network(512, 4),
}
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
    parser.add_argument("--network", choices=NETWORKS, action="append", help="by default all")
    torch.set_num_threads(1)
    for name in parser.parse_args().network or NETWORKS:
        print(json.dumps(measure(name)), flush=True)


if __name__ == "__main__":
    main()
