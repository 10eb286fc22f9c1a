"""Fields of forms that a browser sends although nothing was chosen."""

from __future__ import annotations

from pydantic import BeforeValidator

__all__ = ["blank_is_none"]

#: Of a parameter: an empty text counts as left out.
blank_is_none = BeforeValidator(lambda value: None if value == "" else value)
