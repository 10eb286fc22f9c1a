"""Everything that can go wrong with a request or a job, as one exception tree.

    Problem
      Malformed      400  not even JSON, or not a multipart body
      InvalidInput   422  the request, the model or the data cannot be used
      NotFound       404  no such job, model, data set or file
      NotAcceptable  406  no representation of the kind asked for
      Conflict       409  not in this state
      TooLarge       413  over a limit
      Unsupported    415  a format or media type that is not supported
      Unauthorized   401  no key, or none that is valid
      Forbidden      403  this key may not do that
      TooManyRequests 429  over a limit of the caller's; later it may work
      InternalError  500  a fault of the service itself
      Unavailable    503  something the service needs is away; the same request may work later
      StorageFull    507  the disk is full

A worker that catches an exception with a ``code`` (models, verification) turns it into
``InvalidInput(code, str(error))``; the API answers it as RFC 9457 problem details.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "Conflict",
    "Forbidden",
    "InternalError",
    "InvalidInput",
    "Malformed",
    "NotAcceptable",
    "NotFound",
    "Problem",
    "StorageFull",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "Unsupported",
]


class Problem(Exception):
    """A stated failure: ``code`` for machines, ``detail`` and ``hint`` for people.

    ``field`` names the part of the request at fault, e.g. ``spec.epsilons.0``.
    """

    status: int = 500
    title: str = "Internal error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"

    def to_dict(self) -> dict[str, Any]:
        """The problem details object (RFC 9457), without members that are not set."""
        problem: dict[str, Any] = {
            "type": f"urn:certserve:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.hint is not None:
            problem["hint"] = self.hint
        if self.field is not None:
            problem["field"] = self.field
        return problem


class Malformed(Problem):
    """Not even JSON, or not a multipart body."""

    status = 400
    title = "Malformed request"
    default_code = "malformed_request"


class InvalidInput(Problem):
    """The request, the model or the data cannot be used."""

    status = 422
    title = "Invalid input"
    default_code = "invalid_input"


class NotFound(Problem):
    """No such job, model, data set or file."""

    status = 404
    title = "Not found"
    default_code = "not_found"


class NotAcceptable(Problem):
    """No representation of the kind asked for."""

    status = 406
    title = "Not acceptable"
    default_code = "not_acceptable"


class Conflict(Problem):
    """Not possible in the present state."""

    status = 409
    title = "Conflict"
    default_code = "conflict"


class TooLarge(Problem):
    """Over a limit of the settings."""

    status = 413
    title = "Too large"
    default_code = "too_large"


class Unsupported(Problem):
    """A file format or media type that is not supported."""

    status = 415
    title = "Unsupported format"
    default_code = "unsupported_format"


class Unauthorized(Problem):
    """No API key, or none that is valid: which of the two is not said."""

    status = 401
    title = "Unauthorized"
    default_code = "unauthorized"


class Forbidden(Problem):
    """The caller is known, but may not do that."""

    status = 403
    title = "Forbidden"
    default_code = "forbidden"


class TooManyRequests(Problem):
    """Over a limit of the caller's; ``retry_after_s`` says when to ask again."""

    status = 429
    title = "Too many requests"
    default_code = "too_many_requests"

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: float = 1.0,
        code: str | None = None,
        hint: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(detail, code=code, hint=hint, field=field)
        self.retry_after_s = retry_after_s


class InternalError(Problem):
    """A fault of the service itself; the log has the details."""


class Unavailable(Problem):
    """Something the service needs is away; the same request may work later."""

    status = 503
    title = "Service unavailable"
    default_code = "unavailable"


class StorageFull(Problem):
    """The disk that holds the data directory is full."""

    status = 507
    title = "Storage full"
    default_code = "storage_full"
