"""What skew orthogonal convolutions cost, beside plain convolutions of the same geometry.

    python -m benchmarks.training.skew --depth 5 --batch 32

Three questions, all in processor time of this process (the machine may be shared), with one thread:
a training step with the fast backward pass, with autograd through the series, and of the plain
network, in turn; images per second of the deployed network and of the plain one, in torch and in
ONNX Runtime; and the seconds until every norm of the deployed network is proved, from nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import onnxruntime
import torch

from models.architectures.families import family_layers
from models.architectures.published import ACTIVATIONS, build
from models.layers.one_lipschitz import skew
from models.layers.one_lipschitz.skew_kernels import taylor, trained_series
from models.network import Network
from models.onnx.exporter.export import export_onnx
from workers.training.config import TrainingConfig
from workers.training.trainer import Trainer, build_network
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.graph.compiled_network import CompiledNetwork

PARTS = ("step", "evaluation", "norms")


def layer_lists(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The LipConvnet, and the same with a plain convolution in every skew one's place."""
    wish = {"name": "lipconvnet", "depth": options.depth, "width": options.width}
    skewed = family_layers({**wish, "degree": options.degree}, ACTIVATIONS["maxmin"])
    rows = []
    for row in skewed["layers"]:
        if row["kind"] == "skew-conv2d":
            kernel = row["kernel"]
            row = {"kind": "conv2d", "out": row["out"], "kernel": kernel, "padding": kernel // 2}
        rows.append(row)
    return skewed, {**skewed, "layers": rows}


def seconds(work: Callable[[], object]) -> float:
    """Of processor time."""
    began = time.process_time()
    work()
    return time.process_time() - began


def steps(skewed: Any, plain: Any, options: argparse.Namespace) -> None:
    """A training step, three ways."""

    def trainer(architecture: Any) -> Trainer:
        config = TrainingConfig(
            method="soc",
            architecture=architecture,
            epsilon=36 / 255,
            batch_size=options.batch,
            optimizer="sgd-normalized",
        )
        return Trainer(config, build_network(config))

    x = torch.rand(options.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(options.batch) % 10
    ways: dict[str, tuple[Trainer, Any]] = {}
    ours = trainer(skewed)
    ways["fast backward"] = (ours, trained_series)
    ways["autograd"] = (ours, taylor)
    ways["plain"] = (trainer(plain), trained_series)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(options.rounds + 1):
        for name, (trained, series) in ways.items():
            skew.trained_series = series  # type: ignore[attr-defined]
            step = seconds(lambda trained=trained, count=count: trained.train_on(x, y, 0.5, count))
            if count:
                spent[name].append(step)
    skew.trained_series = trained_series  # type: ignore[attr-defined]
    median = {name: statistics.median(values) for name, values in spent.items()}
    for name, value in median.items():
        print(f"step, {name:14} {value:7.3f} s  {value / median['plain']:5.2f} plain steps")
    pairs = zip(spent["fast backward"], spent["autograd"], strict=True)
    saved = statistics.median(1.0 - fast / slow for fast, slow in pairs)
    print(f"the fast backward pass saves {100 * saved:.1f} % of a step")


def evaluations(skewed: Network, plain: Network, options: argparse.Namespace) -> None:
    """Images per second of both deployed networks."""
    x = torch.rand(options.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    ways: dict[str, dict[str, Callable[[], object]]] = {"torch": {}, "ONNX Runtime": {}}
    for name, network in (("skew", skewed), ("plain", plain)):
        session = onnxruntime.InferenceSession(
            export_onnx(network), settings, providers=["CPUExecutionProvider"]
        )
        feed = {session.get_inputs()[0].name: x.numpy()}
        ways["torch"][name] = lambda network=network: network(x)
        ways["ONNX Runtime"][name] = lambda session=session, feed=feed: session.run(None, feed)
    for engine, networks in ways.items():
        spent: dict[str, list[float]] = {name: [] for name in networks}
        with torch.no_grad():
            for count in range(options.rounds + 1):
                for name, work in networks.items():
                    used = seconds(work)
                    if count:
                        spent[name].append(used)
        rates = {name: options.batch / statistics.median(values) for name, values in spent.items()}
        print(
            f"evaluation, {engine:12} {rates['skew']:7.1f} images/s, plain {rates['plain']:7.1f}, "
            f"ratio {rates['skew'] / rates['plain']:.3f}"
        )


def norms(network: Network) -> None:
    """From the exported weights to a proved Lipschitz constant, nothing cached."""
    constant: list[float] = []
    spent = seconds(lambda: constant.append(lipschitz_constant(CompiledNetwork.compile(network))))
    print(f"norms of {len(network.nodes)} layers proved in {spent:.1f} s: {constant[0]:.6f}")


def main() -> None:
    """Print a line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--degree", type=int, choices=skew.DEGREES, default=skew.DEGREES[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, action="append", help="by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = options.part or PARTS
    skewed, plain = layer_lists(options)
    if "step" in parts:
        steps(skewed, plain, options)
    if "evaluation" in parts or "norms" in parts:
        generator = torch.Generator().manual_seed(0)
        deployed = build(skewed, generator=generator).deployed()
        if "evaluation" in parts:
            evaluations(deployed, build(plain, generator=generator).deployed(), options)
        if "norms" in parts:
            norms(deployed)


if __name__ == "__main__":
    main()
