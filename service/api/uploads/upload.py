"""POST of one upload to a collection: what /models and /datasets have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from anyio import to_thread
from fastapi import Request, Response

from service.access.keys import Caller
from service.api.bodies import received_form
from service.api.services import Services
from service.api.uploads.listing import find_record
from service.api.uploads.registration import check_name
from service.contract.schemas.problems import InvalidInput
from service.contract.storage.store import Collection
from service.uploads.receive import FileRule, Form

__all__ = ["Keep", "upload_to"]

#: (form, name) -> (id, whether it is new to the caller); called in a thread.
Keep = Callable[[Form, str | None], tuple[str, bool]]


async def upload_to(
    collection: Collection,
    keep: Keep,
    request: Request,
    response: Response,
    services: Services,
    caller: Caller,
    *,
    files: Mapping[str, FileRule],
    field: str,
) -> dict[str, Any]:
    """Receive a form with the file ``field``, keep it, and return its record.

    Sets ``Location`` and the status: 201 where the upload is new to the caller, else 200. Raises
    InvalidInput and what ``received_form`` raises.
    """
    async with received_form(request, services, caller, files=files, texts={"name": 400}) as form:
        if field not in form.files:
            raise InvalidInput(f"the file {field} is missing", code="missing_field", field=field)
        name = check_name(form.texts.get("name"))
        identity, new = await to_thread.run_sync(keep, form, name)
    response.headers["Location"] = f"/{collection}/{identity}"
    response.status_code = 201 if new else 200
    return await to_thread.run_sync(find_record, services, collection, identity, caller)
