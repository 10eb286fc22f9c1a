"""What the forms and block sizes chosen for CPUs bring, beside the plain ones.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/verification/layouts.py [--rounds 9]

Transposed convolutions of a backward pass as ``transposed_convolution`` computes them, against
the library's own kernel; bounds in blocks that stay in the cache, against blocks that do not.
Random weights. Interleaved, CPU time of one thread, the median of the ratios plain / chosen.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from models.layers.kinds import ReLU
from tests.workers.verification.networks import Builder
from workers.verification.backward.transposed_convolution import (
    direct,
    framed,
    transposed,
    transposed_patches,
)
from workers.verification.block_sizes import BLOCK_BYTES, ROW_BYTES
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.graph.affine_maps import Convolution
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.spectral import ConvGeometry
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region

#: (channels in, out, kernel, stride, padding, size of the input) of published convolutions.
STRIDED = ((1, 16, 4, 2, 1, 28), (16, 32, 4, 2, 1, 14), (3, 32, 4, 2, 1, 32), (32, 64, 4, 2, 1, 16))
#: The same, and the extent of a patch on the output.
PATCHES = (((16, 32, 4, 2, 1, 14), 1), ((32, 32, 3, 1, 1, 14), 1), ((32, 64, 4, 2, 1, 16), 3))
ROWS = 256


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int, padding: int, size: int
) -> Convolution:
    """A convolution with random weights."""
    geometry = ConvGeometry((size, size), (stride, stride), (padding,) * 4)
    weight = torch.randn(outputs, inputs, kernel, kernel, dtype=torch.float64)
    out = (outputs, *geometry.output_size((kernel, kernel)))
    zero = torch.zeros(())
    return Convolution(
        (inputs, size, size), out, zero, zero, weight[0].numel(), weight=weight, geometry=geometry
    )


def ratio(plain: Callable[[], object], chosen: Callable[[], object], rounds: int) -> float:
    """Median of CPU seconds plain / chosen, in turn."""
    plain()
    chosen()
    ratios = []
    for _ in range(rounds):
        started = time.process_time()
        plain()
        between = time.process_time()
        chosen()
        ratios.append((between - started) / (time.process_time() - between))
    return statistics.median(ratios)


def bound(name: str, samples: int, epsilon: float) -> Callable[[int, int], Callable[[], object]]:
    """(block bytes, row bytes) -> one attempt of a bound on samples of a small network."""
    builder = Builder((3, 32, 32), 0)
    for out in (32, 64):
        builder.conv(out, 4, stride=2, padding=(1, 1, 1, 1))
        builder.add(ReLU())
    builder.flatten()
    builder.linear(100)
    builder.add(ReLU())
    builder.linear(10)
    network = builder.build()
    x = torch.rand(samples, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = network(x).argmax(1)
    problem = Problem(CompiledNetwork.compile(network), True, torch.device("cpu"), torch.float32)
    region = Region(x, torch.full((samples,), epsilon, dtype=torch.float64), "linf", True)
    budget = Budget(torch.ones(samples, dtype=torch.float64))

    def in_blocks(block_bytes: int, row_bytes: int) -> Callable[[], object]:
        def run() -> object:
            kept = BLOCK_BYTES["cpu"], ROW_BYTES["cpu"]
            BLOCK_BYTES["cpu"], ROW_BYTES["cpu"] = block_bytes, row_bytes
            try:
                return BOUNDS[name].attempt(problem, region, labels, budget)
            finally:
                BLOCK_BYTES["cpu"], ROW_BYTES["cpu"] = kept

        return run

    return in_blocks


def strided(shape: tuple[int, ...], rounds: int) -> float:
    """Of the transposed convolution of whole rows."""
    op = convolution(*shape)
    rows = torch.randn(ROWS, *op.out_shape)
    place, size = (shape[4], shape[4]), op.in_shape[1:]
    return ratio(
        lambda: framed(direct(op, rows), place, op.in_shape),
        lambda: transposed(op, rows, place, size),
        rounds,
    )


def patches(shape: tuple[int, ...], extent: int, rounds: int) -> float:
    """Of the transposed convolution of patches."""
    op = convolution(*shape)
    rows = torch.randn(ROWS, shape[1], extent, extent)
    reached = ((extent - 1) * shape[3] + shape[2],) * 2
    return ratio(lambda: direct(op, rows), lambda: transposed_patches(op, rows, reached), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for shape in STRIDED:
        print(f"transposed convolution {shape}: {strided(shape, rounds):.2f} times the speed")
    for shape, extent in PATCHES:
        found = patches(shape, extent, rounds)
        print(f"patches of {extent} by {extent} through {shape}: {found:.2f} times the speed")
    for name, samples, epsilon in (("ibp", 256, 0.01), ("bcp", 256, 0.01), ("crown", 4, 0.002)):
        in_blocks = bound(name, samples, epsilon)
        small = in_blocks(BLOCK_BYTES["cpu"], ROW_BYTES["cpu"])
        found = ratio(in_blocks(2**28, 2**30), small, rounds)
        print(f"{name} in blocks that fit the cache: {found:.2f} times the speed")


if __name__ == "__main__":
    main()
