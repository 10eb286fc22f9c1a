"""The request of a property's verification and what is found out of one box."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workers.verification.properties.attack import Counterexample

__all__ = ["BoxResult", "PropertyRequest"]


@dataclass(frozen=True)
class PropertyRequest:
    """How a box is to be verified. work: plain forward passes that bounds may cost (None: no
    limit); memory: bytes that one bound may take (None: no limit); time_s: seconds for the box, in
    place of work, also inside bounds that search (None: no clock)."""

    method: str = "auto"
    soundness: str = "sound"
    seed: int = 0
    work: float | None = None
    memory: float | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class BoxResult:
    """verdict: ``holds`` (proved for every input of the box), ``violated`` (there is a
    counterexample) or ``unknown``; method: of the bound that proved the last of it, of what found
    the counterexample, or ``undecided``; seconds: worker seconds by kind; notes: JSON-able facts
    (``parts``: sub-boxes looked at; ``passes``; ``budget_spent``; ``out_of_work``; ``searched``:
    how far a complete search got on limits that it left open).
    """

    verdict: Literal["holds", "violated", "unknown"]
    method: str
    counterexample: Counterexample | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """An ``.npz`` file (no pickles; texts as JSON in a byte array)."""
        texts = {
            "verdict": self.verdict,
            "method": self.method,
            "seconds": self.seconds,
            "notes": self.notes,
        }
        arrays: dict[str, Any] = {}
        if self.counterexample is not None:
            arrays = {"x": self.counterexample.x, "y": self.counterexample.y}
        file = io.BytesIO()
        encoded = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
        np.savez_compressed(file, texts=encoded, **arrays)
        return file.getvalue()

    @classmethod
    def load(cls, path: Path) -> BoxResult:
        """What ``to_bytes`` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            texts = json.loads(stored["texts"].tobytes())
            point = Counterexample(stored["x"], stored["y"]) if "x" in stored.files else None
        return cls(counterexample=point, **texts)
