"""What can be wrong with a property: one exception with a code for machines."""

from __future__ import annotations

__all__ = ["PropertyError"]


class PropertyError(ValueError):
    """A property that cannot be read, or that says what is not covered.

    code: ``invalid_vnnlib``, ``unsupported_vnnlib``, ``property_too_large``, ``empty_box``,
    ``unbounded_input`` or ``property_mismatch``.
    """

    field = "property"

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
