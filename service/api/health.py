"""GET /healthz and /readyz: does the process run, and can it do its work?"""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from service.contract.problems import Problem, Unavailable
from service.failures import problem_response
from service.services import Services, UsesServices

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process is up")
async def healthz() -> dict[str, str]:
    """Touches nothing but this process."""
    return {"status": "ok"}


@router.get("/readyz", summary="Redis, store and at least one worker are there")
async def readyz(services: UsesServices) -> Response:
    """200, or 503 with what is missing."""
    checks = await to_thread.run_sync(_checks, services)
    missing = {name: check["detail"] for name, check in checks.items() if not check["ok"]}
    if not missing:
        return JSONResponse({"status": "ready", "checks": checks})
    detail = "; ".join(f"{name}: {why}" for name, why in missing.items())
    problem = Unavailable(detail, code="not_ready")
    return problem_response(problem, checks=checks, missing=sorted(missing))


def _checks(services: Services) -> dict[str, dict[str, Any]]:
    checks: dict[str, dict[str, Any]] = {}
    try:
        services.ledger.ping()
        workers = services.ledger.workers()
    except RedisError as error:
        checks["redis"] = _check(False, f"no answer ({type(error).__name__})")
        checks["workers"] = _check(False, "unknown without Redis")
    else:
        checks["redis"] = _check(True, "answers")
        alive = f"{len(workers)} alive" if workers else "none alive: start certserve worker"
        checks["workers"] = _check(bool(workers), alive)
    try:
        services.store.check_writable()
    except (Problem, OSError) as error:
        checks["store"] = _check(False, str(error))
    else:
        checks["store"] = _check(True, "writable")
    return checks


def _check(ok: bool, detail: str) -> dict[str, Any]:
    return {"ok": ok, "detail": detail}
