"""CROWN and alpha-CROWN beside auto_LiRPA 0.3 (PyPI): CPU time per image, in turn, one thread.

    pip install --no-deps auto-LiRPA==0.3 && pip install tqdm appdirs
    OMP_NUM_THREADS=1 python -m benchmarks.published.beside_lirpa
        [--shared FOLDER] [--only 2b] [--images 10] [--methods crown alpha-crown]

Image after image goes through both, one at a time; "batch" is ours with all images at once, as a
shard is certified. The reference takes plain float32 and the whole l2 ball; ours the rounding of
the deployed network and, but for ``mlp``, the pixel box. alpha-CROWN: 20 iterations, ended where
all margins are positive; with CROWN's boxes, or (``alpha-crown-intermediate``) with theirs by
optimised slopes, all together in the reference, one layer after the other in ours. The 2b network
is untrained and asked for the class that it says. Version 0.3 asks for torch < 1.13; what it takes
from there is put in its place here, in memory. Where it is not installed, nothing is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.published.networks import SETTINGS, load_images, load_network
from models.layers.kinds import Add, Conv2d, Linear, Normalize, ReLU, Reshape
from models.network import INPUT, Network
from models.onnx.importer import import_onnx
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region

METHODS = ("crown", "alpha-crown", "alpha-crown-intermediate")
#: One side's attempt on image number i: whether it proves it.
Attempt = Callable[[int], bool]


@dataclass(frozen=True)
class Case:
    """A network under a threat, epsilon in pixel units; untrained: asked for what it says."""

    title: str
    make: Callable[[], Network]
    data: str
    norm: str
    epsilon: float
    clip: bool = True
    untrained: bool = False


def residual_network(
    blocks: Sequence[tuple[str, int, int]] = (("a", 8, 2), ("b", 16, 1)),
) -> Network:
    """The shape of the competition's resnet_2b: 8 channels, two blocks of 16 with shortcuts of
    1x1, 100 and 10 units; weights by torch's default. blocks: name, channels before, stride."""
    torch.manual_seed(0)
    places = 1024 // 4 ** sum(stride == 2 for _, _, stride in blocks)

    def conv(inner: int, outer: int, kernel: int, stride: int) -> Conv2d:
        made = nn.Conv2d(inner, outer, kernel, stride, kernel // 2)
        return Conv2d(*_data(made), stride=stride, padding=kernel // 2)

    rows: list[tuple[str, Any, tuple[str, ...]]] = []
    rows += [("stem", conv(3, 8, 3, 2), (INPUT,)), ("first", ReLU(), ("stem",))]
    before = "first"
    for name, inner, stride in blocks:
        rows += [(f"{name}1", conv(inner, 16, 3, stride), (before,))]
        rows += [(f"{name}2", ReLU(), (f"{name}1",))]
        rows += [(f"{name}3", conv(16, 16, 3, 1), (f"{name}2",))]
        rows += [(f"{name}4", conv(inner, 16, 1, stride), (before,))]
        rows += [(f"{name}5", Add(), (f"{name}3", f"{name}4"))]
        rows += [(f"{name}6", ReLU(), (f"{name}5",))]
        before = f"{name}6"
    rows += [("flat", Reshape(shape=(4 * places,)), (before,))]
    rows += [
        ("dense", Linear(*_data(nn.Linear(4 * places, 100))), ("flat",)),
        ("last", ReLU(), ("dense",)),
    ]
    rows += [("logits", Linear(*_data(nn.Linear(100, 10))), ("last",))]
    return Network((3, 32, 32), rows).eval()


def _data(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    assert layer.bias is not None
    return layer.weight.detach(), layer.bias.detach()


def cases(models: Path) -> list[Case]:
    """The networks at hand."""
    found = [
        Case(
            f"2b {norm} {epsilon}",
            residual_network,
            "cifar10",
            norm,
            float(Fraction(epsilon)),
            untrained=True,
        )
        for norm, epsilon in (
            ("linf", "1/255"),
            ("linf", "2/255"),
            ("linf", "4/255"),
            ("l2", "36/255"),
        )
    ]
    for setting in SETTINGS:
        title = f"{Path(setting.path).stem} {setting.norm} {setting.epsilon}"
        make = partial(load_network, setting, models)
        if (models / setting.path).exists():
            found.append(Case(title, make, setting.data, setting.norm, setting.reach))
    mlp = models / "sdp-crown" / "mnist_mlp.onnx"
    if mlp.exists():
        for epsilon in (0.3, 1.0):
            found.append(
                Case(
                    f"mlp l2 {epsilon:g}",
                    partial(import_onnx, mlp),
                    "mnist",
                    "l2",
                    epsilon,
                    clip=False,
                )
            )
    return found


class Layers(nn.Module):
    """A network of normalised inputs, in calls that the reference reads."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.nodes = network.nodes
        kept = {node.name: network.layer(node.name) for node in network.nodes}
        self.kinds = {name: type(layer) for name, layer in kept.items()}
        self.layers = nn.ModuleDict({n: k for n, k in kept.items() if not isinstance(k, Normalize)})

    def forward(self, x: Tensor) -> Tensor:
        values = {INPUT: x}
        for node in self.nodes:
            inputs = [values[source] for source in node.inputs]
            if self.kinds[node.name] is Normalize:
                values[node.name] = inputs[0]
            elif self.kinds[node.name] is Reshape:
                values[node.name] = torch.flatten(inputs[0], 1)
            else:
                values[node.name] = self.layers[node.name](*inputs)
        return values[self.nodes[-1].name]


def reference_library() -> Any:
    """auto_LiRPA 0.3, or None where it is not installed."""
    from torch.onnx import OperatorExportTypes
    from torch.onnx._internal.torchscript_exporter import _globals, utils

    def set_opset(version: int) -> None:
        _globals.GLOBALS.export_onnx_opset_version = version

    def attribute(node: Any, name: str) -> Any:
        return getattr(node, node.kindOf(name))(name)

    def optimize(graph: Any, kind: Any, **options: Any) -> Any:
        return utils._optimize_graph(graph, OperatorExportTypes.ONNX, **options)

    moved: dict[str, dict[str, Any]] = {
        "torch.onnx.utils": {"_optimize_graph": optimize},
        "torch.onnx.symbolic_helper": {"_set_opset_version": set_opset},
        "torch._six": {"string_classes": str},
        "numpy.lib.arraysetops": {"isin": np.isin},
    }
    for name, names in moved.items():
        module = types.ModuleType(name)
        vars(module).update(names)
        sys.modules[name] = module
    torch._six = sys.modules["torch._six"]  # type: ignore[attr-defined]
    torch._C.Node.__getitem__ = attribute  # type: ignore[attr-defined]
    try:
        import auto_LiRPA  # type: ignore[import-not-found]
    except ImportError:
        return None
    members = auto_LiRPA.BoundedModule._named_members
    auto_LiRPA.BoundedModule._named_members = lambda self, get, prefix="", recurse=True, **_: (
        members(self, get, prefix, recurse)
    )
    return auto_LiRPA


def reference_attempts(
    library: Any, case: Case, network: Network, x: Tensor, y: Tensor
) -> dict[str, Attempt]:
    """What the reference does with image number i, by method."""
    layers, mean, std = Layers(network).eval(), torch.zeros(()), torch.ones(())
    for node in network.nodes:
        layer = network.layer(node.name)
        if isinstance(layer, Normalize):
            mean, std = layer.mean, layer.std
    inner = (x - mean) / std
    options = {"iteration": 20, "early_stop_patience": 1000}
    options["stop_criterion_func"] = lambda bound: bound.min(1, keepdim=True).values > 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        model = library.BoundedModule(
            layers, inner[:1], bound_opts={"optimize_bound_args": options}, device="cpu"
        )
    classes = torch.eye(network.classes)

    def attempt(method: str, i: int) -> bool:
        one, e = x[i : i + 1], case.epsilon
        if case.norm == "linf":
            low, high = (((one + d).clamp(0, 1) - mean) / std for d in (-e, e))
            ball = library.PerturbationLpNorm(norm=float("inf"), eps=e, x_L=low, x_U=high)
        else:
            ball = library.PerturbationLpNorm(norm=2, eps=e / float(std.flatten()[0]))
        rows = (classes[y[i]] - classes)[[j for j in range(len(classes)) if j != int(y[i])]]
        given = library.BoundedTensor(inner[i : i + 1], ball)
        asked = {"x": (given,), "C": rows[None], "bound_upper": False}
        with contextlib.redirect_stdout(io.StringIO()):
            if method == "crown":
                with torch.no_grad():
                    found, _ = model.compute_bounds(**asked, method="CROWN")
                return bool((found > 0).all())
            boxes = None
            if method == "alpha-crown":
                # Slopes of the last rows alone, as alpha,beta-CROWN calls it.
                model.init_slope((given,), c=rows[None], bound_upper=False)
                inputs = [layer.inputs[0] for layer in model.optimizable_activations]
                boxes = {v.name: [v.lower.detach(), v.upper.detach()] for v in inputs}
            model.set_bound_opts({"optimize_bound_args": {"init_alpha": boxes is None}})
            found, _ = model.compute_bounds(
                **asked, method="CROWN-Optimized", intermediate_layer_bounds=boxes
            )
        return bool((found > 0).all())

    return {method: partial(attempt, method) for method in METHODS}


def timed(attempt: Attempt, i: int) -> tuple[bool, float]:
    """What it proves, and its CPU seconds: the machine may be shared."""
    start = time.process_time()
    return attempt(i), time.process_time() - start


def measure(library: Any, case: Case, data: Path, images: int, methods: list[str]) -> None:
    """Print one row for each method."""
    network = case.make()
    x, y = load_images(case.data, data, -(-images // 10))
    x, y = x[:images].reshape(-1, *network.input_shape), y[:images]
    with torch.no_grad():
        logits = network(x)
    y = logits.argmax(1) if case.untrained else y
    margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -1e30).amax(1)
    x, y, margin = x[margin > 0], y[margin > 0], margin[margin > 0].to(torch.float64)
    reach = torch.full((len(x),), case.epsilon, dtype=torch.float64)
    problem = Problem(CompiledNetwork.compile(network), True, torch.device("cpu"))

    def ours(method: str, rows: slice) -> int:
        region = Region(x[rows], reach[rows], case.norm, case.clip)
        verdict = BOUNDS[method].attempt(problem, region, y[rows], Budget(margin[rows]))
        return int(verdict.proved.sum())

    theirs = reference_attempts(library, case, network, x, y)
    for method in methods:
        sides: list[Attempt] = [
            theirs[method],
            lambda i, method=method: ours(method, slice(i, i + 1)) == 1,
        ]
        found = [[timed(side, i) for side in sides] for i in [0, *range(len(x))]][1:]
        seconds = [[pair[side][1] for pair in found] for side in (0, 1)]
        proved = [sum(pair[side][0] for pair in found) for side in (0, 1)]
        start = time.process_time()
        together = ours(method, slice(None))
        batch = (time.process_time() - start) / len(x)
        means = [1e3 * statistics.fmean(side) for side in seconds]
        print(
            f"| {case.title} | {method} | {len(x)} | {proved[0]} / {proved[1]} / {together} | "
            f"{means[0]:.1f} / {means[1]:.1f} / {1e3 * batch:.1f} | "
            f"{means[1] / means[0]:.2f} / {1e3 * batch / means[0]:.2f} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("CERTSERVE_TEST_DATA")
    parser.add_argument("--shared", type=Path, default=default, required=default is None)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of titles, such as 2b")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=METHODS[:2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    library = reference_library()
    if library is None:
        print("auto_LiRPA 0.3 is not installed: nothing to measure beside")
        return
    print("| network, threat | method | images | proved: reference / ours / batch | ms | ratio |")
    print("|---" * 6 + "|")
    for case in cases(options.shared / "models"):
        if any(part in case.title for part in options.only):
            measure(library, case, options.shared / "data", options.images, options.methods)


if __name__ == "__main__":
    main()
