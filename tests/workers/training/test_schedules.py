"""Schedules: exact at their points, between their neighbours' values, clamped at both ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.training.schedules import QUARTIC, SHAPES, Schedule

shares = st.floats(0, 1)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    places = sorted(draw(st.lists(shares, min_size=1, max_size=5, unique=True)))
    points = tuple((place, draw(st.floats(1e-3, 1e3))) for place in places)
    return Schedule(points, draw(st.sampled_from(sorted(SHAPES))))


@given(schedules(), st.floats(-1, 2))
def test_a_schedule_never_overshoots(schedule: Schedule, share: float) -> None:
    values = [value for _, value in schedule.points]
    assert min(values) * (1 - 1e-9) <= schedule.at(share) <= max(values) * (1 + 1e-9)


@given(schedules())
def test_a_schedule_goes_through_its_points(schedule: Schedule) -> None:
    for share, value in schedule.points:
        assert schedule.at(share) == pytest.approx(value)


def test_the_published_ramp_of_bcp_stops_at_its_target() -> None:
    ramp = Schedule(((1 / 60, 0.0), (21 / 60, 1.0)))
    assert ramp.at(0.0) == 0.0
    assert ramp.at(11 / 60) == pytest.approx(0.5)
    assert ramp.at(22 / 60) == 1.0  # the paper's code goes on to 1 + 1/121 on CIFAR


def test_a_smooth_rise_begins_like_the_fourth_power_and_goes_on_as_its_tangent() -> None:
    rise = Schedule(((0.2, 0.0), (0.6, 2.0)), "smooth")
    join, step = 0.2 + QUARTIC * 0.4, 1e-6
    assert rise.at(0.2 + QUARTIC * 0.2) == pytest.approx(rise.at(join) / 16)
    before = (rise.at(join) - rise.at(join - step)) / step
    after = (rise.at(0.6) - rise.at(join)) / (0.6 - join)
    assert before == pytest.approx(after, rel=1e-4)
    assert rise.at(0.5) == pytest.approx(2.0 - 0.1 * after)
