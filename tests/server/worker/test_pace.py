from __future__ import annotations

import pytest

from server.worker.pace import Pace


def steps(pace: Pace, count: int, decoding: int, alone: float, token: float, most: int = 512) -> list[int]:
    """Steps of a machine that takes `alone` seconds to decode and `token` seconds to read one. What was read in each."""
    read = []
    for _ in range(count):
        read.append(pace.budget(decoding, most))
        pace.note(decoding, read[-1], alone + token * read[-1])
    return read


@pytest.mark.parametrize(("alone", "token", "expected"), [(0.02, 0.001, 20), (0.1, 0.0005, 200), (0.02, 0.01, 8)])
def test_a_step_takes_at_most_about_twice_as_long_as_without_reading(alone: float, token: float, expected: int) -> None:
    pace = Pace()
    steps(pace, 40, 8, alone, token)
    settled = steps(pace, 33, 8, alone, token)
    assert 0 in settled, "now and then one step shows how long it takes without"
    assert max(settled) == pytest.approx(expected, abs=1)
    assert sorted(settled)[1] == pytest.approx(expected, abs=1)


def test_the_limit_is_kept() -> None:
    pace = Pace()
    assert max(steps(pace, 100, 8, 1.0, 0.001, most=30)) == 30


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    pace = Pace()
    steps(pace, 100, 8, 0.02, 0.0005)
    slower = steps(pace, 200, 8, 0.02, 0.005)
    assert slower[-1] == pytest.approx(8, abs=1)


def test_other_numbers_of_sessions_go_by_the_nearest_that_is_known() -> None:
    pace = Pace()
    steps(pace, 100, 8, 0.04, 0.001)
    assert pace.budget(7, 512) == pace.budget(8, 512)
    pace.note(1, 0, 0.01)
    assert pace.budget(2, 512) < pace.budget(7, 512)


def test_steps_without_generations_say_nothing() -> None:
    pace = Pace()
    pace.note(0, 512, 3.0)
    assert pace.budget(4, 512) == 64
