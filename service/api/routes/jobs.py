"""GET /jobs and /jobs/{id}: what there is and how far it is; cancel, retry, delete."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, JsonValue

from service.api.auth import Principal
from service.api.errors import PROBLEM
from service.api.services import Services, UsesServices
from service.contract.ledger.leases import JobState
from service.contract.schemas.job_records import Estimate, JobDetails, JobRecord
from service.contract.schemas.submissions import JobKind, JobStatus
from service.jobs.control import details, record

__all__ = ["Page", "router"]

router = APIRouter(tags=["jobs"])

Item = TypeVar("Item")

#: A cursor is opaque: only what a page gave is taken.
CURSOR: dict[str, JsonValue] = {"pattern": "^[0-9A-HJKMNP-TV-Z]{26}$"}


class Page(BaseModel, Generic[Item]):
    """Some of a list; pass ``next_cursor`` as ``cursor`` for more, it is null at the end."""

    items: list[Item]
    next_cursor: str | None


@router.get("/jobs", summary="List jobs, newest first")
async def list_jobs(
    services: UsesServices,
    principal: Principal,
    kind: JobKind | None = None,
    status: Annotated[list[JobStatus] | None, Query(description="One or several")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(json_schema_extra=CURSOR)] = None,
) -> Page[JobRecord]:
    """A page of jobs, of one kind or some statuses (`status=failed&status=cancelled`) if asked."""
    states, following = await to_thread.run_sync(
        lambda: services.jobs.page(
            principal, kind=kind, statuses=status or (), cursor=cursor, limit=limit
        )
    )
    return Page(items=[record(state) for state in states], next_cursor=following)


@router.get("/jobs/{job_id}", summary="Get a job")
async def get_job(
    job_id: str,
    services: UsesServices,
    principal: Principal,
    wait: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0,
) -> JobDetails:
    """The job; with ``wait`` the answer comes when it has ended, or after that many seconds.

    One training of a sweep is read like a job, under the address that ``models`` has for it.
    """
    wait_s = min(wait, services.settings.max_wait_s)
    state = await services.jobs.wait(job_id, wait_s, principal)
    return await _details(services, state, await services.jobs.estimate(state))


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=JobDetails,
    summary="Cancel a job",
)
async def cancel_job(job_id: str, services: UsesServices, principal: Principal) -> JobDetails:
    """It is `cancelled` at once; its workers stop within five seconds. A job that has ended does
    not change, so cancelling twice is safe."""
    return await _details(services, await services.jobs.cancel(job_id, principal))


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    response_model=JobDetails,
    responses={409: PROBLEM},
    summary="Run a failed or cancelled job again",
)
async def retry_job(
    job_id: str, response: Response, services: UsesServices, principal: Principal
) -> JobDetails:
    """The same id, a new attempt; on disk before the answer. Finished shards of a cancelled attempt
    are kept; a failed attempt starts over."""
    job = await _details(services, await services.jobs.retry(job_id, principal))
    # Set after the look-up: a malformed id may hold characters that no header can.
    response.headers["Location"] = f"/jobs/{job.id}"
    return job


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    response_class=Response,
    responses={
        202: {"model": JobDetails, "description": "The job was active and is cancelled now"},
        204: {"description": "The job had ended and is removed with all its files"},
    },
    summary="Cancel an active job, remove one that has ended",
)
async def delete_job(job_id: str, services: UsesServices, principal: Principal) -> Response:
    """Uploads that came with the job go later, once no other job needs them."""
    state = await services.jobs.delete(job_id, principal)
    if state is None:
        return Response(status_code=204)
    shown = await _details(services, state)
    return JSONResponse(shown.model_dump(mode="json"), status_code=202)


async def _details(
    services: Services, state: JobState, estimate: Estimate | None = None
) -> JobDetails:
    models = await to_thread.run_sync(services.jobs.models, state)
    proofs = await services.jobs.certificate(state)
    made = await services.jobs.rewritten(state)
    return details(state, estimate, models, certificate=proofs, rewritten=made)
