"""One random graph by its seed: made, imported, and compared with ONNX Runtime."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from models.errors import ModelError
from models.layers.activations import Step
from models.layers.curves import Within
from models.layers.normalization import LocalResponse, Standardize
from models.network import Network
from models.onnx.forms.inner_values import refuse_other_values
from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from models.onnx.safety import OPSETS
from tests.models.differential.builder import Builder
from tests.models.differential.mutations import mutate
from tests.models.differential.operators import IMAGE_STEPS, LINE_STEPS, STEPS
from tests.models.differential.scikit_learn import linear_scores
from workers.verification.layers.registry import rules_of
from workers.verification.layers.smooth.local_response import LARGEST

__all__ = ["Outcome", "compare", "compare_mutant", "mutant", "random_model"]

#: Standard deviations of the inputs, row after row.
SCALES = (1e-3, 1.0, 30.0)
#: Rows of each run in ONNX Runtime; the first three are what a file for one row only gets.
BATCHES = (1, 1, 1, 2, 3, 7)
#: What one layer may err, relative to the largest number it reads or writes. Layers here sum less
#: than 2^8 products, whose order ONNX Runtime and torch choose differently; units of 2^-24.
LAYER_ERROR = 2.0**-18
#: Inputs so large, times the largest parameter, may overflow in one order of summation: nothing is
#: E[y^2] over a variance up to which float32 keeps something of a difference of squares.
LARGEST_CANCELLATION = 2.0**20
#: certified there, and runtimes differ.
LARGEST_PRODUCT = 2.0**127 / 2**8


#: Steps to operators that few opsets hold (Resize gives Upsample there): drawn more often in these.
RARE = {
    "Attention": range(23, 25),
    "Gelu": range(20, 99),
    "GroupNormalization": range(18, 99),
    "RMSNormalization": range(23, 99),
    "Resize": range(10),
    "Swish": range(24, 99),
    "Where by sign": range(12, 99),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a graph. status: accepted, refused (with its code), or wrong (with the reason).

    operators: operator types on activations, and "constant X" for those on constants alone. A graph
    whose numbers are beyond float32 on every input is refused as ``beyond_float32``.
    """

    seed: int
    status: str
    detail: str
    operators: list[str]


def random_model(seed: int) -> ModelProto:
    """A graph of one to six operators, its constants, and an end that gives logits."""
    rng = np.random.default_rng(seed)
    opset = int(rng.choice(np.array(OPSETS)))
    shape: tuple[int, ...] = tuple(int(n) for n in rng.integers(1, 6, int(rng.integers(1, 4))))
    image = bool(rng.random() < 0.4)
    if image:
        shape = (int(rng.integers(1, 5)), int(rng.integers(4, 9)), int(rng.integers(4, 9)))
    batch = rng.choice(4, p=[0.2, 0.05, 0.08, 0.67])
    b = Builder(rng, shape, opset, [1, 3, None, "N"][int(batch)])
    name, known = "x", True
    for _ in range(b.number(1, 5)):
        shape = b.shapes[name]
        if not shape:
            break
        windows = {2: LINE_STEPS, 3: IMAGE_STEPS}.get(len(shape), STEPS)
        steps = windows if b.chance(0.5) else STEPS
        rare = {kind: STEPS[kind] for kind, opsets in RARE.items() if opset in opsets}
        steps = rare if rare and b.chance(0.15) else steps
        name = steps[b.pick(steps)](b, name, shape)
        known = b.learn(name) is not None
        if not known:
            break
    if b.chance(0.4):
        name = b.node(b.pick(["Relu", "Tanh"]), [name])
        known = known and b.learn(name) is not None
    if known and len(b.shapes[name]) > 0 and (b.chance(0.5) or math.prod(b.shapes[name]) < 2):
        flat, size = b.node("Flatten", [name], axis=1), math.prod(b.shapes[name])
        if b.chance(0.15):
            return b.model(linear_scores(b, flat, size))
        name = b.node("Gemm", [flat, b.constant(b.normal(size, 3)), b.constant(b.normal(3))])
    else:
        name = b.node("Flatten", [name], axis=1)
    if b.chance(0.1):
        # Nodes that the scores do not need, and outputs that hold none.
        b.node(b.pick(["Det", "Relu", "ArgMax"]), [name])
    if b.chance(0.15):
        name = b.node(b.pick(["Softmax", "LogSoftmax"]), [name], axis=b.pick([1, 1, -1]))
    if b.chance(0.1):
        name = b.node("ArgMax", [name], axis=b.pick([1, 1, -1]), keepdims=b.pick([0, 1]))
    elif b.chance(0.1):
        name = b.node("Sigmoid", [name])
    return b.model(name)


def compare(seed: int) -> Outcome:
    """What the import makes of the graph of this seed."""
    return compare_model(seed, random_model(seed))


def mutant(seed: int) -> ModelProto:
    """The graph of this seed, damaged at random."""
    model = random_model(seed)
    mutate(random.Random(seed), model)
    return model


def compare_mutant(seed: int) -> Outcome:
    """What the import makes of the damaged graph; runtimes may refuse it too."""
    outcome = compare_model(seed, mutant(seed))
    refused = "ONNX Runtime cannot run the model" in outcome.detail
    return replace(outcome, status="refused", detail="runtime_failed") if refused else outcome


def compare_model(seed: int, model: ModelProto) -> Outcome:
    """Import, then ONNX Runtime and our network on random inputs of every scale and batch."""
    operators = operators_of(model)
    data = model.SerializeToString()
    try:
        imported = read_onnx_bytes(data)
        runtime = OnnxRuntimeModel(imported.deployed, imported.network.input_shape, plain=True)
    except ModelError as error:
        status = "refused" if error.code != ModelError.code else "wrong"
        return Outcome(seed, status, error.code, operators)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test looks for
        return Outcome(seed, "wrong", f"{type(error).__name__}: {error}", operators)
    try:
        refuse_other_values(imported)
    except ModelError as error:
        return Outcome(seed, "wrong", str(error), operators)
    batches = BATCHES[:3] if imported.batch == 1 else BATCHES
    rng = np.random.default_rng(seed + 1)
    x = rng.standard_normal((sum(batches), *imported.network.input_shape))
    scales = np.resize(SCALES, len(x)).reshape(-1, *([1] * (x.ndim - 1)))
    x = (x * scales).astype(np.float32)
    compared = ~_beyond_float32(imported.network, x)
    wrong = _difference(imported.network, runtime, x, batches, compared)
    if not wrong and not compared.any():
        return Outcome(seed, "refused", "beyond_float32", operators)
    return Outcome(seed, "wrong" if wrong else "accepted", wrong, operators)


def operators_of(model: ModelProto) -> list[str]:
    """Operator types of the graph, those on constants alone marked."""
    moving, found = {"x"}, set()
    for node in model.graph.node:
        if moving.intersection(node.input):
            found.add(node.op_type)
            if node.op_type != "Shape":
                moving.update(node.output)
        else:
            found.add(f"constant {node.op_type}")
    return sorted(found)


def _difference(
    network: Network,
    runtime: OnnxRuntimeModel,
    x: NDArray[np.float32],
    batches: tuple[int, ...],
    compared: NDArray[np.bool_],
) -> str:
    """Where ONNX Runtime, batch by batch, and our network differ on the rows ``compared`` [N], of
    which those go at which any answer may come of rounding; empty: nowhere.
    """
    exact = network.double()
    with torch.no_grad():
        given = exact(torch.from_numpy(x).double()).numpy()
        inputs = torch.from_numpy(x).double()
        # A number next to a jump is on the other side in one draw at least.
        draws = 24 if any(isinstance(layer, Step) for layer in exact.layers.values()) else 4
        off = np.stack([_with_errors(exact, inputs, seed).numpy() for seed in range(draws)])
    with np.errstate(invalid="ignore"):
        tolerance = 16 * np.abs(off - given).max(axis=(0, 2))[:, None] + 1e-6
    # An error that takes numbers out of a domain explains everything.
    compared &= np.isfinite(tolerance[:, 0])
    start = 0
    for batch in batches:
        rows = slice(start, start + batch)
        start += batch
        try:
            # A file that takes any number of rows takes these together.
            together = runtime.batch is None
            expected = runtime._run(x[rows]) if together else runtime(x[rows])
        except ModelError as error:
            return f"batch {batch}: {error.message}"
        if expected.reshape(batch, -1).shape != given[rows].shape:
            return f"batch {batch}: shapes {expected.shape} and {given[rows].shape}"
        difference = np.abs(expected.reshape(batch, -1) - given[rows])
        # Written so that a NaN is a difference.
        if not (difference <= tolerance[rows])[compared[rows]].all():
            return (
                f"batch {batch}: off by {difference.max():.3g}, allowed {tolerance[rows].max():.3g}"
            )
    return ""


def _beyond_float32(network: Network, x: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Rows at which a product or a sum inside a layer may be larger than any float32, or a variance
    no number."""
    exact, beyond = network.double(), torch.zeros(len(x), dtype=torch.bool)

    def look(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal beyond
        parameters = [t.abs().max() for t in layer.state_dict().values() if t.numel()]
        factor = max([1.0, *(float(size) for size in parameters)])
        for values in (*given, result / factor):
            sizes = values.abs().reshape(len(x), -1).amax(1)
            beyond = beyond | ~(sizes * factor <= LARGEST_PRODUCT)
        if isinstance(layer, Within):
            # The file's own form of what follows leaves float32 there.
            low, high = layer.domain
            outside = (result < low) | (result > high)
            beyond = beyond | outside.reshape(len(x), -1).any(1)
        # Squares may leave float32 inside: nothing is certified there.
        rules = rules_of(layer).ball
        largest = LARGEST if isinstance(layer, LocalResponse) else math.inf
        largest = min(largest, math.inf if rules is None else rules.largest_input)
        norms = [values.reshape(len(x), -1).norm(dim=1) for values in given]
        beyond = beyond | (torch.stack(norms).sum(0) >= largest)
        if isinstance(layer, Standardize):
            # A variance that cancels away as a difference of squares may be negative, its root NaN.
            beyond = beyond | ~(_squares_over_variance(layer, *given) <= LARGEST_CANCELLATION)

    hooks = [layer.register_forward_hook(look) for layer in exact.layers.values()]
    try:
        with torch.no_grad():
            exact(torch.from_numpy(x).double())
    finally:
        for hook in hooks:
            hook.remove()
    return beyond.numpy()


def _squares_over_variance(layer: Standardize, moved: Tensor, given: Tensor) -> Tensor:
    """E[y^2] over the variance and eps, the largest of each row, [N]."""
    size = len(given)
    squares = [t.square().mean(layer.batched_axes()).reshape(size, -1) for t in (moved, given)]
    return (squares[1] / (squares[0] + layer.eps)).amax(1)


def _with_errors(network: Network, x: Tensor, seed: int) -> Tensor:
    """The network in float64, each layer off by what float32 may cost it, at random."""
    generator = torch.Generator().manual_seed(seed)

    def err(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        sizes = torch.stack([t.abs().reshape(len(x), -1).amax(1) for t in (*given, result)]).amax(0)
        if isinstance(layer, Standardize):
            # The variance of the second input may be computed as a difference of squares.
            sizes = sizes * (1.0 + _squares_over_variance(layer, *given))
        signs = 2 * torch.rand(result.shape, generator=generator, dtype=torch.float64) - 1
        if isinstance(layer, Step):
            # What is next to a jump, on either side of it, wherever errors before have taken it (an
            # Abs makes them one-sided); a step itself has no error.
            moves = 64 * LAYER_ERROR * signs * sizes.reshape(-1, *([1] * (result.dim() - 1)))
            return layer.stepped(given[0] + moves)
        return result + LAYER_ERROR * signs * sizes.reshape(-1, *([1] * (result.dim() - 1)))

    hooks = [layer.register_forward_hook(err) for layer in network.layers.values()]
    try:
        logits: Tensor = network(x)
        return logits
    finally:
        for hook in hooks:
            hook.remove()
