"""GET /new and GET /train: forms for what POST /certify and POST /train take.

The script sends the forms to these endpoints, so that a page can do nothing that the API cannot.
"""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Request, Response

from service.access.keys import Caller
from service.api.auth import Principal
from service.api.services import Services, UsesServices
from service.api.uploads.listing import record_page
from service.console.rendering import accepts_html, need_html, page
from service.console.views.form_fields import certify_fields, train_fields
from service.contract.schemas.problems import Problem
from service.contract.schemas.property_spec import FIELDS as PROPERTY_FIELDS
from service.uploads.dataset_sources import REGISTERED, resolve_dataset

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_OFFERED = 100


@router.get("/new")
async def certify_form(request: Request, services: UsesServices, principal: Principal) -> Response:
    """A model, data and a spec."""
    need_html(request, "POST /certify")
    context = await to_thread.run_sync(lambda: _uploads(services, principal))
    context |= {
        "fields": certify_fields(),
        "limits": services.settings,
        "property_fields": PROPERTY_FIELDS,
    }
    return page(request, services, "new.html", context, caller=principal)


@router.get("/train")
async def train_form(request: Request, services: UsesServices, principal: Principal) -> Response:
    """A method, data and an epsilon."""
    if not accepts_html(request):
        # For programs this address has POST alone.
        raise HTTPException(405)
    context = await to_thread.run_sync(lambda: _uploads(services, principal, split="train"))
    context |= {"fields": train_fields()}
    return page(request, services, "train.html", context, caller=principal)


def _uploads(services: Services, caller: Caller, split: str = "test") -> dict[str, Any]:
    """What is here already and may be named instead of uploaded."""
    models, _ = record_page(services, "models", None, _OFFERED, caller)
    datasets, _ = record_page(services, "datasets", None, _OFFERED, caller)
    return {
        "models": models,
        "datasets": datasets,
        "registered": [name for name in REGISTERED if _is_here(services, name, split)],
    }


def _is_here(services: Services, name: str, split: str) -> bool:
    try:
        resolve_dataset(
            name,
            services.store,
            services.settings,
            names=lambda record: [],
            split="train" if split == "train" else "test",
        )
    except Problem:
        return False
    return True
