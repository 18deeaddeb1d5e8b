from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.worker.residency import Residency


def test_rows_are_given_out_once_and_come_back() -> None:
    residency = Residency(2)
    rows = {residency.take("a"), residency.take("b")}
    assert rows == {0, 1}
    assert residency.take("c") is None
    assert residency.free == 0
    residency.give_back("a")
    assert not residency.holds("a")
    assert residency.take("c") in rows
    assert residency.holds("c")


def test_the_least_recently_used_comes_first() -> None:
    residency = Residency(3)
    for key in "abc":
        residency.take(key)
    residency.touch("a")
    assert residency.by_age == ["b", "c", "a"]


@given(st.integers(1, 4), st.lists(st.sampled_from("abcdef"), max_size=40))
def test_no_row_is_held_twice(rows: int, keys: list[str]) -> None:
    residency, held = Residency(rows), dict[str, int]()
    for key in keys:
        if key in held:
            residency.give_back(key)
            del held[key]
        elif (row := residency.take(key)) is not None:
            held[key] = row
        else:
            assert len(held) == rows
        assert len(set(held.values())) == len(held) == rows - residency.free
        assert set(residency.by_age) == set(held)
