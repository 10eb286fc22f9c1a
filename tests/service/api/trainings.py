"""A small training of digits, as the body of POST /train."""

from __future__ import annotations

from typing import Any

__all__ = ["training"]

DIGITS: dict[str, Any] = {
    "method": "emma",
    "dataset": "digits",
    "epsilon": "1/2",
    "architecture": {"name": "orthogonal-dense", "input": [1, 8, 8], "widths": [32]},
    "activation": "maxmin",
    "epochs": 3,
}


def training(**changes: Any) -> dict[str, Any]:
    """The body with these fields changed or added."""
    return {**DIGITS, **changes}
