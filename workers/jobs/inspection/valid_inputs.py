"""Which inputs of a model are valid ones, and in what units: of the spec, or of a file of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from models.errors import ModelError
from workers.jobs.datasets.arrays import DataError
from workers.verification.input_range import Clip, InputRange

__all__ = ["ValidInputs", "largest_pixel", "valid_inputs"]

#: Values of a byte: a model that takes bytes is asked about shares of it, as images are.
_BYTE = 255


@dataclass(frozen=True)
class ValidInputs:
    """clip: the range of the network's input. unit: how many of its own units are one of the
    epsilons and radii. numbers: bytes of a data set are the numbers 0 to 255, not shares of 255.
    """

    clip: Clip = True
    unit: int = 1
    numbers: bool = False

    @property
    def bytes_alone(self) -> bool:
        """Whether the deployed file takes bytes."""
        return isinstance(self.clip, InputRange) and self.clip.whole

    def to_json(self) -> dict[str, Any]:
        """As ``facts.json`` keeps it."""
        clip: Any = self.clip
        if isinstance(clip, InputRange):
            clip = {"low": list(clip.low), "high": list(clip.high), "whole": clip.whole}
        return {"clip": clip, "unit": self.unit, "numbers": self.numbers}

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any], *, clip: bool) -> ValidInputs:
        """What ``to_json`` wrote; ``clip`` of the spec where an earlier release left nothing."""
        stored = facts.get("inputs")
        if stored is None:
            return cls(clip)
        found: Any = stored["clip"]
        if isinstance(found, Mapping):
            found = InputRange(tuple(found["low"]), tuple(found["high"]), found["whole"])
        return cls(found, stored["unit"], stored["numbers"])


def valid_inputs(
    input_range: list[Any] | None, *, clip: bool, shape: tuple[int, ...], takes_bytes: bool
) -> ValidInputs:
    """Of a spec's ``input_range`` ([low, high], each a number or a list) and ``clip``.

    Raises DataError (invalid_input_range) where it does not fit inputs of this shape.
    """
    pixels = input_range in (None, [0, 1])
    if takes_bytes:
        if not pixels or not clip:
            raise _error(
                "the model takes bytes: its valid inputs are the whole numbers from 0 to 255",
                'leave "input_range" and "clip" out; epsilons are shares of 255, such as "8/255"',
            )
        return ValidInputs(InputRange((0.0,), (float(_BYTE),), whole=True), _BYTE, numbers=True)
    if input_range is None or pixels:
        return ValidInputs(clip and input_range is not None)
    low, high = (end if isinstance(end, list) else [end] for end in input_range)
    limits = InputRange.between(low, high)
    try:
        limits.ends(torch.zeros(1, *shape))
    except ModelError as error:
        raise _error(
            f"an input_range of {len(low)} lows and {len(high)} highs does not fit inputs of shape "
            f"{list(shape)}",
            "give one number, or one for each channel or feature",
        ) from error
    return ValidInputs(limits if clip else False, numbers=True)


def largest_pixel(input_range: list[Any] | None, *, takes_bytes: bool) -> float | None:
    """1 where inputs are pixels in [0, 1], 255 where in [0, 255]; None: in other units, or bytes,
    which the file itself normalises."""
    if takes_bytes:
        return None
    if input_range in (None, [0, 1]):
        return 1.0
    return float(_BYTE) if input_range == [0, _BYTE] else None


def _error(message: str, hint: str) -> DataError:
    error = DataError("invalid_input_range", message, hint=hint)
    error.field = "spec.input_range"
    return error
