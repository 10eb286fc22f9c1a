"""The fields of the forms, as far as this version of the API knows them.

A field that has no row in the tables is offered all the same, as JSON, so that a form never falls
behind the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from service.console.views.certify_form import CERTIFY
from service.console.views.field import Field
from service.console.views.train_form import TRAIN
from service.contract.schemas.submissions import Spec
from service.contract.schemas.training_plans import TrainSpec

__all__ = ["certify_fields", "train_fields"]

#: Of the training request: what the form asks for in another way.
_ELSEWHERE = ("dataset", "force", "webhook")


def certify_fields() -> Sequence[Field]:
    """The fields of a spec, as far as this version knows them."""
    return _known(CERTIFY, Spec)


def train_fields() -> Sequence[Field]:
    """The fields of a training request."""
    return _known(TRAIN, TrainSpec)


def _known(rows: Iterable[Field], model: type[BaseModel]) -> list[Field]:
    fields: dict[str, Any] = dict(model.model_fields)
    found = [row for row in rows if row.name.partition(".")[0] in fields]
    named = {row.name for row in found} | {*_ELSEWHERE}
    for name, field in fields.items():
        if name not in named:
            label = name.replace("_", " ").capitalize()
            about = field.description or "See the API's documentation. As JSON."
            found.append(Field(name, label, about, "json", more=True))
    return found
