"""By how much a time budget is overrun, and how soon a cancelled bound ends, per method.

    OMP_NUM_THREADS=1 nice .venv/bin/python benchmarks/verification/time_budget.py
        [--budgets 1 5 20]
        [--methods crown alpha-crown ...] [--networks cnn7 wide-linear] [--case FOLDER]

Networks: a CNN7 of some 65 MB and a wide fully connected one, both with random weights, and with
--case a folder with ``model.onnx``, ``data.npz`` (x as NHWC) and ``spec.json``. Each run certifies
a few samples on one thread, and its clock is the processor's: what else the machine does costs
wall time, but is not counted here. Printed per run: seconds beyond the budget, the longest stretch
between two looks at the clock, what was decided; ``cancel``: seconds from a cancellation that comes
one second after the start to the end of the run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.layers.kinds import Conv2d, Layer, Linear, ReLU, Reshape
from models.network import INPUT, Network
from models.onnx.importer import import_onnx
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.results import AttackSettings, CertificationRequest, SampleResults

SAMPLES = 4
CANCEL_AFTER_S = 1.0


class Cancelled(BaseException):
    """As a worker raises it."""


@dataclass(frozen=True)
class Case:
    """A network, its inputs [N, *shape] in [0, 1], and the threat."""

    name: str
    network: Network
    x: NDArray[np.float32]
    norm: str
    epsilon: Fraction


@dataclass
class Looks:
    """Told at every look at the clock; raises at the first one after ``cancel_at``."""

    last: float
    longest: float = 0.0
    cancel_at: float = float("inf")

    def __call__(self, done: int, message: str) -> None:
        now = time.process_time()
        self.longest = max(self.longest, now - self.last)
        self.last = now
        if now > self.cancel_at:
            raise Cancelled


def chain(shape: tuple[int, ...], layers: list[Layer]) -> Network:
    """Layers one after the other."""
    names = [INPUT, *(f"layer{number}" for number in range(len(layers)))]
    rows = [(names[n + 1], layer, (names[n],)) for n, layer in enumerate(layers)]
    return Network(shape, rows).eval()


def cnn7() -> Network:
    """The CNN7 of the certified-training papers on 3 x 32 x 32, without batch norm."""
    generator = torch.Generator().manual_seed(0)
    layers: list[Layer] = []
    for inputs, outputs, stride in (
        (3, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 128, 1),
    ):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (inputs * 9)) ** 0.5
        layers += [
            Conv2d(weight, torch.zeros(outputs), stride=(stride, stride), padding=(1, 1, 1, 1)),
            ReLU(),
        ]
    layers.append(Reshape(shape=(128 * 16 * 16,)))
    for inputs, outputs in ((128 * 16 * 16, 512), (512, 10)):
        weight = torch.randn(outputs, inputs, generator=generator) * (2 / inputs) ** 0.5
        layers += [Linear(weight, torch.zeros(outputs)), ReLU()]
    return chain((3, 32, 32), layers[:-1])


def wide_linear() -> Network:
    """784 - 4096 - 4096 - 10."""
    generator = torch.Generator().manual_seed(1)
    layers: list[Layer] = []
    for inputs, outputs in ((784, 4096), (4096, 4096), (4096, 10)):
        weight = torch.randn(outputs, inputs, generator=generator) * (2 / inputs) ** 0.5
        layers += [Linear(weight, torch.zeros(outputs)), ReLU()]
    return chain((784,), layers[:-1])


def random_case(name: str, network: Network) -> Case:
    x = np.random.default_rng(0).random((SAMPLES, *network.input_shape), dtype=np.float32)
    return Case(name, network, x, "linf", Fraction(2, 255))


def handed_case(folder: Path) -> Case:
    spec = json.loads((folder / "spec.json").read_text())
    with np.load(folder / "data.npz", allow_pickle=False) as data:
        x = data["x"]
    x = x / np.float32(255) if x.dtype == np.uint8 else x
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)
    epsilon = Fraction(spec["epsilons"][0])
    return Case(folder.name, import_onnx(folder / "model.onnx"), x, spec["norm"], epsilon)


def run(
    case: Case, method: str, deadline: float | None, looks: Looks, cache: Path | None
) -> SampleResults:
    network = case.network

    def deployed(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            answer: NDArray[np.float32] = network(torch.from_numpy(batch)).numpy()
        return answer

    logits = deployed(case.x)
    attack = method in ("auto", "attack")
    return certify_samples(
        network,
        case.x,
        logits.argmax(1),
        np.arange(len(case.x)),
        CertificationRequest(
            case.norm,
            (case.epsilon,),
            "lipschitz" if method == "attack" else method,
            attack=AttackSettings(steps=2000, restarts=20) if attack else None,
            radius=False,
        ),
        deployed=deployed,
        deployed_logits=logits,
        device=torch.device("cpu"),
        cache_dir=cache,
        deadline=deadline,
        now=time.process_time,
        progress=looks,
    )


def measure(case: Case, method: str, budget: float, cache: Path | None) -> None:
    """Print one row."""
    began = time.process_time()
    looks = Looks(began)
    result = run(case, method, began + budget, looks, cache)
    over = max(0.0, time.process_time() - began - budget)
    ended = "spent" if result.notes["budget_spent"] else "done"
    certified = f"{int(result.certified.sum())} of {len(case.x)} certified"
    print(
        f"  {method:26s} budget {budget:4.0f} s: over {over:5.2f} s, "
        f"longest stretch {looks.longest:5.2f} s, {ended}, {certified}",
        flush=True,
    )


def measure_cancel(case: Case, method: str, cache: Path | None) -> None:
    """Print one row."""
    began = time.process_time()
    try:
        run(case, method, None, Looks(began, cancel_at=began + CANCEL_AFTER_S), cache)
    except Cancelled:
        late = time.process_time() - began - CANCEL_AFTER_S
        print(f"  {method:26s} cancel: {late:5.2f} s", flush=True)
    else:
        print(f"  {method:26s} cancel: was done before", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 5.0, 20.0])
    parser.add_argument("--methods", nargs="+", default=["auto", "attack", *BOUNDS])
    parser.add_argument("--networks", nargs="+", default=["cnn7", "wide-linear"])
    parser.add_argument("--case", type=Path, help="a folder with model, data and spec")
    parser.add_argument("--cache", type=Path, help="folder that keeps operator norms")
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], Network]] = {"cnn7": cnn7, "wide-linear": wide_linear}
    cases = [random_case(name, makers[name]()) for name in options.networks]
    if options.case is not None:
        cases.append(handed_case(options.case))
    for case in cases:
        megabytes = 4e-6 * sum(value.numel() for value in case.network.state_dict().values())
        print(f"{case.name}: {megabytes:.1f} MB of weights, {case.norm} {case.epsilon}", flush=True)
        for budget in options.budgets:
            measure(case, "lipschitz", budget, None)
        print("  the norms above are part of the run; below they are known", flush=True)
        if options.cache is not None:
            CompiledNetwork.compile(case.network, cache_dir=options.cache)
        for method in options.methods:
            for budget in options.budgets:
                measure(case, method, budget, options.cache)
            measure_cancel(case, method, options.cache)


if __name__ == "__main__":
    main()
