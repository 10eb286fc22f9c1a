"""From an upload or an id to a source that a job can name; uploads are checked, then kept."""

from __future__ import annotations

import re
from typing import Any

from service.access.keys import Caller
from service.api.services import Services
from service.api.uploads.listing import own_names, owners_of, visible_to
from service.contract.ids import digest_hex, export_id, pair_id
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.submissions import MODEL_FILE, DatasetSource, ModelSource
from service.contract.storage.store import Collection
from service.contract.times import now, rfc3339
from service.uploads.dataset_files import inspect_dataset
from service.uploads.dataset_sources import resolve_dataset, uploaded_source
from service.uploads.model_files import inspect_model
from service.uploads.property_files import inspect_property
from service.uploads.receive import Form, Upload

__all__ = [
    "check_name",
    "keep_dataset",
    "keep_model",
    "keep_property",
    "known_dataset",
    "known_model",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}")


def check_name(name: str | None) -> str | None:
    """A name for an upload. Raises InvalidInput."""
    if name is not None and (_NAME.fullmatch(name) is None or digest_hex(name) is not None):
        raise InvalidInput(
            "a name has 1 to 100 letters, digits and . _ : + -", code="invalid_name", field="name"
        )
    return name


def keep_model(
    services: Services, form: Form, *, name: str | None, owner: str, own: bool
) -> tuple[ModelSource, bool]:
    """Check the form's model and keep it; whether it is new to its owner.

    Its id is the file's digest; with data beside it that of the names and digests of all files, the
    model first, then by name. ``own``: it was uploaded for its own sake. Raises InvalidInput,
    StorageFull.
    """
    upload = form.files["model"]
    data = sorted(form.several.get("model_data", []), key=lambda other: other.filename)
    kind = inspect_model(upload.writer.path, upload.filename, services.settings)
    if data and kind != "onnx":
        raise InvalidInput(
            "only an ONNX file keeps tensors in files beside it",
            code="unexpected_model_data",
            field="model_data",
        )
    blob = upload.writer.publish()
    record: dict[str, Any] = {
        "id": blob.digest,
        "format": kind,
        "name": name or upload.filename,
        "size": blob.size,
    }
    if data:
        kept = [(other.filename, other.writer.publish()) for other in data]
        record |= {
            "id": export_id((upload.filename, blob.digest), [(n, b.digest) for n, b in kept]),
            "size": blob.size + sum(found.size for _, found in kept),
            "blobs": {MODEL_FILE: blob.digest, **{f"data:{n}": b.digest for n, b in kept}},
        }
    record, new = _put(services, "models", record, owner=owner, own=own)
    return _model_source(record), new


def keep_dataset(
    services: Services, form: Form, *, name: str | None, owner: str, own: bool
) -> tuple[DatasetSource, bool]:
    """Check the form's data set and keep it; whether it is new to its owner.

    Its id is the file's digest; that of a pair is the digest of both digests.
    """
    data, labels = form.files["dataset"], form.files.get("dataset_labels")
    facts = inspect_dataset(
        data.writer.path,
        data.filename,
        services.settings,
        labels=labels.writer.path if labels else None,
    )
    size = data.writer.size
    first = data.writer.publish().digest
    if labels is None:
        identity, blobs = first, {"file": first}
    else:
        size += labels.writer.size
        second = labels.writer.publish().digest
        identity = pair_id(first, second)
        blobs = {"file" if facts.format == "npy" else "images": first, "labels": second}
    record, new = _put(
        services,
        "datasets",
        {
            "id": identity,
            "format": facts.format,
            # A file name has a suffix, so it never equals a registered name by accident.
            "name": name or data.filename,
            "size": size,
            "samples": facts.samples,
            "shape": facts.shape,
            "labels": facts.labels,
            "blobs": blobs,
        },
        owner=owner,
        own=own,
    )
    return uploaded_source(record), new


def keep_property(upload: Upload) -> DatasetSource:
    """Check a property file and keep its bytes for the job that names them.

    Raises InvalidInput, StorageFull.
    """
    inspect_property(upload.writer.path)
    blob = upload.writer.publish()
    return DatasetSource(kind="vnnlib", name=upload.filename, blobs={"file": blob.digest})


def known_model(services: Services, model_id: str, caller: Caller) -> ModelSource:
    """The uploaded model of this id, if it is the caller's. Raises InvalidInput."""
    record = services.store.record("models", model_id)
    if record is None or not visible_to(record, caller):
        raise InvalidInput(
            f"there is no model {model_id[:100]!r}",
            code="unknown_model",
            hint="upload it first (POST /models), or send the file in the field model",
            field="model_id",
        )
    services.store.touch("models", model_id)
    return _model_source(record)


def known_dataset(services: Services, text: str, caller: Caller, *, field: str) -> DatasetSource:
    """The data set of this id or name, if it is the caller's. Raises InvalidInput."""
    source = resolve_dataset(
        text, services.store, services.settings, names=lambda r: own_names(r, caller), field=field
    )
    if source.id is not None:
        services.store.touch("datasets", source.id)
    return source


def _put(
    services: Services, collection: Collection, record: dict[str, Any], *, owner: str, own: bool
) -> tuple[dict[str, Any], bool]:
    """The stored record, and whether it is new to its owner."""
    known = services.store.record(collection, record["id"])
    new = known is None or owner not in owners_of(known)
    record = {**record, "created_at": rfc3339(now())}
    return services.store.put_record(collection, record["id"], record, owner=owner, own=own), new


def _model_source(record: dict[str, Any]) -> ModelSource:
    return ModelSource(
        digest=record["id"],
        format=record["format"],
        name=record["name"],
        size=record["size"],
        blobs=record.get("blobs", {}),
    )
