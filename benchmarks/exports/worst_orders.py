"""What float32 sums in their worst order leave of the radius that layers of norm 1 give.

    PYTHONPATH=. python -m benchmarks.exports.worst_orders --model FILE.onnx --data FILE.npz
        [--images 20]

Of the first images of the file (x, y), l2, nothing clipped. ``real``: the radius that the layers'
norms give in real arithmetic. ``certified``: the uploaded file's, by ``lipschitz``, any order of
sums. ``left``: real, less the Euclidean norms of what each layer's sums are off by, at the image
itself, when every output of every dense layer and convolution is added from one end of its sorted
products to the other, every addition off by a unit roundoff and the same way. Such orders are
allowed by the claim, and what comes after a layer may be any map of norm 1, one along which its
errors add up included: so no bound that knows of the layers only their norms can certify more than
``left`` of such an image. Printed: the ratios of the means, and the least and the largest of the
images' ratios of certified and left, over real.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.layers.kinds import Conv2d, Linear
from models.onnx.importer import import_onnx
from tests.workers.verification.networks import leaves_of, worst_order
from workers.verification.bounds.lipschitz import backward_lipschitz_radius, lipschitz_radius
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.rounding import U32, Rounding, exact_arithmetic

F64 = torch.float64


def errors(op: Dense | Convolution, x: Tensor) -> float:
    """The norm of what all outputs are off by, x [1, *shape]; a row of outputs at a time."""
    square = 0.0
    if isinstance(op, Dense):
        return float(worst_order(leaves_of(Linear(op.weight), x)).norm()) * U32
    geometry = op.geometry
    if geometry.groups > 1:
        raise SystemExit("convolutions in groups are not measured")
    for kernel in op.weight:
        layer = Conv2d(
            kernel[None],
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
        )
        square += float(worst_order(leaves_of(layer, x)).square().sum())
    return square**0.5 * U32


def lost(compiled: CompiledNetwork, x: Tensor) -> float:
    """Of one image [1, *shape]: the sum over the layers."""
    values, found = [x.double()], 0.0
    for step in compiled.steps:
        inputs = [values[source] for source in step.sources]
        values.append(forward_step(step, inputs))
        if isinstance(step.op, Dense | Convolution):
            found += errors(step.op, inputs[0])
    return found


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compiled = CompiledNetwork.compile(import_onnx(options.model))
    with np.load(options.data, allow_pickle=False) as stored:
        x = torch.from_numpy(stored["x"][: options.images]).float()
        labels = torch.from_numpy(stored["y"][: options.images]).long()
    x = x.reshape(len(x), *compiled.input_shape)
    with exact_arithmetic():
        real, deployed = (
            lipschitz_radius(compiled, x, labels, norm="l2", rounding=rounding, dtype=F64)
            for rounding in (Rounding.real(F64), Rounding.sound(F64))
        )
        backward = backward_lipschitz_radius(
            compiled, x, labels, norm="l2", least=torch.zeros_like(real)
        )
        certified = torch.maximum(deployed, backward).clamp_min(0.0)
        orders = torch.tensor([lost(compiled, x[k : k + 1]) for k in range(len(x))], dtype=F64)
    left = (real - orders).clamp_min(0.0)
    for name, radii in (("certified", certified), ("left", left)):
        shares = radii / real
        print(
            f"{name}: {float(radii.mean() / real.mean()):.3f} of real by the means; images "
            f"{float(shares.min()):.3f} to {float(shares.max()):.3f}; "
            f"{int((shares >= 0.95).sum())} of {len(x)} have 0.95",
            flush=True,
        )


if __name__ == "__main__":
    main()
