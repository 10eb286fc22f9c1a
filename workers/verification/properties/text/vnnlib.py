"""Reading VNN-LIB 1.0, and 2.0 where it says the same: one network, real inputs X and outputs Y.

The file states the UNSAFE set: the property holds where no input satisfies all assertions. Words of
the language are rows of tables; what no row names is refused by its name.

Source: VNN-LIB standard (vnnlib.org); Demarchi, Guidotti, Pulina, Tacchella 2023.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

from workers.verification.properties.errors import PropertyError
from workers.verification.properties.lowering import Property, lowered
from workers.verification.properties.text.conditions import (
    Atom,
    Condition,
    Linear,
    Variable,
    all_of,
    any_of,
)
from workers.verification.properties.text.numerals import bounded, numeral
from workers.verification.properties.text.syntax import Token, commands, invalid

__all__ = ["parse_vnnlib"]

#: Inputs and outputs, at most.
MAX_VARIABLES = 4_000_000
#: Element types of 2.0 whose numbers are exactly those of the deployed network.
_TYPES = frozenset({"Real", "real", "float32", "Float32"})

_SCALAR = re.compile(r"([XY])_([0-9]{1,9})", re.ASCII)
_SHAPE = re.compile(r"\[([0-9]{1,9}(?:,[0-9]{1,9})*)?\]", re.ASCII)

Value = Linear | Condition


@dataclass
class _Declared:
    """scalars: how many of X_i and Y_i (1.0); shapes: of whole tensors (2.0)."""

    scalars: dict[str, int] = field(default_factory=lambda: {"X": 0, "Y": 0})
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def count(self, kind: str) -> int:
        for name, known in self.kinds.items():
            if known == kind:
                return math.prod(self.shapes[name])
        return self.scalars[kind]


def parse_vnnlib(text: str) -> Property:
    """The property that a VNN-LIB text states.

    Raises PropertyError: ``invalid_vnnlib``, ``unsupported_vnnlib`` (a word or a condition that is
    not covered, by name), ``property_too_large``, ``unbounded_input``, ``empty_box``.
    """
    declared = _Declared()
    conditions: list[Condition] = []
    ended = False
    for command in commands(text):
        name, line = command[1]
        if name not in _COMMANDS:
            raise _unsupported(line, "command", name)
        if ended and name not in _LAST:
            raise _unsupported(line, "command after the end", name)
        ended = ended or name in _LAST
        _COMMANDS[name](command, declared, conditions)
    if not declared.count("X") or not declared.count("Y"):
        raise PropertyError("invalid_vnnlib", "the file declares no inputs X or no outputs Y")
    if not conditions:
        raise PropertyError("invalid_vnnlib", "the file asserts nothing")
    stated = lowered(all_of(conditions), declared.count("X"), declared.count("Y"))
    shape = next((declared.shapes[n] for n, kind in declared.kinds.items() if kind == "X"), None)
    return replace(stated, input_shape=shape)


def _unsupported(line: int, what: str, name: str) -> PropertyError:
    return PropertyError(
        "unsupported_vnnlib",
        f"line {line}: the {what} {name[:60]!r} is not covered",
        "covered are bounds on single inputs, and/or, <=, >=, = and linear terms in the outputs "
        "of one network",
    )


def _nothing(command: list[Token], declared: _Declared, conditions: list[Condition]) -> None:
    """A command that changes nothing of what is asked."""


def _version(command: list[Token], declared: _Declared, conditions: list[Condition]) -> None:
    words = [word for word, _ in command[2:-1]]
    if words not in (["<2.0>"], ["<1.0>"], ["2.0"], ["1.0"]):
        raise _unsupported(command[0][1], "version", " ".join(words))


def _declare_scalar(command: list[Token], declared: _Declared, conditions: list[Condition]) -> None:
    line = command[0][1]
    words = [word for word, _ in command[1:-1]]
    if words[0] == "declare-fun":
        if words[2:4] != ["(", ")"]:
            raise _unsupported(line, "declaration of a function", " ".join(words[1:4]))
        del words[2:4]
    if len(words) != 3:
        raise invalid(line, "a declaration is (declare-const NAME Real)")
    _, name, sort = words
    if sort not in _TYPES:
        raise _unsupported(line, "type", sort)
    found = _SCALAR.fullmatch(name)
    if found is None or declared.shapes:
        raise _unsupported(line, "variable (X_0, X_1, ... and Y_0, Y_1, ... are)", name)
    kind, number = found[1], int(found[2])
    if number != declared.scalars[kind]:
        raise invalid(line, f"{name} is declared where {kind}_{declared.scalars[kind]} was due")
    declared.scalars[kind] += 1
    if number >= MAX_VARIABLES:
        raise PropertyError("property_too_large", f"more than {MAX_VARIABLES} variables")


def _declare_network(
    command: list[Token], declared: _Declared, conditions: list[Condition]
) -> None:
    line = command[0][1]
    if declared.shapes or any(declared.scalars.values()):
        raise _unsupported(line, "second network", command[2][0])
    inner = command[3:-1]
    while inner:
        end = next((place for place, (word, _) in enumerate(inner) if word == ")"), 0)
        words = [word for word, _ in inner[: end + 1]]
        if len(words) < 3 or words[0] != "(":
            raise invalid(inner[0][1], "a network holds declarations of its inputs and outputs")
        kind = {"declare-input": "X", "declare-output": "Y"}.get(words[1])
        if kind is None:
            raise _unsupported(inner[0][1], "declaration", words[1])
        _declare_tensor(inner[0][1], words, kind, declared)
        inner = inner[end + 1 :]


def _declare_tensor(line: int, words: list[str], kind: str, declared: _Declared) -> None:
    if len(words) != 6 or words[2] in ("(", ")"):
        raise invalid(line, f"a tensor is declared as ({words[1]} NAME float32 [1,3,32,32])")
    name, sort, shape = words[2:5]
    if sort not in _TYPES:
        raise _unsupported(line, "type", sort)
    if kind in declared.kinds.values():
        raise _unsupported(line, "second input or output of a network", name)
    if name in declared.shapes or numeral(name) is not None:
        raise invalid(line, f"the name {name[:60]!r} is taken or a number")
    sizes = _numbers(line, shape)
    if math.prod(sizes) > MAX_VARIABLES:
        raise PropertyError("property_too_large", f"more than {MAX_VARIABLES} variables")
    declared.shapes[name], declared.kinds[name] = sizes, kind


def _numbers(line: int, text: str) -> tuple[int, ...]:
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise invalid(line, f"{text[:60]!r} is no list of sizes")
    return tuple(int(part) for part in found[1].split(",")) if found[1] else ()


def _assert(command: list[Token], declared: _Declared, conditions: list[Condition]) -> None:
    values = list(_values(command[2:-1], declared))
    if len(values) != 1 or not isinstance(values[0][0], Condition):
        raise invalid(command[0][1], "(assert ...) takes one condition")
    conditions.append(values[0][0])


_COMMANDS: dict[str, Callable[[list[Token], _Declared, list[Condition]], None]] = {
    "declare-const": _declare_scalar,
    "declare-fun": _declare_scalar,
    "declare-network": _declare_network,
    "assert": _assert,
    "vnnlib-version": _version,
    "set-logic": _nothing,
    "set-info": _nothing,
    "check-sat": _nothing,
    "get-model": _nothing,
    "exit": _nothing,
}
#: Commands that only each other may follow.
_LAST = frozenset({"check-sat", "get-model", "exit"})

Read = tuple[Value, int]


def _values(tokens: list[Token], declared: _Declared) -> Iterator[Read]:
    """The values of the expressions that stand one after the other, each with its line."""
    #: Open expressions: function, line, arguments. The first one holds the results.
    stack: list[tuple[str, int, list[Read]]] = [("", 0, [])]
    place = 0
    while place < len(tokens):
        word, line = tokens[place]
        place += 1
        if word == "(":
            if place == len(tokens) or tokens[place][0] not in _FUNCTIONS:
                name = tokens[place][0] if place < len(tokens) else ""
                raise _unsupported(line, "function", name)
            stack.append((tokens[place][0], line, []))
            place += 1
        elif word == ")":
            name, opened, arguments = stack.pop()
            stack[-1][2].append((_FUNCTIONS[name](name, opened, arguments), opened))
        else:
            element = None
            if place < len(tokens) and tokens[place][0].startswith("["):
                element = tokens[place][0]
                place += 1
            stack[-1][2].append((_word(word, element, line, declared), line))
    yield from stack[0][2]


def _word(word: str, element: str | None, line: int, declared: _Declared) -> Value:
    """A number, a variable, or an element of a tensor."""
    if element is None:
        if word in ("true", "false"):
            return Condition() if word == "true" else Condition((), ())
        number = numeral(word)
        if number is not None:
            return Linear(constant=number)
    found = _SCALAR.fullmatch(word)
    if found is not None and element is None and not declared.shapes:
        if int(found[2]) < declared.scalars[found[1]]:
            return Linear({(found[1], int(found[2])): Fraction(1)})
    elif word in declared.shapes:
        return Linear({_element(word, element or "[]", line, declared): Fraction(1)})
    raise invalid(line, f"{word[:60]!r} is no number and no variable that is declared above")


def _element(name: str, element: str, line: int, declared: _Declared) -> Variable:
    sizes, index = declared.shapes[name], _numbers(line, element)
    if len(index) != len(sizes) or any(i >= n for i, n in zip(index, sizes, strict=True)):
        raise invalid(line, f"{name[:60]}{element[:60]} is not in the shape {list(sizes)}")
    place = 0
    for number, size in zip(index, sizes, strict=True):
        place = place * size + number
    return declared.kinds[name], place


def _linear(name: str, line: int, arguments: list[Read], least: int = 1) -> list[Linear]:
    found = [value for value, _ in arguments if isinstance(value, Linear)]
    if len(found) != len(arguments) or len(found) < least:
        raise invalid(line, f"{name!r} takes {least} or more numbers or variables")
    return found


def _conditions(name: str, line: int, arguments: list[Read]) -> list[Condition]:
    found = [value for value, _ in arguments if isinstance(value, Condition)]
    if len(found) != len(arguments):
        raise invalid(line, f"{name!r} takes conditions")
    return found


def _and(name: str, line: int, arguments: list[Read]) -> Value:
    return all_of(_conditions(name, line, arguments))


def _or(name: str, line: int, arguments: list[Read]) -> Value:
    return any_of(_conditions(name, line, arguments))


def _at_most(name: str, line: int, arguments: list[Read]) -> Value:
    pairs = pairwise(_linear(name, line, arguments, 2))
    return Condition.of(*(Atom.at_most(less, more) for less, more in pairs))


def _at_least(name: str, line: int, arguments: list[Read]) -> Value:
    pairs = pairwise(_linear(name, line, arguments, 2))
    return Condition.of(*(Atom.at_most(less, more) for more, less in pairs))


def _equal(name: str, line: int, arguments: list[Read]) -> Value:
    pairs = list(pairwise(_linear(name, line, arguments, 2)))
    both = [Atom.at_most(one, other) for one, other in pairs]
    return Condition.of(*both, *(Atom.at_most(other, one) for one, other in pairs))


def _plus(name: str, line: int, arguments: list[Read]) -> Value:
    return _sum(_linear(name, line, arguments), 1)


def _minus(name: str, line: int, arguments: list[Read]) -> Value:
    terms = _linear(name, line, arguments)
    return terms[0].times(Fraction(-1)) if len(terms) == 1 else _sum(terms, -1)


def _sum(terms: list[Linear], sign: int) -> Linear:
    """The first term, and sign times the sum of the others; linear in the size of the file."""
    factors, constant = dict(terms[0].factors), terms[0].constant
    for term in terms[1:]:
        for name, factor in term.factors.items():
            factors[name] = bounded(factors.get(name, Fraction(0)) + sign * factor)
        constant = bounded(constant + sign * term.constant)
    return Linear({name: factor for name, factor in factors.items() if factor}, constant)


def _times(name: str, line: int, arguments: list[Read]) -> Value:
    product = Linear(constant=Fraction(1))
    for factor in _linear(name, line, arguments):
        if factor.factors and product.factors:
            raise _unsupported(line, "product of variables", name)
        one, other = (factor, product) if factor.factors else (product, factor)
        product = one.times(other.constant)
    return product


def _divided(name: str, line: int, arguments: list[Read]) -> Value:
    quotient, *divisors = _linear(name, line, arguments, 2)
    for divisor in divisors:
        if divisor.factors or not divisor.constant:
            raise _unsupported(line, "division by a variable or by 0", name)
        quotient = quotient.times(bounded(1 / divisor.constant))
    return quotient


_FUNCTIONS: dict[str, Callable[[str, int, list[Read]], Value]] = {
    "and": _and,
    "or": _or,
    "<=": _at_most,
    ">=": _at_least,
    "=": _equal,
    "==": _equal,
    "+": _plus,
    "-": _minus,
    "*": _times,
    "/": _divided,
}
