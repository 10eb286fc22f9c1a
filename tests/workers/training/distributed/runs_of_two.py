"""The runs that are done by two processes and by one, and one of the two: ``python -m``.

One pair of processes does them all, because each imports torch. What a rank found is in
``rank-<n>.safetensors`` and ``rank-<n>.json`` of the folder that it is given.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from service.contract.processes import die_with_parent
from tests.workers.training.runs import CPU, config_of
from workers.training import loop
from workers.training.config import TrainingConfig
from workers.training.data import TrainingData
from workers.training.distributed.group import joined
from workers.training.distributed.ranks import ALONE, Ranks, RanksLost
from workers.training.loop import Paused, train
from workers.training.objectives import OBJECTIVES
from workers.training.trainer import Trainer, build_network

__all__ = ["SIZE", "STEPS", "Found", "gradients_and_states", "run_to_the_end"]

SIZE = 2
#: Training steps whose gradients are compared.
STEPS = 2
#: Odd, so that the parts differ.
BATCH = 7

CONV = {"kind": "conv2d", "out": 4, "kernel": 3, "padding": 1}
NORM = {"kind": "batch-norm"}
DENSE = {"kind": "linear", "out": 5}
FLAT = {"kind": "flatten"}
RELU = {"kind": "relu"}
HIDDEN = {"kind": "linear", "out": 6}


def _layers(activation: str) -> dict[str, Any]:
    """Two batch norms, one over images and one over rows."""
    unit = {"kind": activation}
    rows = [CONV, NORM, unit, FLAT, HIDDEN, NORM, unit, DENSE]
    return {"input": [1, 8, 8], "layers": rows}


def _lipconvnet(**parts: object) -> dict[str, Any]:
    """Skew convolutions, and the power steps that follow their norms."""
    sizes = {"input": [1, 8, 8], "depth": 4, "blocks": 2, "width": 2, "classes": 5}
    return {"name": "lipconvnet", **sizes, **parts}


CHAIN = {"input": [1, 8, 8], "layers": [CONV, RELU, FLAT, HIDDEN, RELU, DENSE]}
#: Methods that are made for other layers; all others train ``_layers("relu")``.
ARCHITECTURES: dict[str, Any] = {
    "cap": CHAIN,
    # No batch norm: behind a part that is frozen it would have to be frozen too.
    "colt": CHAIN,
    "emma": _layers("maxmin"),
    "local-lip-b": _layers("relu-theta"),
    "one-lipschitz": {
        "name": "shiftnet",
        "input": [1, 8, 8],
        "width": 8,
        "depths": [1, 1],
        "classes": 5,
    },
    "soc": _lipconvnet(pooling="projection"),
    "soc-crc": _lipconvnet(head="crc", hidden=12),
}
#: Of networks by name; layer lists have their own.
ACTIVATIONS = {"one-lipschitz": "maxmin", "soc": "maxmin", "soc-crc": "householder-2"}


#: Products of two losses: with boxes as wide as the others' their rounding alone is large.
EPSILONS = {"taps": 0.05, "staps": 0.05}


def run_of(method: str, **changes: object) -> TrainingConfig:
    """A small run in which nothing is switched off."""
    changed: dict[str, object] = {
        "architecture": ARCHITECTURES.get(method, _layers("relu")),
        "activation": ACTIVATIONS.get(method, "relu"),
        "epsilon": EPSILONS.get(method, 0.3),
        "batch_size": BATCH,
        "devices": SIZE,
        # Not Adam: it makes full steps of gradients that are nothing but rounding.
        "optimizer": "orthogonal-muon" if method == "one-lipschitz" else "sgd",
        "learning_rate": 1e-4,
        "clip_norm": 0.5,
        "lookahead": 2,
        "sparsity": 0.1,
        "validation_samples": 3,
        "epochs": 2,
        **changes,
    }
    return config_of(method, **changed)


def samples(count: int = 24) -> TrainingData:
    """Small images of five kinds."""
    y = torch.arange(count) % 5
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[torch.arange(count), 0, y] += 1.0
    return TrainingData((x * 127).to(torch.uint8), y)


@dataclass
class Found:
    """Tensors and other results by name."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, rank: int) -> None:
        """For the test."""
        safetensors.torch.save_file(
            {name: tensor.detach().contiguous() for name, tensor in self.tensors.items()},
            folder / f"rank-{rank}.safetensors",
        )
        (folder / f"rank-{rank}.json").write_text(json.dumps(self.facts))

    @classmethod
    def read(cls, folder: Path, rank: int) -> Found:
        """What a rank wrote."""
        tensors = safetensors.torch.load_file(folder / f"rank-{rank}.safetensors")
        return cls(tensors, json.loads((folder / f"rank-{rank}.json").read_text()))


def gradients_and_states(ranks: Ranks = ALONE) -> Found:
    """Of every method: the gradients of ``STEPS`` steps, the losses, and the state after them."""
    found = Found()
    for method in OBJECTIVES:
        config = run_of(method, clip_norm=None)
        trainer = Trainer(config, build_network(config), ranks)
        data = samples()
        order = data.order(config.seed, 0)
        for step in range(STEPS):
            rows = order[step * BATCH : (step + 1) * BATCH]
            x, y = data.batch(rows, config.augmentation, config.seed, step)
            # Late in the schedules: every part of a loss counts.
            part = trainer.train_on(x, y, 0.7, step)
            found.tensors[f"{method}/sums/{step}"] = ranks.table(part).sum(0)
            for name, parameter in trainer.network.named_parameters():
                if parameter.grad is not None:
                    found.tensors[f"{method}/gradient/{step}/{name}"] = parameter.grad.clone()
        found.tensors |= {
            f"{method}/state/{name}": tensor.clone() for name, tensor in trainer.state().items()
        }
    return found


def run_to_the_end(
    path: Path, ranks: Ranks = ALONE, *, pausing: bool = False
) -> tuple[Found, list[dict[str, Any]], int]:
    """Network and curve of a run, and how often it was paused, if it is to be."""
    config, data = run_of("bcp"), samples()
    for pauses in range(20):
        asked = iter([False, pausing])
        try:
            network, history = train(
                config,
                data,
                device=CPU,
                checkpoint=path,
                # Of the other ranks nobody asks.
                should_pause=lambda asked=asked: next(asked, pausing) and ranks.first,  # type: ignore[misc]
                ranks=ranks,
            )
        except Paused:
            # The first rank has written its checkpoint.
            ranks.decided([0.0], CPU)
            continue
        return Found(dict(network.state_dict())), history, pauses
    raise AssertionError("it does not get on")


def _lost(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except RanksLost as lost:
        return str(lost)
    return None


def main() -> None:
    """One of the two. Arguments: rank, the parent's pid, folder."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[3])
    die_with_parent(int(sys.argv[2]))
    torch.set_num_threads(1)
    with joined(rank, SIZE, folder / "first", CPU, limit_s=120.0) as ranks:
        found = gradients_and_states(ranks)
        loop.LOOK_EVERY = 2
        for name, pausing in (("whole", False), ("resumed", True)):
            end, history, pauses = run_to_the_end(folder / name, ranks, pausing=pausing)
            found.tensors |= {f"{name}/{key}": value for key, value in end.tensors.items()}
            found.facts |= {name: history, f"{name} pauses": pauses}
        same, other = torch.ones(3), torch.full((3,), float(rank))
        found.facts["differing"] = _lost(
            lambda: ranks.check_equal({"same": same, "other": other}, CPU)
        )
        found.facts["equal"] = _lost(lambda: ranks.check_equal({"same": same}, CPU))
    with joined(rank, SIZE, folder / "second", CPU, limit_s=5.0) as ranks:
        ranks.total(torch.ones(1))
        found.write(folder, rank)
        # The second rank hangs, as far as the first can tell.
        if rank == 0:
            found.facts["waited in vain"] = _lost(lambda: ranks.total(torch.ones(1)))
            found.write(folder, rank)
            (folder / "done").touch()
        else:
            while not (folder / "done").exists():
                time.sleep(0.05)


if __name__ == "__main__":
    main()
