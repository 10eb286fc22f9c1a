"""The request to the verifier and its results: plain values, one row per sample."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.verification.input_range import Clip

__all__ = ["EFFORTS", "POOL", "AttackSettings", "CertificationRequest", "SampleResults"]

#: So many consecutive samples share one work budget. Shards are cut between such pools, so that no
#: result depends on the shard that it was computed in.
POOL = 10

#: How much ``auto`` may do, from least to most: the bounds that take part, and the work allowed.
EFFORTS = ("quick", "standard", "exhaustive")


@dataclass(frozen=True)
class AttackSettings:
    """PGD on what no bound certified, and on a random share ``audit`` of what one did."""

    steps: int = 40
    restarts: int = 1
    audit: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class CertificationRequest:
    """The threat model and how to answer it; epsilons and radii in units of which each is ``unit``
    of the input's own (255 where it takes bytes and they are shares of 255), in the order asked.

    sample_time_s: seconds for each sample and epsilon in bounds that search, in place of work.
    effort: one of ``EFFORTS``; only ``auto`` asks for it.
    """

    norm: str
    epsilons: tuple[Fraction, ...]
    method: str = "auto"
    effort: str = "standard"
    soundness: str = "sound"
    deterministic: bool = True
    clip: Clip = True
    unit: int = 1
    radius: bool = True
    attack: AttackSettings | None = field(default_factory=AttackSettings)
    seed: int = 0
    sample_time_s: float | None = None


@dataclass
class SampleResults:
    """One row per sample of a shard; E epsilons in the order of the request.

    index [N] position in the data set; label [N]; prediction [N] of the deployed network;
    margin [N] logit of the label minus the largest other one, deployed; radius [N] largest proved
    radius in units of the epsilons (0: wrong or nothing proved; inf: beyond every input; nan: not
    asked);
    certified, falsified bool [N, E]; method [N] name of the bound that decided the largest
    certified epsilon asked for, else of what falsified the smallest (``attack``, or a bound that
    finds counterexamples), ``misclassified`` or ``undecided``;
    decided_by [N, E] the same per epsilon; counterexamples maps "row,epsilon" (position in this
    shard, position of the epsilon) to the float32 input that the deployed network gets wrong.
    ``seconds``: forward, bound, attack (worker seconds). ``notes``: JSON-able facts for the report
    (parity difference and budget, how many each bound decided, fallbacks).
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    margin: NDArray[np.float64]
    radius: NDArray[np.float64]
    certified: NDArray[np.bool_]
    falsified: NDArray[np.bool_]
    method: list[str]
    decided_by: list[list[str]]
    counterexamples: dict[str, NDArray[np.float32]]
    seconds: dict[str, float]
    notes: dict[str, Any]

    def to_bytes(self) -> bytes:
        """An ``.npz`` file (no pickles; texts and notes as JSON in a byte array)."""
        texts = json.dumps(
            {
                "method": self.method,
                "decided_by": self.decided_by,
                "seconds": self.seconds,
                "notes": self.notes,
            }
        ).encode()
        arrays: dict[str, Any] = {
            f"counterexample:{key}": value for key, value in self.counterexamples.items()
        }
        file = io.BytesIO()
        np.savez_compressed(
            file,
            index=self.index,
            label=self.label,
            prediction=self.prediction,
            margin=self.margin,
            radius=self.radius,
            certified=self.certified,
            falsified=self.falsified,
            texts=np.frombuffer(texts, dtype=np.uint8),
            **arrays,
        )
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write ``to_bytes`` to a file."""
        path.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> SampleResults:
        """What ``save`` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            texts = json.loads(stored["texts"].tobytes())
            prefix = "counterexample:"
            return cls(
                **{
                    name: stored[name]
                    for name in (
                        "index",
                        "label",
                        "prediction",
                        "margin",
                        "radius",
                        "certified",
                        "falsified",
                    )
                },
                **texts,
                counterexamples={
                    name.removeprefix(prefix): stored[name]
                    for name in stored.files
                    if name.startswith(prefix)
                },
            )
