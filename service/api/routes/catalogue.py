"""GET /methods and /architectures: what a spec may name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from service.contract.catalogue.architectures import ARCHITECTURES, CHOICES, FAMILIES
from service.contract.catalogue.methods import METHODS
from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.recipes.recipes import RECIPES

__all__ = ["router"]

router = APIRouter(tags=["catalogue"])


@router.get("/methods", summary="Certification and training methods, with guarantee and cost")
async def methods() -> dict[str, list[dict[str, Any]]]:
    """What ``spec.method`` may be (``items``), what ``method`` of a training (``training``), and
    the recipes there are for it, with what each is known to reach."""
    return {
        "items": [method.described() for method in METHODS.values()],
        "training": [method.described() for method in TRAINING_METHODS.values()],
        "recipes": [
            {
                "method": row.method,
                "dataset": row.dataset,
                "name": row.name,
                "architecture": row.architecture,
                "activation": row.settings.get("activation", "relu"),
                "norm": row.norm,
                "epsilon": row.epsilon,
                "source": row.source,
                "reached": [asdict(figures) for figures in row.reached],
            }
            for row in RECIPES
        ],
    }


@router.get("/architectures", summary="Named architectures")
async def architectures() -> dict[str, list[dict[str, Any]]]:
    """What ``architecture`` may be for state dicts and trainings (``items``), and the families that
    a training gives sizes to, ``{"name": ..., "depth": ...}``; ``choices``: the words that a member
    may be."""
    return {
        "items": [asdict(architecture) for architecture in ARCHITECTURES.values()],
        "families": [
            {"name": name, "members": members, "choices": CHOICES.get(name, {})}
            for name, members in FAMILIES.items()
        ],
    }
