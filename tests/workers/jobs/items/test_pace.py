"""When a training will be done: by the latest steps of the process that works on it."""

from __future__ import annotations

import pytest

from workers.jobs.items.training_pace import MEMORY_S, Pace


class Clock:
    """Seconds that a test lets pass."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_known_before_a_step_was_timed() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.eta_s(900, 1000) is None
    clock.now += 5.0
    assert pace.eta_s(900, 1000) is None


def test_steps_of_earlier_processes_cost_nothing_and_save_nothing() -> None:
    """Taken up at step 900 of 1,000: the rate is that of the 10 steps since, half a second each."""
    clock = Clock()
    pace = Pace(clock)
    pace.eta_s(900, 1000)
    clock.now += 5.0
    assert pace.eta_s(910, 1000) == pytest.approx(45.0)


def test_time_without_steps_counts() -> None:
    """An epoch's validation is part of what its steps cost."""
    clock = Clock()
    pace = Pace(clock)
    pace.eta_s(0, 100)
    clock.now += 5.0
    pace.eta_s(10, 100)
    clock.now += 5.0
    assert pace.eta_s(10, 100) > 85.0  # type: ignore[operator]


def test_a_rate_that_changed_is_the_rate_soon() -> None:
    """Ten times slower beside a neighbour: within ten per cent of the truth after a few times
    ``MEMORY_S``, and never outside what was seen."""
    clock = Clock()
    pace = Pace(clock)
    done = 0
    for _ in range(100):
        pace.eta_s(done, 10**6)
        clock.now, done = clock.now + 1.0, done + 10
    until = clock.now + 4 * MEMORY_S
    while clock.now < until:
        clock.now, done = clock.now + 1.0, done + 1
        rate = pace.eta_s(done, 10**6) / (10**6 - done)  # type: ignore[operator]
        assert 0.1 <= rate <= 1.0
    assert rate > 0.9


def test_the_end_is_now() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.eta_s(0, 10)
    clock.now += 1.0
    assert pace.eta_s(10, 10) == 0.0
