"""Checkpoints of a training run, so that it can be paused, killed and resumed.

A checkpoint is one safetensors file, written beside the old one and renamed; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from workers.training.config import TrainingConfig, TrainingError

__all__ = ["Checkpoint", "run_digest"]


def run_digest(config: TrainingConfig, samples: int) -> str:
    """Digest of a run's settings and its number of samples. A checkpoint fits the same run only."""
    described = asdict(config)
    # These follow from the method; checkpoints from before there were the others still count.
    of_method = ("bears_bfloat16", "bfloat16_on_cpu", "compiles")
    new = {"options": not config.options, "devices": config.devices == 1}
    for name in (*of_method, *(name for name, unused in new.items() if unused)):
        del described[name]
    text = json.dumps([described, samples], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Checkpoint:
    """The state of a run after ``step`` training steps.

    tensors: ``Trainer.state()`` and the sums of the current epoch; history: the curve so far;
    seconds: time spent.
    """

    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def save(self, path: Path, digest: str) -> None:
        """Write the checkpoint durably. ``load`` needs the same ``digest`` of the run.

        Raises OSError, also for a full disk (safetensors' own writer raises an error of its own).
        Then the earlier checkpoint stays.
        """
        facts = {"step": self.step, "history": self.history, "seconds": self.seconds, "run": digest}
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        content = safetensors.torch.save(tensors, metadata={"facts": json.dumps(facts)})
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with aside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @classmethod
    def load(cls, path: Path, digest: str, device: torch.device) -> Checkpoint | None:
        """The checkpoint in ``path``, or None where there is none. Raises TrainingError."""
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                facts: Mapping[str, Any] = json.loads(file.metadata()["facts"])
            tensors = safetensors.torch.load_file(path, device=str(device))
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError("bad_checkpoint", f"{path.name} is no checkpoint") from error
        if facts["run"] != digest:
            raise TrainingError("bad_checkpoint", f"{path.name} belongs to another run")
        # Where a tensor lies in the file follows from its header. A product with a vector that is
        # not aligned adds in another order, and the run would end in other bits.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return cls(int(facts["step"]), tensors, list(facts["history"]), float(facts["seconds"]))
