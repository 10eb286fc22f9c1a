"""The response to a submission: the job, after the wait that the client prefers."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import Request, Response
from redis.exceptions import RedisError

from service.access.keys import Caller
from service.api.services import Services
from service.contract.schemas.job_records import JobRecord
from service.contract.schemas.problems import Unavailable
from service.contract.schemas.submissions import TERMINAL
from service.jobs.control import record
from service.jobs.submit import Accepted

__all__ = ["SubmissionOptions", "respond"]


class SubmissionOptions(NamedTuple):
    """The caller of a submission, and the options of its headers and query."""

    caller: Caller
    idempotency_key: str | None
    force: bool
    webhook: str | None = None


async def respond(
    request: Request, response: Response, services: Services, caller: Caller, accepted: Accepted
) -> JobRecord:
    """The job, after the wait that the client prefers."""
    job = record(accepted.state)
    response.headers["Location"] = f"/jobs/{job.id}"
    if accepted.how != "new":
        response.headers["Certserve-Submission"] = accepted.how
    wait_s = _preferred_wait(request, services.settings.max_wait_s)
    if wait_s is not None:
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
        try:
            job = record(await services.jobs.wait(job.id, wait_s, caller))
        except (RedisError, Unavailable):
            pass  # the job was accepted nevertheless
        if job.status in TERMINAL:
            response.status_code = 200
            return job
    response.headers["Retry-After"] = "1"
    return job


def _preferred_wait(request: Request, most_s: float) -> float | None:
    """Seconds of ``Prefer: wait=N`` (RFC 7240), at most ``most_s``; None without."""
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait" and value.strip(' "').isdecimal():
            return min(float(value.strip(' "')[:9]), most_s)
    return None
