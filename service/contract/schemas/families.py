"""Members of a family that are one of a few words: others are refused before a job is made."""

from __future__ import annotations

from pydantic import JsonValue
from pydantic_core import PydanticCustomError

from service.contract.catalogue.architectures import CHOICES

__all__ = ["checked_family"]


def checked_family(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The architecture, with its name, itself. Raises PydanticCustomError (invalid_architecture)
    that says what is allowed."""
    for member, allowed in CHOICES.get(str(value.get("name")), {}).items():
        if member in value and value[member] not in allowed:
            raise PydanticCustomError(
                "invalid_architecture",
                '"{member}" is {given}; allowed are {allowed}',
                {
                    "member": member,
                    "given": repr(value[member])[:80],
                    "allowed": ", ".join(allowed),
                },
            )
    return value
