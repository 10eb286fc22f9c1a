"""Checkpoints of a training run, so that it can be paused, killed and resumed.

A checkpoint is one safetensors file, written beside the old one and renamed; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from workers.training.config import TrainingError

__all__ = ["Checkpoint"]


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
        return cls(int(facts["step"]), tensors, list(facts["history"]), float(facts["seconds"]))
