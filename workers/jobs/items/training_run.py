"""A training as the loop takes it: the config of a plan, and the samples that were read for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.contract.catalogue.training_methods import TRAINING_METHODS
from workers.training.config import TrainingConfig, TrainingError
from workers.training.data import TrainingData

__all__ = ["config_of", "samples_in"]


def config_of(plan: Mapping[str, Any]) -> TrainingConfig:
    """The run of a plan. Raises TrainingError."""
    method = TRAINING_METHODS.get(plan["method"])
    if method is None:
        # A newer version's journal, say.
        raise TrainingError("unknown_method", f"there is no training method {plan['method']!r}")
    return TrainingConfig.of_plan(plan, method)


def samples_in(folder: Path) -> tuple[TrainingData, dict[str, Any]]:
    """The samples that the limited child wrote to a folder, and its facts."""
    facts = json.loads((folder / "facts.json").read_text())
    # Memory-mapped: parts that are not used need not stay in memory.
    x = torch.from_numpy(np.load(folder / "x.npy", mmap_mode="c", allow_pickle=False))
    y = torch.from_numpy(np.load(folder / "y.npy", allow_pickle=False))
    return TrainingData(x, y), facts
