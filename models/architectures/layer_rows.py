"""Reads one row of a layer list value by value; errors name the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from models.errors import ModelError

__all__ = ["MAX_SIZE", "LayerRow"]

#: No size in a layer list is larger than this.
MAX_SIZE = 1 << 24


class LayerRow:
    """One layer of the list; keeps track of the keys that were read, so that others are refused."""

    def __init__(self, index: int, row: Any) -> None:
        self.label = f"layer {index}"
        if not isinstance(row, Mapping) or not isinstance(row.get("kind"), str):
            self.refuse('is not an object with a "kind"')
        self.kind: str = row["kind"]
        self.label += f" ({self.kind[:40]})"
        self.row = row
        self.known = {"kind", "name", "from"}

    def refuse(self, reason: str, hint: str = "") -> NoReturn:
        """Raise ModelError (invalid_architecture), naming this layer."""
        raise ModelError(f"{self.label} {reason}", code="invalid_architecture", hint=hint)

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value of a key."""
        self.known.add(key)
        return self.row.get(key, default)

    def integer(
        self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> int:
        """An integer from ``minimum`` to ``maximum``."""
        value = self.get(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            own = ", ".join(str(name)[:40] for name in list(self.row)[:10])
            self.refuse(
                f'needs "{key}", an integer from {minimum} to {maximum}, not {value!r:.40}',
                "" if key in self.row else f"it is not given; the layer has {own}",
            )
        return value

    def pair(self, key: str, default: Any = None) -> tuple[int, int]:
        """(vertical, horizontal) from one integer or two, each at least 1."""
        values = self._sizes(key, default, minimum=1)
        if len(values) not in (1, 2):
            self.refuse(f'needs "{key}", one or two integers')
        return (values[0], values[-1])

    def padding(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) from one integer, two or four, each at least 0."""
        values = self._sizes("padding", 0, minimum=0)
        if len(values) == 1:
            return (values[0],) * 4
        if len(values) == 2:
            return (values[0], values[1], values[0], values[1])
        if len(values) != 4:
            self.refuse('needs "padding": one number, [vertical, horizontal] or all four sides')
        return (values[0], values[1], values[2], values[3])

    def _sizes(self, key: str, default: Any, *, minimum: int) -> list[int]:
        value = self.get(key, default)
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or any(type(v) is not int or not minimum <= v <= MAX_SIZE for v in values):
            self.refuse(f'needs "{key}", integers from {minimum} to {MAX_SIZE}, not {value!r:.40}')
        return values

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            self.refuse(f'needs "{key}", true or false')
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number between two bounds, rounded to float32."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            self.refuse(f'needs "{key}", a number from {low} to {high}')
        # Rounded as ONNX stores it: the float32 number that is deployed is verified.
        return torch.tensor(float(value), dtype=torch.float32).item()

    def choice(self, key: str, default: str, known: Mapping[str, Any]) -> str:
        """One of the names in ``known``."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in known:
            self.refuse(f'needs "{key}", one of {", ".join(known)}, not {value!r:.40}')
        return value

    def finish(self) -> None:
        """Refuse the keys that nothing has read."""
        unknown = sorted(str(key)[:40] for key in self.row if key not in self.known)
        if unknown:
            self.refuse(f"has unknown keys {unknown}", f"known: {sorted(self.known)}")
