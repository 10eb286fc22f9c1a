"""``crown-ball`` and ``crown`` on a MaxMin network of MNIST: pairs turned, and by planes alone.

    CERTSERVE_TEST_DATA=... python -m benchmarks.published.sorted_pairs [--network conv]

Trains a small network for some minutes (PGD in l2, no Lipschitz constant in the loss), then counts
what is certified of the first test images: before (MaxMin by planes over the boxes of both numbers)
and after (``graph.turned_pairs``), CPU seconds of one thread for each image that norms and attack
leave open.
"""

from __future__ import annotations

import argparse
import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from models.layers.activations import MaxMin
from models.layers.kinds import Conv2d, Layer, Linear, Reshape
from models.network import Network
from workers.verification.attacks.pgd import attack
from workers.verification.bounds import crown, crown_ball
from workers.verification.bounds.lipschitz import lipschitz_radius
from workers.verification.forward.margins import certified
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.turned_pairs import with_turned_pairs
from workers.verification.region import Region
from workers.verification.results import AttackSettings
from workers.verification.rounding import Rounding, exact_arithmetic

SIDE, BATCH, TOGETHER = 28, 128, 20
NAMES: dict[str, tuple[Callable[..., Tensor], ModuleType]] = {
    "crown-ball": (crown_ball.crown_ball_margins, crown_ball),
    "crown": (crown.crown_margins, crown),
}


def _as_it_is(compiled: CompiledNetwork) -> CompiledNetwork:
    return compiled


def images(kind: str) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 28, 28] in 0 to 1, and labels; kind: ``train`` or ``t10k``."""
    folder = Path(os.environ["CERTSERVE_TEST_DATA"]) / "data" / "mnist"
    raw = gzip.decompress((folder / f"{kind}-images-idx3-ubyte.gz").read_bytes())
    x = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, SIDE, SIDE).copy()
    raw = gzip.decompress((folder / f"{kind}-labels-idx1-ubyte.gz").read_bytes())
    y = np.frombuffer(raw, np.uint8, offset=8).astype(np.int64)
    return torch.from_numpy(x).float() / 255, torch.from_numpy(y)


def layers(kind: str) -> list[tuple[nn.Module, int]]:
    """Maps, and the size of what is flattened before them (0: nothing is)."""
    if kind == "mlp":
        return [(nn.Linear(784, 128), 784), (nn.Linear(128, 128), 0), (nn.Linear(128, 10), 0)]
    return [
        (nn.Conv2d(1, 16, 4, 2, 1), 0),
        (nn.Conv2d(16, 32, 4, 2, 1), 0),
        (nn.Linear(32 * 49, 100), 32 * 49),
        (nn.Linear(100, 10), 0),
    ]


def trained(kind: str, epsilon: float, steps: int) -> Network:
    """Trained on PGD's points of four steps at an epsilon that grows for half of the time."""
    torch.manual_seed(0)
    maps, sort = layers(kind), MaxMin()

    def logits(x: Tensor) -> Tensor:
        for number, (step, flat) in enumerate(maps):
            x = step(x.flatten(1) if flat else x)
            x = sort(x) if number < len(maps) - 1 else x
        return x

    x, y = images("train")
    optimizer = torch.optim.Adam([p for step, _ in maps for p in step.parameters()], lr=1e-3)
    for step in range(steps):
        some = torch.randint(0, len(x), (BATCH,))
        clean, labels = x[some], y[some]
        reach = epsilon * min(1.0, 2.0 * step / steps)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps) + 1e-6
        move = torch.zeros_like(clean)
        for _ in range(4):
            move.requires_grad_(True)
            loss = nn.functional.cross_entropy(logits(clean + move), labels)
            (slope,) = torch.autograd.grad(loss, move)
            size = slope.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            move = move.detach() + 0.4 * reach * slope / (size + 1e-12)
            length = move.flatten(1).norm(dim=1).clamp_min(1e-9)
            move = move * (reach / length).clamp_max(1.0).reshape(-1, 1, 1, 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits(clean + move), labels).backward()
        optimizer.step()
    return network(maps)


def network(maps: list[tuple[nn.Module, int]]) -> Network:
    """The same network of our layers."""
    rows, last = [], "input"
    for number, (step, flat) in enumerate(maps):
        weight, bias = (p.detach() for p in step.parameters())
        made: list[Layer] = [Reshape(shape=(flat,))] if flat else []
        made += [
            Conv2d(weight, bias, stride=2, padding=1) if weight.dim() == 4 else Linear(weight, bias)
        ]
        made += [MaxMin()] if number < len(maps) - 1 else []
        for part in made:
            rows.append((f"{number}-{part.kind}", part, (last,)))
            last = rows[-1][0]
    return Network((1, SIDE, SIDE), rows).eval()


def measure(model: Network, epsilon: float, count: int, method: str, clip: bool) -> str:
    """One row: correct, by norms, broken, left open, of these before and after, seconds of each."""
    x, labels = (part[:count] for part in images("t10k"))
    compiled = CompiledNetwork.compile(model)
    reach = torch.full((count,), epsilon, dtype=torch.float64)
    double = (Rounding.sound(torch.float64), torch.float64)
    with exact_arithmetic():
        correct = model(x).argmax(1) == labels
        radius = lipschitz_radius(
            compiled, x, labels, norm="l2", rounding=double[0], dtype=double[1]
        )
    norms = correct & (radius >= reach)
    rows = (correct & ~norms).nonzero().flatten()
    broken, _ = attack(
        model,
        lambda batch: model(torch.from_numpy(batch)).detach().numpy(),
        x[rows],
        labels[rows],
        rows.numpy(),
        reach[rows],
        norm="l2",
        clip=clip,
        settings=AttackSettings(),
    )
    rows = rows[~torch.as_tensor(broken)]
    figures = [int(correct.sum()), int(norms.sum()), int(broken.sum()), len(rows)]
    seconds = []
    bound, room = NAMES[method]
    for turn in (_as_it_is, with_turned_pairs):
        proved, began = 0, time.process_time()
        with exact_arithmetic(), mock.patch.object(room, "with_turned_pairs", turn):
            for part in rows.split(TOGETHER):
                region = Region(x[part], reach[part], "l2", clip)
                single = (Rounding.sound(torch.float32), torch.float32)
                found = bound(compiled, region, labels[part], *single)
                proved += int(certified(found).sum())
        figures.append(proved)
        seconds.append(f"{(time.process_time() - began) / max(1, len(rows)):.3f}")
    return " | ".join([method, f"box {clip}", *map(str, figures), *seconds])


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=["mlp", "conv"], default="mlp")
    parser.add_argument("--steps", type=int, default=1875)
    parser.add_argument("--trained-at", type=float, default=1.0)
    parser.add_argument("--epsilon", type=float, default=0.75)
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = trained(given.network, given.trained_at, given.steps)
    print("method | pixel box | correct | norms | broken | open | before | after | seconds (both)")
    for clip in (False, True):
        for method in NAMES:
            print(measure(model, given.epsilon, given.images, method, clip), flush=True)


if __name__ == "__main__":
    main()
