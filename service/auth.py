"""Who asks. Today everybody is the same nobody, because only loopback addresses are bound.

API keys will be checked here and nowhere else: every endpoint that touches jobs, models or data
sets already asks for its principal.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

__all__ = ["Principal"]


async def _principal() -> str:
    return ""


#: The caller's name, empty while no keys are configured.
Principal = Annotated[str, Depends(_principal)]
