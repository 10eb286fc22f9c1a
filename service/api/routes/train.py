"""POST /train: a method, a data set and an epsilon become a job that ends in a certified model."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Request, Response
from pydantic import ValidationError

from service.api.auth import Principal
from service.api.bodies import json_body, media_type
from service.api.middleware import DOCUMENT_HEADERS
from service.api.responses import SubmissionOptions, respond
from service.api.services import Services, UsesServices
from service.api.uploads.listing import own_names
from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.ids import digest_hex
from service.contract.schemas.job_records import JobRecord
from service.contract.schemas.parsing import parse_model, problem_of
from service.contract.schemas.problems import InvalidInput, NotFound, Unsupported
from service.contract.schemas.submissions import DatasetSource, Spec
from service.contract.schemas.training_plans import Hyperparameters, TrainSpec, certification_spec
from service.jobs.submit import PreparedSubmission, SubmissionRequest
from service.recipes.plans import plan_of
from service.reports.training_curve import render_training_svg
from service.uploads.dataset_sources import resolve_dataset
from service.webhooks.targets import accepted_webhook

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

#: Share of an uploaded data set that is kept from training and certified on.
HELD_OUT = 0.1


def _body() -> dict[str, Any]:
    """OpenAPI's description of the body, with the models that its members may hold by name."""
    reference = "#/components/schemas/{model}"
    spec, recipe = (
        model.model_json_schema(ref_template=reference) for model in (TrainSpec, Hyperparameters)
    )
    recipe["properties"]["base"] = {
        "type": "string",
        "enum": ["paper", "fast"],
        "description": "The recipe whose values hold where none is given here.",
    }
    recipe["properties"]["options"]["properties"] = {
        name: {**told, "description": f"Of {row.name}: {told['description']}"}
        for row in TRAINING_METHODS.values()
        for name, told in row.options.model_json_schema()["properties"].items()
        if name not in recipe["properties"] and "description" in told
    }
    names, _ = spec["properties"]["recipe"]["anyOf"]
    spec["properties"]["recipe"]["anyOf"] = [
        names,
        {"$ref": reference.format(model="Hyperparameters")},
    ]
    definitions = {**spec.pop("$defs", {}), **recipe.pop("$defs", {})}
    body = {
        "schema": {
            "$ref": reference.format(model="TrainSpec"),
            "$defs": {**definitions, "TrainSpec": spec, "Hyperparameters": recipe},
        },
        "example": {"method": "emma", "dataset": "mnist", "epsilon": 1.58, "recipe": "fast"},
    }
    return {"requestBody": {"required": True, "content": {"application/json": body}}}


@router.post(
    "/train",
    status_code=202,
    response_model=JobRecord,
    openapi_extra=_body(),
    responses={200: {"model": JobRecord, "description": "Ended within Prefer: wait"}},
    summary="Train a classifier that can be certified, and certify it",
)
async def train(
    request: Request,
    response: Response,
    services: UsesServices,
    principal: Principal,
    idempotency_key: Annotated[
        str | None, Header(description="The same key with the same content gives the same job")
    ] = None,
) -> JobRecord:
    """JSON. What the recipe names may be left out; the job is on disk before the answer.

    A registered data set means its train split, and its test split for the certification; of an
    uploaded one a random tenth is held out for it, unless ``test_dataset`` names another.
    """
    given = media_type(request)
    if given != "application/json":
        raise Unsupported(
            f"a training is application/json, not {given[:100]!r}",
            code="unsupported_media_type",
        )
    value = await json_body(request, limit=services.settings.max_spec_bytes)
    spec = parse_model(TrainSpec, value, field="body", code="invalid_request")
    most = services.settings.max_devices
    if spec.devices > most:
        raise InvalidInput(
            f"{spec.devices} devices are more than a training may have here ({most})",
            code="too_many_devices",
            hint="ask for fewer; the limit is CERTSERVE_MAX_DEVICES",
            field="devices",
        )
    webhook = accepted_webhook(services.settings, spec.webhook)
    options = SubmissionOptions(principal, idempotency_key, spec.force, webhook)
    prepared = await to_thread.run_sync(lambda: _prepared(services, options, spec))
    accepted = await services.submissions.submit(prepared)
    return await respond(request, response, services, principal, accepted)


def _prepared(
    services: Services, options: SubmissionOptions, spec: TrainSpec
) -> PreparedSubmission:
    source, held_out = _training_data(services, options, spec)
    try:
        plan = plan_of(spec, _known_as(spec, source), held_out=held_out)
        certification = certification_spec(spec)
    except ValidationError as error:
        field = "certify" if error.title == "Spec" else "recipe"
        raise problem_of(error, field=field, code=f"invalid_{field}") from error
    if certification is not None and certification.architecture is not None:
        raise InvalidInput(
            "the trained model is an ONNX file; leave certify.architecture out",
            code="unexpected_architecture",
            field="certify.architecture",
        )
    if certification is not None and certification.input_range not in (None, [0.0, 1.0]):
        raise InvalidInput(
            "training takes pixels in [0, 1], so that the trained model is certified on them",
            code="unsupported_input_range",
            hint="leave certify.input_range out: scale the data to [0, 1] before the upload",
            field="certify.input_range",
        )
    submission_request = SubmissionRequest(
        kind="train",
        spec=certification,
        model=None,
        dataset=_test_data(services, options, spec, source, certification),
        caller=options.caller,
        idempotency_key=options.idempotency_key,
        force=options.force,
        webhook=options.webhook,
        training=plan,
        training_dataset=source,
    )
    return services.submissions.prepare(submission_request)


def _known_as(spec: TrainSpec, source: DatasetSource) -> str:
    """The name that recipes have for the data: what was asked for, without the split."""
    name = source.name if digest_hex(spec.dataset) is not None else spec.dataset
    return name.partition(":")[0]


def _find(
    services: Services, options: SubmissionOptions, text: str, split: str, field: str
) -> DatasetSource:
    source = resolve_dataset(
        text,
        services.store,
        services.settings,
        names=lambda record: own_names(record, options.caller),
        split="train" if split == "train" else "test",
        field=field,
    )
    if source.id is not None:
        services.store.touch("datasets", source.id)
    return source


def _training_data(
    services: Services, options: SubmissionOptions, spec: TrainSpec
) -> tuple[DatasetSource, float]:
    """The samples to train on, and the share of them that is held out."""
    held_out = HELD_OUT if spec.certify is not None and spec.test_dataset is None else 0.0
    try:
        source = _find(services, options, spec.dataset, "train", "dataset")
    except InvalidInput:
        # An upload under a plain name has no train split, but it can be trained on.
        source = _uploaded(services, options, spec.dataset)
        return source, held_out
    if source.id is None and source.split == "test" and spec.test_dataset is None:
        raise InvalidInput(
            "this is the test split, on which the trained model would be certified",
            code="invalid_dataset",
            hint='the plain name means the train split; or name another "test_dataset"',
            field="dataset",
        )
    return source, 0.0 if source.id is None else held_out


def _uploaded(services: Services, options: SubmissionOptions, text: str) -> DatasetSource:
    try:
        found = _find(services, options, text, "test", "dataset") if ":" not in text else None
    except InvalidInput:
        found = None
    if found is None or found.id is None:
        # Its message names the places where the train split was looked for.
        return _find(services, options, text, "train", "dataset")
    return found


def _test_data(
    services: Services,
    options: SubmissionOptions,
    spec: TrainSpec,
    source: DatasetSource,
    certification: Spec | None,
) -> DatasetSource | None:
    """What the trained model is certified on."""
    if certification is None:
        return None
    if spec.test_dataset is not None:
        test = _find(services, options, spec.test_dataset, "test", "test_dataset")
        if _content(test) == _content(source):
            raise InvalidInput(
                "the model would be certified on the samples that it is trained on",
                code="same_dataset",
                hint='another "test_dataset", or none: then a part of an upload is held out, '
                "and a registered name has its test split",
                field="test_dataset",
            )
        return test
    if source.id is not None:
        return source
    return _find(services, options, spec.dataset.partition(":")[0], "test", "test_dataset")


def _content(source: DatasetSource) -> tuple[object, ...]:
    """The digests or files that determine the samples."""
    return source.kind, source.blobs, source.paths, source.split


@router.get("/jobs/{job_id}/training", summary="The plan and the curve of a training")
async def training(job_id: str, services: UsesServices, principal: Principal) -> dict[str, Any]:
    """``plan`` (every hyperparameter), ``history`` (a row per epoch so far) and ``model_id``.

    ``plan.arithmetic`` is what became of ``precision`` and ``compiled`` on the worker, from the
    first epoch on; a run that changes workers has it for every epoch in the history.
    ``robust`` in the history is the method's own estimate; only the report is a proof.
    """
    return await to_thread.run_sync(lambda: _training(job_id, services, principal))


@router.get(
    "/jobs/{job_id}/training.svg",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {}}, "description": "The chart"}},
    summary="The curve of a training as a chart",
)
async def training_svg(job_id: str, services: UsesServices, principal: Principal) -> Response:
    """Accuracy and robust accuracy over the epochs so far."""
    found = await to_thread.run_sync(lambda: _training(job_id, services, principal))
    chart = render_training_svg(found["plan"], found["history"])
    return Response(chart, media_type="image/svg+xml", headers=DOCUMENT_HEADERS)


def _training(job_id: str, services: Services, principal: Principal) -> dict[str, Any]:
    state = services.jobs.visible(job_id, principal)
    plan = state.submission.training
    if plan is None:
        raise NotFound("this job is not a training", code="no_training")
    history = services.results.history(job_id)
    if history:
        used = {name: history[-1].get(name) for name in ("precision", "compiled")}
        plan = {**plan, "arithmetic": used}
    return {"job_id": job_id, "plan": plan, "history": history, "model_id": state.model_id}
