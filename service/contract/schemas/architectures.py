"""Architectures of a request: what is misspelled or lacks is refused before a job is made.

Sizes that do not fit together are found by the worker, which builds the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from pydantic import JsonValue, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from service.contract.catalogue.architectures import CHOICES, FAMILIES
from service.contract.catalogue.layer_kinds import INITS, JOINING, LAYER_KINDS, LEFT_OUT
from service.contract.near_names import did_you_mean

__all__ = ["checked_family", "checked_layers"]

_INPUT = "input"
_MAX_LAYERS = 1_000
#: Integers from here on are not the same to all readers of JSON: no report with one can be signed.
_INEXACT = 2**53
#: Members that every layer may have.
_COMMON = ("kind", "name", "from")

Place = tuple[str | int, ...]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(one: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(one, value))


#: Form of a member -> whether a value has it, and how it is called.
_FORMS: dict[str, tuple[Callable[[object], bool], str]] = {
    "integer": (_integer, "an integer"),
    "sizes": (lambda v: _integer(v) or _list_of(_integer, v), "an integer or a list of them"),
    "number": (_number, "a number"),
    "numbers": (lambda value: _list_of(_number, value), "a list of numbers"),
    "boolean": (lambda value: isinstance(value, bool), "true or false"),
    "text": (lambda value: isinstance(value, str), "a text"),
}


def checked_family(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The architecture, with its name, itself. Raises PydanticCustomError and ValidationError
    (invalid_architecture) that say what is allowed."""
    _check_integers(value)
    name = str(value.get("name"))
    if name in FAMILIES:
        _known((), value, ("name", "activation", *FAMILIES[name]), f"{name!r}")
    for member, allowed in CHOICES.get(str(value.get("name")), {}).items():
        if member in value and value[member] not in allowed:
            raise PydanticCustomError(
                "invalid_architecture",
                '"{member}" is {given}; allowed are {allowed}',
                {
                    "member": member,
                    "given": repr(value[member])[:80],
                    "allowed": ", ".join(allowed),
                },
            )
    return value


def checked_layers(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The layer list itself. Raises ValidationError (invalid_architecture) at the member at fault:
    ``layers.3.kernel``."""
    _check_integers(value)
    _known((), value, ("input", "layers", "init"), "an architecture")
    if value.get("init") not in (None, *INITS):
        _unknown(("init",), value["init"], INITS, "an init")
    if not _list_of(_integer, value.get("input")):
        _refuse(("input",), '"input" must be the shape of one sample, such as [3, 32, 32]', value)
    layers = value.get("layers")
    if not isinstance(layers, list) or not 1 <= len(layers) <= _MAX_LAYERS:
        _refuse(("layers",), f'"layers" must be a list of 1 to {_MAX_LAYERS} layers', value)
    names = {_INPUT}
    for index, row in enumerate(layers):
        _check_layer(("layers", index), row, names)
    return value


def _check_integers(value: JsonValue) -> None:
    """Refuse integers that JSON readers may read differently, at any depth."""
    left: list[tuple[Place, Any]] = [((), value)]
    while left:
        place, part = left.pop()
        if isinstance(part, dict):
            left += [((*place, name[:60]), inner) for name, inner in part.items()]
        elif isinstance(part, list):
            left += [((*place, index), inner) for index, inner in enumerate(part)]
        elif _integer(part) and abs(part) >= _INEXACT:
            _refuse(place, f"integers are below 2^53, not {_said(part)}", part)


def _check_layer(place: Place, row: Any, names: set[str]) -> None:
    """One layer; its name joins the ``names`` of earlier ones."""
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        _refuse(place, 'a layer is an object with a "kind", such as {"kind": "relu"}', row)
    kind = row["kind"]
    if kind not in LAYER_KINDS:
        left_out = LEFT_OUT.get("".join(filter(str.isalnum, kind.lower())))
        if left_out is not None:
            _refuse((*place, "kind"), f"{_said(kind)} {left_out}: leave it out", row)
        _unknown((*place, "kind"), kind, LAYER_KINDS, "a kind of layer")
    members = LAYER_KINDS[kind]
    _known(place, row, (*_COMMON, *members), f"{kind!r}")
    for member, (form, required) in members.items():
        if row.get(member) is None:
            if required:
                _refuse((*place, member), f'"{kind}" needs "{member}": {_FORMS[form][1]}', row)
            continue
        fits, called = _FORMS[form]
        if not fits(row[member]):
            given = _said(row[member])
            _refuse((*place, member), f'"{member}" of "{kind}" is {called}, not {given}', row)
    sources = row.get("from")
    for source in sources if isinstance(sources, list) else [sources]:
        if source is not None and source not in names:
            _unknown((*place, "from"), source, sorted(names), "the name of an earlier layer")
    if kind in JOINING and sources is None:
        _refuse((*place, "from"), f'"{kind}" needs "from": the name of an earlier layer', row)
    name = row.get("name")
    if name is not None and (not isinstance(name, str) or name in names):
        _refuse((*place, "name"), f"the name {_said(name)} is taken, or no text", row)
    if isinstance(name, str):
        names.add(name)


def _known(place: Place, value: dict[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse the first member that is not one of the ``known``."""
    for member in value:
        if member not in known:
            _unknown((*place, member[:60]), member, known, f"a member of {what}")


def _unknown(place: Place, given: object, known: Iterable[str], what: str) -> NoReturn:
    near = did_you_mean(given, known)
    _refuse(place, f"{_said(given)} is not {what}{near}; there are {', '.join(known)}", given)


def _said(value: object) -> str:
    """A value as a message names it: short, and never of what is nested deeply."""
    return type(value).__name__ if isinstance(value, list | dict) else repr(value)[:60]


def _refuse(place: Place, message: str, value: object) -> NoReturn:
    error = PydanticCustomError("invalid_architecture", "{message}", {"message": message})
    raise ValidationError.from_exception_data(
        "architecture", [InitErrorDetails(type=error, loc=place, input=value)]
    )
