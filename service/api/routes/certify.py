"""POST /certify: take a model, a data set and a spec, answer with the job."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field, JsonValue

from service.api.auth import Principal
from service.api.bodies import (
    DATASET_FILES,
    FILE,
    MODEL_FILES,
    dataset_fields,
    json_body,
    media_type,
    model_fields,
    object_schema,
    property_fields,
    received_form,
    request_body,
    text_schema,
)
from service.api.responses import SubmissionOptions, respond
from service.api.services import Services, UsesServices
from service.api.uploads.registration import (
    keep_dataset,
    keep_model,
    keep_property,
    known_dataset,
    known_model,
)
from service.contract.schemas.job_records import JobRecord
from service.contract.schemas.parsing import parse_json, parse_model
from service.contract.schemas.problems import InvalidInput, Unsupported
from service.contract.schemas.property_spec import PropertySpec
from service.contract.schemas.submissions import DatasetSource, ModelSource, Spec, Strict
from service.contract.schemas.webhook_address import WebhookUrl
from service.jobs.control import check_fit
from service.jobs.submit import PreparedSubmission, SubmissionRequest
from service.uploads.receive import Form
from service.webhooks.targets import accepted_webhook

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

_WEBHOOK = {
    "type": "string",
    "format": "uri",
    "description": "Address that is told of the job's end",
}
_FORCE = "Compute even where an equal result exists"
_MODEL_ID = text_schema("Of a model that is here already, in place of the file")
_SPEC = Spec.model_json_schema(ref_template="#/components/schemas/{model}")
_BODY = request_body(
    {
        "multipart/form-data": object_schema(
            {
                **MODEL_FILES,
                "model_id": _MODEL_ID,
                "dataset": {
                    "anyOf": [FILE, {"type": "string"}],
                    "description": "A file (.npz, .npy, .zip of class folders, idx .gz), or the "
                    "name or id of a data set",
                    "examples": ["mnist"],
                },
                "dataset_labels": DATASET_FILES["dataset_labels"],
                "dataset_id": text_schema("Of a data set that is here already, in its place"),
                "property": {**FILE, "description": "VNN-LIB, in place of a data set"},
                "spec": {
                    "type": "string",
                    "description": "JSON text of a Spec; needed but for a property",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": "#/components/schemas/Spec"},
                    "example": '{"norm": "l2", "epsilons": ["36/255"]}',
                },
                "force": {"type": "string", "enum": ["true", "false"], "description": _FORCE},
                "webhook": _WEBHOOK,
            },
            required=[],
        ),
        "application/json": {
            **object_schema(
                {
                    "model_id": _MODEL_ID,
                    "dataset": text_schema("Name or id of a data set"),
                    "spec": {"$ref": "#/components/schemas/Spec"},
                    "force": {"type": "boolean", "default": False, "description": _FORCE},
                    "webhook": _WEBHOOK,
                },
                required=["model_id", "dataset", "spec"],
            ),
            "$defs": {**_SPEC.pop("$defs", {}), "Spec": _SPEC},
        },
    }
)


class _JsonSubmission(Strict):
    """The JSON body of a submission: model and data set are here already, named by their ids."""

    model_id: Annotated[str, Field(max_length=200)]
    dataset: Annotated[str | None, Field(max_length=200)] = None
    dataset_id: Annotated[str | None, Field(max_length=200)] = None
    spec: JsonValue
    force: bool = False
    webhook: WebhookUrl | None = None


class _Webhook(Strict):
    """The same field of a form."""

    webhook: WebhookUrl | None = None


@router.post(
    "/certify",
    status_code=202,
    response_model=JobRecord,
    openapi_extra=_BODY,
    responses={200: {"model": JobRecord, "description": "Ended within Prefer: wait"}},
    summary="Certify a model on a data set, or verify a property of it",
)
async def certify(
    request: Request,
    response: Response,
    services: UsesServices,
    principal: Principal,
    force: Annotated[bool, Query(description=_FORCE)] = False,
    idempotency_key: Annotated[
        str | None, Header(description="The same key with the same content gives the same job")
    ] = None,
) -> JobRecord:
    """Multipart with files or ids, or JSON with ids. The job is on disk before the answer.

    The same `Idempotency-Key` with the same content gives the same job, with other content 409.
    With a `property` (VNN-LIB) in place of the data set the report has its verdict; the spec is
    then optional. Where an equal job (model, data, spec, version) of the caller has succeeded, that
    job is the answer, unless `force` (query, form field or JSON member).
    """
    options = SubmissionOptions(principal, idempotency_key, force)
    given = media_type(request)
    if given == "multipart/form-data":
        prepared = await _from_form(request, services, options)
    elif given == "application/json":
        prepared = await _from_json(request, services, options)
    else:
        raise Unsupported(
            f"a submission is multipart/form-data or application/json, not {given[:100]!r}",
            code="unsupported_media_type",
        )
    accepted = await services.submissions.submit(prepared)
    return await respond(request, response, services, principal, accepted)


async def _from_json(
    request: Request, services: Services, options: SubmissionOptions
) -> PreparedSubmission:
    value = await json_body(request, limit=services.settings.max_spec_bytes)
    body = parse_model(_JsonSubmission, value, field="body", code="invalid_request")
    spec = parse_model(Spec, body.spec, field="spec", code="invalid_spec")
    webhook = accepted_webhook(services.settings, body.webhook)
    options = options._replace(force=options.force or body.force, webhook=webhook)
    wanted = _only_one(body.dataset, body.dataset_id, "dataset", "dataset_id")
    field = "dataset" if body.dataset else "dataset_id"

    def look() -> PreparedSubmission:
        model = known_model(services, body.model_id, options.caller)
        dataset = known_dataset(services, wanted, options.caller, field=field)
        return _prepared(services, options, spec, model, dataset)

    return await to_thread.run_sync(look)


def _prepared(
    services: Services,
    options: SubmissionOptions,
    spec: Spec,
    model: ModelSource,
    dataset: DatasetSource,
) -> PreparedSubmission:
    check_fit(spec, model, dataset)
    submission_request = SubmissionRequest(
        kind="certify",
        spec=spec,
        model=model,
        dataset=dataset,
        caller=options.caller,
        idempotency_key=options.idempotency_key,
        force=options.force,
        webhook=options.webhook,
    )
    return services.submissions.prepare(submission_request)


async def _from_form(
    request: Request, services: Services, options: SubmissionOptions
) -> PreparedSubmission:
    settings = services.settings
    files = model_fields(settings) | dataset_fields(settings) | property_fields()
    texts = {"spec": settings.max_spec_bytes, "model_id": 200, "dataset_id": 200, "dataset": 200}
    texts |= {"force": 5, "webhook": 4000}
    async with received_form(request, services, options.caller, files=files, texts=texts) as form:
        spec = _spec_of(form)
        return await to_thread.run_sync(lambda: _sources(form, spec, services, options))


def _spec_of(form: Form) -> Spec:
    """The form's spec; of a property it is another one, which may be left out."""
    kind = PropertySpec if "property" in form.files else Spec
    if "spec" not in form.texts and kind is Spec:
        raise InvalidInput("the field spec is missing", code="missing_field", field="spec")
    value = parse_json(form.texts.get("spec", "{}"), field="spec")
    return parse_model(kind, value, field="spec", code="invalid_spec")


def _sources(
    form: Form, spec: Spec, services: Services, options: SubmissionOptions
) -> PreparedSubmission:
    """Check the whole form before any upload is kept."""
    caller = options.caller
    force = form.texts.get("force", "false")
    if force not in ("true", "false"):
        raise InvalidInput("force must be true or false", code="invalid_request", field="force")
    asked = {"webhook": form.texts.get("webhook") or None}
    url = parse_model(_Webhook, asked, field="body", code="invalid_request").webhook
    webhook = accepted_webhook(services.settings, url)
    options = options._replace(force=options.force or force == "true", webhook=webhook)
    model_file = form.files.get("model")
    model_id = form.texts.get("model_id")
    if (model_file is None) == (model_id is None):
        raise _one_of(model_file is None, "model", "model_id")
    if model_file is None and form.several.get("model_data"):
        raise InvalidInput(
            "model_data belongs to a file in the field model",
            code="unexpected_model_data",
            field="model_data",
        )
    dataset_file = form.files.get("dataset")
    dataset_name = form.texts.get("dataset") or None
    dataset_id = form.texts.get("dataset_id") or None
    property_file = form.files.get("property")
    if property_file is not None:
        given = {*form.files, *form.texts} & {"dataset", "dataset_id", "dataset_labels"}
        if given:
            raise _one_of(False, "property", min(given))
        dataset = keep_property(property_file)
    elif dataset_file is None:
        dataset_id = _only_one(dataset_name, dataset_id, "dataset", "dataset_id")
        field = "dataset" if dataset_name else "dataset_id"
        dataset = known_dataset(services, dataset_id, caller, field=field)
    else:
        if dataset_id is not None:
            raise _one_of(False, "dataset", "dataset_id")
        dataset, _ = keep_dataset(services, form, name=None, owner=caller.name, own=False)
    if model_id is not None:
        model = known_model(services, model_id, caller)
    else:
        model, _ = keep_model(services, form, name=None, owner=caller.name, own=False)
    return _prepared(services, options, spec, model, dataset)


def _only_one(first: str | None, second: str | None, *names: str) -> str:
    if (first is None) == (second is None):
        raise _one_of(first is None, *names)
    chosen = first if first is not None else second
    assert chosen is not None
    return chosen


def _one_of(missing: bool, *names: str) -> InvalidInput:
    if missing:
        return InvalidInput(
            f"one of the fields {' and '.join(names)} is needed",
            code="missing_field",
            field=names[0],
        )
    return InvalidInput(
        f"give only one of the fields {' and '.join(names)}",
        code="conflicting_fields",
        field=names[-1],
    )
