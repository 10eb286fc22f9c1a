"""How far deployed unary functions are from the real ones, at every float32 number there is.

``python -m benchmarks.verification.kernels [NAME ...] [--outside N]``: every number up to 2^124
in size (beyond it products overflow; the rules conclude nothing there), ONNX Runtime with
optimisations off and torch, single operators and the nodes that exporters write; some two minutes
of one core a function. The figure is the largest error over max(1, |z|), against float64, or over
what a function says instead (``exp``: over its value); what
``workers.verification.layers.smooth`` allows is several times as much. Functions with a domain are
tried on it alone. ``--outside N`` takes only
one number in N of those that are not between 2^-12 and 2^6 in size, a fifteenth of the time. Rows
are Markdown.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor

#: Numbers looked at together: what a cache holds of them.
BLOCK = 1 << 18
#: Bits of 2^124, 2^-12 and 2^6.
LAST, FIRST_INSIDE, LAST_INSIDE = ((exponent + 127) << 23 for exponent in (124, -12, 6))
#: (operator, inputs, output, attributes); "x" is the input, numbers are constants.
Node = tuple[str, list[str | float], str, dict[str, object]]


@dataclass(frozen=True)
class Kernel:
    """One function: the nodes that end in "y", their opset, torch's own, and the exact one.

    over: (z, exact value) -> what errors are divided by. domain: numbers beyond it are its ends.
    """

    nodes: list[Node]
    opset: int
    exact: Callable[[Tensor], Tensor]
    torch: Callable[[Tensor], Tensor] | None = None
    over: Callable[[Tensor, Tensor], Tensor] = lambda z, exact: z.abs().clamp_min(1.0)
    domain: tuple[float, float] = (-math.inf, math.inf)


def _one(kind: str, **attributes: object) -> list[Node]:
    return [(kind, ["x"], "y", attributes)]


def gelu(z: Tensor) -> Tensor:
    return 0.5 * z * torch.special.erfc(-z * math.sqrt(0.5))


def gelu_tanh(z: Tensor) -> Tensor:
    # z (1 + tanh u) / 2 = z sigmoid(2 u), which loses no digits.
    return z * torch.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3))


def mish(z: Tensor) -> Tensor:
    e = torch.exp(z.clamp_max(40.0))
    n = e * (e + 2.0)
    return z * (n / (n + 2.0))


def elu(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, torch.expm1(z.clamp_max(0.0)))


def selu(z: Tensor) -> Tensor:
    alpha, scale = (float(np.float32(v)) for v in (1.6732632423543772, 1.0507009873554805))
    return scale * torch.where(z > 0, z, alpha * torch.expm1(z.clamp_max(0.0)))


_ERF: list[Node] = [
    ("Div", ["x", math.sqrt(2.0)], "a", {}),
    ("Erf", ["a"], "b", {}),
    ("Add", ["b", 1.0], "c", {}),
    ("Mul", ["x", "c"], "d", {}),
    ("Mul", ["d", 0.5], "y", {}),
]
_CUBE: list[Node] = [
    ("Pow", ["x", 3.0], "a", {}),
    ("Mul", ["a", 0.044715], "b", {}),
    ("Add", ["x", "b"], "c", {}),
    ("Mul", ["c", math.sqrt(2.0 / math.pi)], "d", {}),
    ("Tanh", ["d"], "e", {}),
    ("Add", ["e", 1.0], "f", {}),
    ("Mul", ["x", 0.5], "g", {}),
    ("Mul", ["g", "f"], "y", {}),
]

#: 1 / (1 + e^-x), and x / (1 + e^-x), by the operators that these are.
_LOGISTIC: list[Node] = [
    ("Neg", ["x"], "a", {}),
    ("Exp", ["a"], "b", {}),
    ("Add", ["b", 1.0], "c", {}),
]
_TANH: list[Node] = [
    ("Exp", ["x"], "a", {}),
    ("Neg", ["x"], "b", {}),
    ("Exp", ["b"], "c", {}),
    ("Sub", ["a", "c"], "d", {}),
    ("Add", ["a", "c"], "e", {}),
    ("Div", ["d", "e"], "y", {}),
]
_SOFTPLUS: list[Node] = [
    ("Exp", ["x"], "a", {}),
    ("Add", ["a", 1.0], "b", {}),
    ("Log", ["b"], "y", {}),
]
_HALF: list[Node] = [
    ("Exp", ["x"], "a", {}),
    ("Sub", ["a", 1.0], "b", {}),
    ("Add", ["a", 1.0], "c", {}),
    ("Div", ["b", "c"], "y", {}),
]
_SHARE: list[Node] = [
    ("Exp", ["x"], "a", {}),
    ("Add", ["a", 1.0], "b", {}),
    ("Div", ["a", "b"], "y", {}),
]


def softplus(z: Tensor) -> Tensor:
    return z.clamp_min(0.0) + torch.log1p(torch.exp(-z.abs()))


def relative(z: Tensor, exact: Tensor) -> Tensor:
    """The value itself; of what underflows the least normal number."""
    return exact.abs().clamp_min(2.0**-126)


def value(z: Tensor, exact: Tensor) -> Tensor:
    """1, the largest value: of large numbers too no more is allowed."""
    return torch.ones_like(exact)


KERNELS: dict[str, Kernel] = {
    "exp": Kernel(_one("Exp"), 13, torch.exp, torch.exp, relative, (-math.inf, 88.0)),
    "log": Kernel(
        _one("Log"),
        *(13, torch.log, torch.log, lambda z, exact: exact.abs().clamp_min(1.0)),
        (2.0**-100, math.inf),
    ),
    "reciprocal": Kernel(
        _one("Reciprocal"),
        *(13, torch.reciprocal, torch.reciprocal, relative, (2.0**-100, 2.0**100)),
    ),
    "sqrt": Kernel(_one("Sqrt"), 13, torch.sqrt, torch.sqrt, relative, (0.0, math.inf)),
    "pow 0.5": Kernel(
        [("Pow", ["x", 0.5], "y", {})], 13, torch.sqrt, None, relative, (0.0, math.inf)
    ),
    "pow -1": Kernel(
        *([("Pow", ["x", -1.0], "y", {})], 13, torch.reciprocal, None, relative),
        (2.0**-100, 2.0**100),
    ),
    "pow -0.5": Kernel(
        *([("Pow", ["x", -0.5], "y", {})], 13, torch.rsqrt, None, relative),
        (2.0**-100, 2.0**100),
    ),
    "sigmoid, nodes": Kernel([*_LOGISTIC, ("Div", [1.0, "c"], "y", {})], 13, torch.sigmoid),
    "sigmoid, reciprocal": Kernel([*_LOGISTIC, ("Reciprocal", ["c"], "y", {})], 13, torch.sigmoid),
    "sigmoid, e / (1 + e)": Kernel(_SHARE, 13, torch.sigmoid, domain=(-math.inf, 88.0)),
    "silu, quotient": Kernel(
        [*_LOGISTIC, ("Div", ["x", "c"], "y", {})], 13, lambda z: z * torch.sigmoid(z)
    ),
    "tanh, nodes": Kernel(_TANH, 13, torch.tanh, domain=(-80.0, 80.0)),
    "tanh of a half, nodes": Kernel(
        _HALF, 13, lambda z: torch.tanh(0.5 * z), domain=(-math.inf, 88.0)
    ),
    # A softplus is allowed 1e-6, and four roundings of z.
    "elu, nodes": Kernel(
        [
            ("Exp", ["x"], "a", {}),
            ("Sub", ["a", 1.0], "b", {}),
            ("Greater", ["x", 0.0], "c", {}),
            ("Where", ["c", "x", "b"], "y", {}),
        ],
        *(13, elu),
    ),
    "softplus, nodes": Kernel(
        *(_SOFTPLUS, 13, softplus, None, lambda z, exact: 1.0 + 0.3 * z.clamp_min(0.0)),
        (-math.inf, 88.0),
    ),
    "gelu, nodes": Kernel(_ERF, 13, gelu, F.gelu),
    "silu, nodes": Kernel(
        [("Sigmoid", ["x"], "a", {}), ("Mul", ["x", "a"], "y", {})],
        *(13, lambda z: z * torch.sigmoid(z), F.silu),
    ),
    "elu": Kernel(_one("Elu"), 13, elu, F.elu),
    "mish, nodes": Kernel(
        [("Softplus", ["x"], "a", {}), ("Tanh", ["a"], "b", {}), ("Mul", ["x", "b"], "y", {})],
        *(13, mish, F.mish),
    ),
    "gelu": Kernel(_one("Gelu"), 20, gelu),
    "gelu tanh, nodes": Kernel(_CUBE, 13, gelu_tanh, lambda z: F.gelu(z, approximate="tanh")),
    "selu": Kernel(_one("Selu"), 13, selu, F.selu),
    "softsign": Kernel(_one("Softsign"), 13, lambda z: z / (1.0 + z.abs()), F.softsign),
    "hard-swish": Kernel(
        _one("HardSwish"), 14, lambda z: z * (z / 6.0 + 0.5).clamp(0.0, 1.0), F.hardswish
    ),
    "celu": Kernel(_one("Celu"), 13, elu, F.celu),
    "gelu tanh": Kernel(_one("Gelu", approximate="tanh"), 20, gelu_tanh),
    "mish": Kernel(_one("Mish"), 18, mish),
    "swish": Kernel(_one("Swish"), 24, lambda z: z * torch.sigmoid(z)),
    "atan": Kernel(_one("Atan"), 13, torch.atan, torch.atan),
    "sin": Kernel(_one("Sin"), 13, torch.sin, torch.sin, value),
    "cos": Kernel(_one("Cos"), 13, torch.cos, torch.cos, value),
    "erf": Kernel(_one("Erf"), 13, torch.special.erf, torch.special.erf),
    "sigmoid": Kernel(_one("Sigmoid"), 13, torch.sigmoid, torch.sigmoid),
    "tanh": Kernel(_one("Tanh"), 13, torch.tanh, torch.tanh),
    "softplus": Kernel(_one("Softplus"), 13, softplus, F.softplus),
}


def session(kernel: Kernel) -> onnxruntime.InferenceSession:
    """The nodes as ONNX Runtime runs them, one thread, nothing fused."""
    nodes, constants = [], {}
    for kind, inputs, output, attributes in kernel.nodes:
        names = []
        for value in inputs:
            name = value if isinstance(value, str) else f"c{value}"
            if not isinstance(value, str):
                constants[name] = helper.make_tensor(name, TensorProto.FLOAT, [], [value])
            names.append(name)
        nodes.append(helper.make_node(kind, names, [output], **attributes))
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n"]) for end in "xy"]
    graph = helper.make_graph(nodes, "kernel", ends[:1], ends[1:], list(constants.values()))
    opset = helper.make_opsetid("", kernel.opset)
    model = helper.make_model(
        graph, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset])
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def blocks(inside: int, outside: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint32]]]:
    """All the numbers that are tried, by their bits."""
    for first, last, every in (
        (0, FIRST_INSIDE, outside),
        (FIRST_INSIDE, LAST_INSIDE, inside),
        (LAST_INSIDE, LAST + 1, outside),
    ):
        for start in range(first, last, BLOCK * every):
            bits = np.arange(start, min(start + BLOCK * every, last), every, dtype=np.uint32)
            yield bits
            yield bits | np.uint32(1 << 31)


def largest_errors(
    kernel: Kernel, *, inside: int = 1, outside: int = 1
) -> dict[str, tuple[float, float]]:
    """By runtime: the largest error over what the kernel says, and the z where it is."""
    ran = session(kernel)
    runs = {"ONNX Runtime": lambda z: torch.from_numpy(ran.run(None, {"x": z.numpy()})[0])}
    if kernel.torch is not None:
        runs["torch"] = kernel.torch
    worst = dict.fromkeys(runs, (0.0, 0.0))
    for bits in blocks(inside, outside):
        z = torch.from_numpy(bits.view(np.float32)).clamp(*kernel.domain)
        wide = z.to(torch.float64)
        exact = kernel.exact(wide)
        size = kernel.over(wide, exact)
        for name, run in runs.items():
            error = (run(z).to(torch.float64) - exact).abs_().div_(size)
            # A NaN is the largest of all.
            largest, place = error.max(0)
            if not float(largest) <= worst[name][0]:
                worst[name] = (float(largest), float(z[place]))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(KERNELS))
    parser.add_argument("--outside", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    print(f"ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__}, ", end="")
    print(
        f"{named[0] if named else platform.processor()}; outside 2^-12 to 2^6 one in "
        f"{arguments.outside}"
    )
    print(
        "| function | runtime | largest error / max(1, \\|z\\|), or relative | at z |\n"
        "|---|---|---|---|"
    )
    for name in arguments.names or KERNELS:
        for runtime, (error, z) in largest_errors(KERNELS[name], outside=arguments.outside).items():
            print(f"| {name} | {runtime} | {error:.3g} | {z:.9g} |", flush=True)


if __name__ == "__main__":
    main()
