"""GET /methods and /architectures: what a spec may name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from service.contract.architectures import ARCHITECTURES
from service.contract.methods import METHODS

__all__ = ["router"]

router = APIRouter(tags=["catalogue"])


@router.get("/methods", summary="Certification methods, with guarantee and cost")
async def methods() -> dict[str, list[dict[str, Any]]]:
    """What ``spec.method`` may be."""
    return {"items": [asdict(method) for method in METHODS.values()]}


@router.get("/architectures", summary="Named architectures")
async def architectures() -> dict[str, list[dict[str, Any]]]:
    """What ``spec.architecture`` may be for state dicts."""
    return {"items": [asdict(architecture) for architecture in ARCHITECTURES.values()]}
