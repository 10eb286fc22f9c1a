"""VNN-LIB files: what is written is what is read, and what cannot be meant is refused by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.verification.properties.errors import PropertyError
from workers.verification.properties.lowering import Box, LinearLimit, Property
from workers.verification.properties.text.numerals import numeral
from workers.verification.properties.text.vnnlib import parse_vnnlib

ONE = "(declare-const X_0 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
BOX = f"{ONE}(assert (>= X_0 0))(assert (<= X_0 1))"

#: Whether a condition holds for these values of Y_0 and Y_1.
Holds = Callable[[tuple[int, ...]], bool]

FRACTIONS = st.fractions(max_denominator=10**6, min_value=-(10**9), max_value=10**9)


@st.composite
def properties(draw: st.DrawFn) -> Property:
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    limits = st.builds(
        LinearLimit,
        st.dictionaries(st.integers(0, outputs - 1), FRACTIONS.filter(bool), min_size=1).map(
            lambda factors: tuple(sorted(factors.items()))
        ),
        FRACTIONS,
    )
    case = st.lists(limits, max_size=3, unique=True).map(tuple)
    ends = st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=inputs, max_size=inputs)
    boxes = draw(st.lists(ends, min_size=1, max_size=3, unique_by=lambda e: str(_sorted(e))))
    return Property(
        inputs,
        outputs,
        tuple(
            Box(*_sorted(box), tuple(draw(st.lists(case, min_size=1, max_size=3, unique=True))))
            for box in boxes
        ),
    )


def _sorted(
    ends: list[tuple[Fraction, Fraction]],
) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    return tuple(min(e) for e in ends), tuple(max(e) for e in ends)


@settings(max_examples=60, deadline=None)
@given(properties())
def test_what_is_written_is_what_is_read(stated: Property) -> None:
    assert parse_vnnlib(stated.to_vnnlib()) == stated
    assert Property.from_json(stated.to_json()) == stated


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, Holds]:
    """A condition on Y_0, Y_1 as text, and as a function of their values."""
    kind = draw(st.sampled_from(["<=", ">=", "=", "and", "or"]))
    if kind in ("and", "or"):
        parts = draw(st.lists(st.deferred(conditions), min_size=0, max_size=3))
        holds = [part for _, part in parts]
        gather = all if kind == "and" else any
        return (
            f"({kind} {' '.join(text for text, _ in parts)})",
            lambda y: gather(part(y) for part in holds),
        )
    a, b, c = draw(st.tuples(*[st.integers(-2, 2)] * 3))
    compare = {"<=": int.__le__, ">=": int.__ge__, "=": int.__eq__}[kind]
    return (
        f"({kind} (+ (* {a} Y_0) (* Y_1 {b})) (- {c} Y_0))",
        lambda y: bool(compare(a * y[0] + b * y[1], c - y[0])),
    )


@settings(max_examples=100, deadline=None)
@given(conditions())
def test_and_and_or_mean_what_they_say(stated: tuple[str, Holds]) -> None:
    text, holds = stated
    values = list(itertools.product(range(-3, 4), repeat=2))
    try:
        boxes = parse_vnnlib(f"{BOX}(assert {text})").boxes
    except PropertyError:
        # A contradiction: refused as such.
        assert not any(holds(outputs) for outputs in values)
        return
    for outputs in values:
        found = any(box.is_unsafe([Fraction(y) for y in outputs]) for box in boxes)
        assert found == holds(outputs)


def test_decimals_are_exact() -> None:
    for text in ("0.1", "-1e-3", ".5", "5.", "+2.50", "1e400", "0.30000000000000004"):
        assert numeral(text) == Fraction(text)
    assert [numeral(text) for text in ("", ".", "nan", "inf", "1e", "0x1", "--1", "1_0")] == [
        None
    ] * 8


def test_a_disjunction_of_boxes_is_one_box_each() -> None:
    text = (
        f"{ONE}(assert (or (and (>= X_0 0) (<= X_0 1) (>= Y_0 2))"
        "(and (>= X_0 3) (<= X_0 4) (<= Y_0 Y_1)) (and (<= X_0 1.0) (>= X_0 0e0) (<= Y_1 5))))"
    )
    read = parse_vnnlib(text)
    assert [(int(box.lower[0]), int(box.upper[0]), len(box.unsafe)) for box in read.boxes] == [
        (0, 1, 2),
        (3, 4, 1),
    ]


def test_a_tensor_of_version_2_is_its_elements_in_order() -> None:
    read = parse_vnnlib(
        "(vnnlib-version <2.0>) (declare-network n (declare-input im float32 [1, 2,2])"
        "(declare-output Y Real []))"
        + "".join(
            f"(assert (>= im [0,{i},{j}] {2 * i + j}))(assert (<= im[0,{i},{j}] 9))"
            for i in range(2)
            for j in range(2)
        )
        + "(assert (== Y 1))"
    )
    assert [int(value) for value in read.boxes[0].lower] == [0, 1, 2, 3]
    assert len(read.boxes[0].unsafe[0]) == 2


HOSTILE = {
    "deep nesting": ("(assert " + "(and " * 10_000 + ")" * 10_000 + ")", "property_too_large"),
    "open": (BOX + "(assert (<= Y_0 1)", "invalid_vnnlib"),
    "closed": (BOX + ")", "invalid_vnnlib"),
    "bare word": ("hello", "invalid_vnnlib"),
    "empty": ("", "invalid_vnnlib"),
    "empty command": ("()", "unsupported_vnnlib"),
    "nothing asserted": (ONE, "invalid_vnnlib"),
    "huge exponent": (BOX + "(assert (<= Y_0 1e999999))", "property_too_large"),
    "huge exponent below": (BOX + "(assert (<= Y_0 1e-999999999999999999))", "property_too_large"),
    "many digits": (BOX + f"(assert (<= Y_0 {'9' * 999}))", "property_too_large"),
    "long word": (BOX + f"(assert (<= Y_0 {'9' * 9999}))", "property_too_large"),
    "product of large numbers": (
        BOX + f"(assert (<= (* {'1e400 ' * 40} Y_0) 1))",
        "property_too_large",
    ),
    "not a number": (BOX + "(assert (<= Y_0 nan))", "invalid_vnnlib"),
    "infinity": (BOX + "(assert (<= Y_0 inf))", "invalid_vnnlib"),
    "strict": (BOX + "(assert (< Y_0 1))", "unsupported_vnnlib"),
    "negation": (BOX + "(assert (not (<= Y_0 1)))", "unsupported_vnnlib"),
    "unknown function": (BOX + "(assert (<= (sin Y_0) 1))", "unsupported_vnnlib"),
    "unknown command": (BOX + "(push 1)", "unsupported_vnnlib"),
    "undeclared": (BOX + "(assert (<= Y_2 1))", "invalid_vnnlib"),
    "declared twice": (ONE + "(declare-const Y_1 Real)", "invalid_vnnlib"),
    "declared late": ("(declare-const X_1 Real)", "invalid_vnnlib"),
    "other variable": ("(declare-const Z_0 Real)", "unsupported_vnnlib"),
    "integer": ("(declare-const X_0 Int)", "unsupported_vnnlib"),
    "product of variables": (BOX + "(assert (<= (* Y_0 Y_1) 1))", "unsupported_vnnlib"),
    "division by zero": (BOX + "(assert (<= (/ Y_0 0) 1))", "unsupported_vnnlib"),
    "condition as a number": (BOX + "(assert (<= (<= Y_0 1) 1))", "invalid_vnnlib"),
    "number as a condition": (BOX + "(assert (and Y_0))", "invalid_vnnlib"),
    "two conditions": (BOX + "(assert (<= Y_0 1) (<= Y_0 1))", "invalid_vnnlib"),
    "no lower bound": (f"{ONE}(assert (<= X_0 1))(assert (<= Y_0 1))", "unbounded_input"),
    "no upper bound": (f"{ONE}(assert (>= X_0 1))(assert (<= Y_0 1))", "unbounded_input"),
    "empty box": (BOX + "(assert (>= X_0 1.0000000000000000001))", "empty_box"),
    "contradiction": (BOX + "(assert false)", "empty_box"),
    "empty box in one case": (
        BOX + "(assert (or (<= Y_0 1) (and (>= X_0 2) (<= Y_0 1))))",
        "empty_box",
    ),
    "tied inputs and outputs": (BOX + "(assert (<= X_0 Y_0))", "unsupported_vnnlib"),
    "many cases": (
        BOX + "(assert (or (<= Y_0 1) (<= Y_1 1)))" * 20,
        "property_too_large",
    ),
    "strings": (BOX + '(assert "(")', "invalid_vnnlib"),
    "control characters": (BOX + "\0", "invalid_vnnlib"),
    "two networks": (
        "(declare-network a (declare-input X Real [1]) (declare-output Y Real [1]))"
        "(declare-network b (declare-input U Real [1]) (declare-output V Real [1]))",
        "unsupported_vnnlib",
    ),
    "outside the tensor": (
        "(declare-network a (declare-input X Real [2]) (declare-output Y Real [1]))"
        "(assert (<= X[2] 1))",
        "invalid_vnnlib",
    ),
    "other precision": (
        "(declare-network a (declare-input X float64 [2]))",
        "unsupported_vnnlib",
    ),
    "hidden values": (
        "(declare-network a (declare-hidden H Real [2]))",
        "unsupported_vnnlib",
    ),
    "assertions after the end": (BOX + "(check-sat)(assert (<= Y_0 1))", "unsupported_vnnlib"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_meant_is_refused_by_name(name: str) -> None:
    text, code = HOSTILE[name]
    with pytest.raises(PropertyError) as caught:
        parse_vnnlib(text)
    assert caught.value.code == code


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["(", ")", "assert", "and", "or", "<=", "X_0", "Y_0", "1", "-", "[0]", ";", "\n", " "]
        ),
        max_size=40,
    )
)
def test_no_text_does_anything_but_state_a_property_or_be_refused(words: list[str]) -> None:
    for text in (" ".join(words), BOX + "(assert " + " ".join(words) + ")"):
        try:
            read = parse_vnnlib(text)
        except PropertyError:
            continue
        assert read.inputs == 1
        assert all(box.lower <= box.upper for box in read.boxes)
