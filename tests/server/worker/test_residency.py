from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.pairs import Pair
from server.worker.residency import TURN_SECONDS, Holder, Queued, Residency, in_turn, leavers

ONE, OTHER = Pair("m", "window"), Pair("m", "slots")


def test_rows_are_given_out_once_and_come_back() -> None:
    residency = Residency(2)
    rows = {residency.take("a", ONE), residency.take("b", ONE)}
    assert rows == {0, 1}
    assert residency.take("c", ONE) is None
    assert residency.free(ONE) == 0
    residency.give_back("a")
    assert not residency.holds("a")
    assert residency.take("c", ONE) in rows
    assert residency.holds("c")


def test_each_pair_has_rows_of_its_own() -> None:
    residency = Residency(1)
    assert (residency.take("a", ONE), residency.take("b", OTHER)) == (0, 0)
    assert residency.take("c", OTHER) is None
    residency.give_back("a")
    assert (residency.free(ONE), residency.free(OTHER)) == (1, 0)
    assert residency.take("c", OTHER) is None


def test_the_least_recently_used_comes_first() -> None:
    residency = Residency(3)
    for key in "abc":
        residency.take(key, ONE)
    residency.touch("a")
    assert residency.by_age == ["b", "c", "a"]


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from((ONE, OTHER))), max_size=40))
def test_no_row_is_held_twice(rows: int, steps: list[tuple[str, Pair]]) -> None:
    residency, held = Residency(rows), dict[str, tuple[Pair, int]]()
    for key, pair in steps:
        in_use = sum(other == pair for other, _ in held.values())
        if key in held:
            residency.give_back(key)
            del held[key]
        elif (row := residency.take(key, pair)) is not None:
            held[key] = (pair, row)
        else:
            assert in_use == rows
        for each in (ONE, OTHER):
            mine = [row for other, row in held.values() if other == each]
            assert len(set(mine)) == len(mine) == rows - residency.free(each)
        assert set(residency.by_age) == set(held)


def holder(key: str, tenant: str = "t", *, clean: bool = False, since: float | None = None, pair: Pair = ONE) -> Holder:
    return Holder(key, tenant, pair, clean, since)


NOW = 100.0


def test_those_without_work_leave_first_clean_ones_before_others() -> None:
    there = [holder("reads", since=0.0), holder("older"), holder("newer"), holder("clean", clean=True)]
    assert leavers({ONE: 1}, there, NOW) == ["clean"]
    assert leavers({ONE: 2}, there, NOW) == ["clean", "older"]
    assert leavers({ONE: 9}, there, NOW) == ["clean", "older", "newer", "reads"]
    assert leavers({OTHER: 1, ONE: 0}, there, NOW) == []
    assert leavers({ONE: -1}, there, NOW) == []


def test_who_reads_keeps_its_row_for_a_turn() -> None:
    there = [holder("new", since=NOW - TURN_SECONDS / 2), holder("old", since=NOW - TURN_SECONDS)]
    assert leavers({ONE: 2}, there, NOW) == ["old"]


def test_the_tenant_with_the_most_rows_gives_them() -> None:
    there = [holder("only", "one", since=1.0), holder("b", "many", since=3.0), holder("a", "many", since=2.0)]
    assert leavers({ONE: 1}, there, NOW) == ["a"]
    assert leavers({ONE: 2}, there, NOW) == ["a", "only"], "by then both have one"


def test_rows_are_of_one_pair() -> None:
    there = [holder("one", since=1.0), holder("other", since=2.0, pair=OTHER)]
    assert leavers({OTHER: 1}, there, NOW) == ["other"]


def test_rows_go_to_the_tenants_with_the_fewest_turn_by_turn() -> None:
    many = [Queued(f"many {number}", "many", float(number), 5.0) for number in range(3)]
    queue = [*reversed(many), Queued("one", "one", 9.0, 7.0), Queued("other", "other", 9.0, 6.0)]
    assert in_turn(queue, {}) == ["many 0", "other", "one", "many 1", "many 2"]
    assert in_turn(queue, {"many": 2}) == ["other", "one", "many 0", "many 1", "many 2"]
