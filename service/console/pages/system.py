"""GET /system: workers, queue, versions, disk."""

from __future__ import annotations

import platform
import shutil
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError

from service.access.keys import Caller
from service.api.auth import Principal
from service.api.routes.health import checks_of
from service.api.services import Services, UsesServices
from service.console.rendering import need_html, page
from service.contract.version import engine_version, release

__all__ = ["router"]

router = APIRouter(include_in_schema=False)


@router.get("/system")
async def system_page(request: Request, services: UsesServices, principal: Principal) -> Response:
    """What everybody may know is what /readyz says; the rest is for admins, as /metrics is."""
    need_html(request, "GET /readyz and GET /metrics")
    context = await to_thread.run_sync(lambda: _context(services, principal))
    return page(request, services, "system.html", context, caller=principal)


def _context(services: Services, caller: Caller) -> dict[str, Any]:
    context: dict[str, Any] = {
        "checks": checks_of(services),
        "versions": [
            ("certserve", release()),
            ("engine", engine_version()),
            ("Python", platform.python_version()),
        ],
        "details": None,
    }
    if caller.admin:
        context["details"] = _details(services)
    return context


def _details(services: Services) -> dict[str, Any]:
    disk = shutil.disk_usage(services.settings.data_dir)
    found: dict[str, Any] = {
        "workers": [],
        "counts": {},
        "wake_ups": None,
        "recent_samples": None,
        "data_dir": str(services.settings.data_dir),
        "disk": disk,
        "viewers": services.events.viewers,
        "uploaded": services.limits.uploaded_bytes,
    }
    try:
        found["workers"] = services.probe.worker_registry.living()
        found["counts"] = services.probe.index.counts()
        found["wake_ups"] = services.notifier.waiting().total()
        work = services.probe.totals.read()
        found |= {"recent_samples": work.recent_samples, "samples": work.samples}
    except RedisError:
        pass  # the checks say that Redis is away
    return found
