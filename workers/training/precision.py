"""The precision of a training run and whether its step is compiled, by request, method, device.

bfloat16 is for the plain forward pass alone (convolutions and dense layers, and their gradients).
Weights, optimiser, losses, norms, factorisations and the last layer are float32 whatever is asked
for; so are boxes, whose widths bfloat16 would lose. The network that is certified is float32.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from workers.training.config import TrainingConfig, TrainingError

__all__ = ["dtype_of", "has_bfloat16_products", "multiplies_bfloat16", "wants_compilation"]

#: What Linux calls a processor's instructions for bfloat16 products: Intel's matrix unit, or dot
#: products of vectors (an AMD EPYC with these took a third of float32's time). Without either a
#: bfloat16 product takes 9 times as long as a float32 one (measured on a processor with AVX2).
INSTRUCTIONS = (("amx_tile", "amx_bf16"), ("avx512_bf16",))


@cache
def has_bfloat16_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor multiplies bfloat16 matrices in hardware."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return any(all(name in flags for name in names) for names in INSTRUCTIONS)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are fast there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and has_bfloat16_products()


def dtype_of(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """The dtype of products in the forward pass.

    auto: bfloat16 on a GPU that has it, if the method allows it, and on a processor that gains by
    it, if the method's row says so; else float32. Raises TrainingError where bfloat16 is requested
    and the method does not allow it.
    """
    if config.precision == "bfloat16" and not config.bears_bfloat16:
        raise TrainingError(
            "unsupported_precision",
            f"{config.method} carries boxes, which bfloat16 would lose",
            hint='"precision": "auto"',
        )
    if config.precision == "auto":
        wanted = config.bears_bfloat16 and (device.type == "cuda" or config.bfloat16_on_cpu)
        return torch.bfloat16 if wanted and multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def wants_compilation(config: TrainingConfig, device: torch.device) -> bool:
    """Whether to compile the step. auto: on a GPU, if the method's row says so."""
    if isinstance(config.compiled, bool):
        return config.compiled
    return device.type == "cuda" and config.compiles
