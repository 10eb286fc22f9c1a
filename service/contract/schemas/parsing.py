"""From JSON text to checked values, or a problem that names the field at fault."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from service.contract.near_names import did_you_mean
from service.contract.schemas.problems import InvalidInput, Malformed, Problem

__all__ = ["parse_json", "parse_model", "problem_of"]

Parsed = TypeVar("Parsed", bound=BaseModel)

#: Codes of pydantic's error types that scripts rely on; our own types are codes already.
_CODES = {"extra_forbidden": "unknown_field", "missing": "missing_field"}
_OWN = frozenset(
    {
        "invalid_architecture",
        "invalid_criterion",
        "invalid_epsilon",
        "invalid_indices",
        "invalid_input_range",
        "invalid_normalization",
        "invalid_sweep",
        "invalid_webhook",
        "unknown_architecture",
        "unknown_field",
        "unknown_method",
        "unsupported_norm",
        "unsupported_summation",
    }
)

#: Names of our fields, and what pydantic puts between them for the kinds of a union.
_FIELD = re.compile(r"[a-z][a-z0-9_]*")
_KINDS = frozenset({"bool", "bytes", "dict", "float", "int", "list", "none", "str", "tuple"})
_INSTANCE = re.compile(r" or instance of \w+")
#: Errors of texts that may be numbers, true, false or null in quotation marks.
_UNQUOTED = frozenset({"bool_type", "dict_type", "float_type", "int_type", "model_type"})
_BARE = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
#: The texts among the values that a field may have, in pydantic's words.
_NAMES = re.compile(r"'([^']*)'")


def parse_json(text: str | bytes, *, field: str | None = None) -> Any:
    """The value of a JSON text. Raises Malformed; NaN, Infinity and doubled names are no JSON."""
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_distinct)
        # Half a surrogate pair is valid JSON, but cannot be written to disk or sent back.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        where = "the body" if field is None else field
        raise Malformed(
            f"{where} is not valid JSON: {reason[:200]}", code="invalid_json", field=field
        ) from error
    return value


def parse_model(kind: type[Parsed], value: Any, *, field: str, code: str) -> Parsed:
    """``value`` as a ``kind``; errors without a code of their own get ``code``."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise problem_of(error, field=field, code=code, kind=kind) from error


def problem_of(
    error: ValidationError, *, field: str, code: str, kind: type[BaseModel] | None = None
) -> Problem:
    """The problem of the first error; the others are listed in the hint.

    kind: what was read; with it an unknown field that is nearly a known one names that one.
    """
    rows = error.errors(include_url=False)
    # Report an unknown or missing field first: it explains the other errors best.
    rows.sort(key=lambda row: row["type"] not in _CODES)
    said: dict[str, list[str]] = {}
    for row in rows:
        near = _near(kind, row) or _example(row)
        said.setdefault(_place(field, row), []).append(_INSTANCE.sub("", row["msg"]) + near)
    place, *others = said
    first = rows[0]["type"]
    found = _CODES.get(first) or (first if first in _OWN else code)
    hint = "also: " + "; ".join(f"{other}: {_either(said[other])}" for other in others[:5])
    return InvalidInput(
        f"{place}: {_either(said[place])}", code=found, field=place, hint=hint if others else None
    )


def _place(field: str, row: ErrorDetails) -> str:
    """Where the error is, in the writer's names: without pydantic's for the kinds of a union."""
    parts = row["loc"]
    # What is unknown or missing ends with its own name, whatever it is.
    own = len(parts) - 1 if row["type"] in _CODES else None
    names = [str(part) for place, part in enumerate(parts) if place == own or not _is_kind(part)]
    # Members of a JSON body go by their own names, as where they are refused for other reasons.
    return ".".join([*([field] if field != "body" or not names else []), *names])[:200]


def _example(row: ErrorDetails) -> str:
    """How a value that is nearly right is written."""
    value = row["input"]
    if isinstance(value, str) and row["type"] in _UNQUOTED and _BARE.fullmatch(value):
        return f": {value} without quotation marks"
    if row["type"] != "list_type" or isinstance(value, dict | bool):
        return ""
    if row["loc"][-1:] == ("input_range",):
        return ": such as [0, 255]; or null without quotation marks"
    text = json.dumps(value)
    return f": [{text}]" if len(text) <= 60 else ""


def _near(kind: type[BaseModel] | None, row: ErrorDetails) -> str:
    """Which field, or which of a field's values, was probably meant."""
    if row["type"] == "literal_error":
        return did_you_mean(row["input"], _NAMES.findall(row["ctx"]["expected"]))
    return _near_field(kind, row["loc"]) if row["type"] == "extra_forbidden" else ""


def _near_field(kind: type[BaseModel] | None, parts: tuple[int | str, ...]) -> str:
    """Which field of ``kind``, or of the model inside it at ``parts``, was probably meant."""
    models = [] if kind is None else [kind]
    for part in parts[:-1]:
        fields = [model.model_fields.get(str(part)) for model in models]
        inner = [found for row in fields if row for found in _models(row.annotation)]
        models = inner or models
    names = [row.alias or name for model in models for name, row in model.model_fields.items()]
    return did_you_mean(parts[-1], names)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's annotation allows, in unions and lists too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]


def _is_kind(part: int | str) -> bool:
    return isinstance(part, str) and (part in _KINDS or _FIELD.fullmatch(part) is None)


def _either(messages: list[str]) -> str:
    """One error per kind of a union: any of them would do."""
    return "; or ".join(dict.fromkeys(messages))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that comes twice in one object: which value is meant is unknown."""
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(name for name in value if sum(name == other for other, _ in pairs) > 1)
        raise ValueError(f"the name {twice[:100]!r} comes twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
