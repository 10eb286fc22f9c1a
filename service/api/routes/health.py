"""GET /healthz, /readyz and /metrics: does the process run, can it work, what does it do?"""

from __future__ import annotations

import shutil
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from service.api.auth import Admin
from service.api.errors import problem_response
from service.api.services import Services, UsesServices
from service.contract.schemas.problems import Problem, Unavailable

__all__ = ["checks_of", "router"]

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="The process is up")
async def healthz() -> dict[str, str]:
    """Answers without asking Redis or the disk."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Redis, store and at least one worker are there")
async def readyz(services: UsesServices) -> Response:
    """200, or 503 with what is missing."""
    checks = await to_thread.run_sync(checks_of, services)
    missing = {name: check["detail"] for name, check in checks.items() if not check["ok"]}
    if not missing:
        return JSONResponse({"status": "ready", "checks": checks})
    detail = "; ".join(f"{name}: {why}" for name, why in missing.items())
    problem = Unavailable(detail, code="not_ready")
    return problem_response(problem, checks=checks, missing=sorted(missing))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"}},
    summary="Measurements for Prometheus",
)
async def metrics(services: UsesServices, principal: Admin) -> Response:
    """Needs an admin's key once keys are configured, because it counts everybody's jobs."""
    text = await to_thread.run_sync(services.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4")


def checks_of(services: Services) -> dict[str, dict[str, Any]]:
    """What the service needs: name -> whether it is there, and a detail."""
    checks: dict[str, dict[str, Any]] = {}
    try:
        services.probe.memory.ping()
        complete = services.probe.memory.complete()
        workers = services.probe.worker_registry.living()
    except RedisError as error:
        checks["redis"] = _check(False, f"no answer ({type(error).__name__})")
        checks["workers"] = _check(False, "unknown without Redis")
    else:
        checks["redis"] = _check(True, "answers")
        entered = "all accepted jobs are entered" if complete else "being filled from the journal"
        checks["ledger"] = _check(complete, entered)
        alive = f"{len(workers)} alive" if workers else "none alive: start certserve worker"
        checks["workers"] = _check(bool(workers), alive)
    try:
        services.store.check_writable()
        free = shutil.disk_usage(services.settings.data_dir).free
    except (Problem, OSError) as error:
        checks["store"] = _check(False, str(error))
    else:
        floor = services.settings.min_free_bytes
        left = f"writable, {free // 2**20} MiB left"
        checks["store"] = _check(free >= floor, left if free >= floor else f"{left}: too little")
    return checks


def _check(ok: bool, detail: str) -> dict[str, Any]:
    return {"ok": ok, "detail": detail}
