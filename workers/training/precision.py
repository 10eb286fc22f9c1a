"""The precision of a training run and whether its step is compiled, by request, method, device.

bfloat16 is for the plain forward pass alone (convolutions and dense layers, and their gradients).
Weights, optimiser, losses, norms, factorisations and the last layer are float32 whatever is asked
for; so are boxes, whose widths bfloat16 would lose. The network that is certified is float32.
"""

from __future__ import annotations

import torch

from workers.training.config import TrainingConfig, TrainingError

__all__ = ["dtype_of", "wants_compilation"]


def dtype_of(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """The dtype of products in the forward pass.

    auto: bfloat16 on a GPU that has it, if the method allows it; else float32. Raises TrainingError
    where bfloat16 is requested and the method does not allow it.
    """
    if config.precision == "bfloat16" and not config.bears_bfloat16:
        raise TrainingError(
            "unsupported_precision",
            f"{config.method} carries boxes, which bfloat16 would lose",
            hint='"precision": "auto"',
        )
    if config.precision == "auto":
        able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if able and config.bears_bfloat16 else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def wants_compilation(config: TrainingConfig, device: torch.device) -> bool:
    """Whether to compile the step. auto: on a GPU, if the method's row says so."""
    if isinstance(config.compiled, bool):
        return config.compiled
    return device.type == "cuda" and config.compiles
