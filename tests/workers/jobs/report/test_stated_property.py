"""A property in words: what is read there is what the file says."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.schemas.report import StatedBox
from service.reports.words.stated_property import stated_property
from workers.jobs.report.stated_property import stated_boxes
from workers.verification.properties.lowering import Box, LinearLimit, Property
from workers.verification.properties.text.vnnlib import parse_vnnlib

small = st.integers(-3, 3).map(Fraction)
#: Quotients of two of them have few digits, so that what is written is exact.
factors = st.sampled_from([-4, -2, -1, 1, 2, 4]).map(Fraction)
limits = st.builds(
    lambda factors, limit: LinearLimit(tuple(sorted(factors.items())), limit),
    st.dictionaries(st.integers(0, 2), factors, min_size=1),
    small,
)
cases = st.lists(st.lists(limits, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)


def of(*boxes: Box, outputs: int = 3) -> Property:
    return Property(len(boxes[0].lower), outputs, boxes)


def one_box(*unsafe: tuple[LinearLimit, ...]) -> Property:
    return of(Box((Fraction(0),), (Fraction(1),), unsafe))


@settings(max_examples=200)
@given(cases, st.tuples(small, small, small))
def test_a_written_condition_is_true_where_the_outputs_are_unsafe(
    unsafe: list[tuple[LinearLimit, ...]], outputs: tuple[Fraction, ...]
) -> None:
    box = one_box(*unsafe).boxes[0]
    written = " or ".join(f"({case})" for case in stated_boxes(one_box(*unsafe))[0]["unsafe"])
    read = re.sub(r"(?<!_)(\d+(?:\.\d+)?)", r"Fraction('\1')", written)
    read = re.sub(r"\) Y_", ") * Y_", read)
    names = {f"Y_{place}": value for place, value in enumerate(outputs)}
    assert eval(read, {"Fraction": Fraction, **names}) == box.is_unsafe(outputs)


def test_a_comparison_of_two_outputs_is_read_as_one() -> None:
    text = "(declare-const X_0 Real)" + "".join(f"(declare-const Y_{i} Real)" for i in range(3))
    text += "(assert (and (>= X_0 0.1) (<= X_0 0.679857769)))"
    robust = parse_vnnlib(text + "(assert (or (>= Y_0 Y_1) (>= Y_2 Y_1)))")
    (box,) = stated_boxes(robust)
    assert box["intervals"] == ["0.1 <= X_0 <= 0.679857769"]
    assert box["unsafe"] == ["Y_1 <= Y_0", "Y_1 <= Y_2"]
    several = parse_vnnlib(text + "(assert (and (>= Y_0 Y_1) (>= Y_0 (+ (* 2 Y_2) -1))))")
    assert stated_boxes(several)[0]["unsafe"] == ["Y_0 >= Y_1 and Y_0 >= 2 Y_2 - 1"]


def test_hundreds_of_inputs_are_the_first_and_the_widest_and_a_count() -> None:
    lower = [Fraction(0)] * 300
    upper = [Fraction(1, 10)] * 300
    upper[100], upper[299], upper[7] = Fraction(1), Fraction(2), Fraction(0)
    unsafe = ((LinearLimit(((0, Fraction(1)),), Fraction(0)),),)
    stated = stated_boxes(of(Box(tuple(lower), tuple(upper), unsafe)))
    named = [re.search(r"X_\d+", text)[0] for text in stated[0]["intervals"]]  # type: ignore[index]
    assert named == [f"X_{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 100, 299)]
    assert stated[0]["fixed"] == 1
    shown, more = stated_property(_report(stated, boxes=1))
    assert shown[0].more.startswith("and 290 further inputs")
    assert (shown[0].title, more) == ("", "")


def test_of_many_boxes_the_first_ones_and_that_of_the_counterexample_are_written() -> None:
    unsafe = ((LinearLimit(((0, Fraction(1)),), Fraction(0)),),)
    many = of(*(Box((Fraction(i),), (Fraction(i),), unsafe) for i in range(20)))
    stated = stated_boxes(many, 17)
    assert [box["box"] for box in stated] == [0, 1, 2, 3, 4, 17]
    shown, more = stated_property(_report(stated, boxes=20))
    assert (shown[-1].title, shown[-1].intervals) == ("box 18 of 20", ["X_0 = 17"])
    assert more.startswith("14 further boxes")


def test_numbers_beyond_floats_and_cases_without_limits_are_written() -> None:
    huge = Fraction(10) ** 400
    box = Box((Fraction(0),), (huge,), ((), (LinearLimit(((0, Fraction(1)),), huge),)))
    (stated,) = stated_boxes(of(box))
    assert stated["unsafe"] == ["always, whatever the outputs are", "Y_0 <= about 1e400"]


def _report(stated: list[dict[str, Any]], boxes: int) -> dict[str, Any]:
    checked = [StatedBox.model_validate(box).model_dump() for box in stated]
    return {"property": {"boxes": boxes, "stated": checked}}
