from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.worker.shares import Shares


def test_a_newcomer_begins_with_the_least_of_the_others() -> None:
    shares = Shares()
    shares.present("ab")
    shares.charge("a", 100)
    shares.charge("b", 70)
    shares.present("abc")
    assert (shares.had("a"), shares.had("b"), shares.had("c")) == (100, 70, 70)


def test_who_comes_back_has_neither_credit_nor_less_than_before() -> None:
    shares = Shares()
    shares.present("ab")
    shares.charge("a", 100)
    shares.charge("b", 10)
    shares.present("b")
    shares.charge("b", 20)
    shares.present("ab")
    assert (shares.had("a"), shares.had("b")) == (100, 30), "it had more than the others have by now"
    shares.present("b")
    shares.charge("b", 400)
    shares.present("ab")
    assert (shares.had("a"), shares.had("b")) == (430, 430)


def test_a_pause_of_all_changes_nothing() -> None:
    shares = Shares()
    shares.present("ab")
    shares.charge("a", 100)
    shares.present("")
    shares.present("ab")
    assert (shares.had("a"), shares.had("b")) == (100, 0)


@given(st.lists(st.tuples(st.sets(st.sampled_from("abcd")), st.integers(0, 50)), max_size=30))
def test_nobody_who_is_there_falls_behind_for_good(steps: list[tuple[set[str], int]]) -> None:
    """Whoever had least is charged: then those who are there never lie further apart than one charge, or than they came in."""
    shares, apart = Shares(), 0.0
    for present, cost in steps:
        before = {tenant: shares.had(tenant) for tenant in present}
        shares.present(present)
        assert all(shares.had(tenant) >= had for tenant, had in before.items())
        if not present:
            continue
        had = [shares.had(tenant) for tenant in present]
        apart = max(apart, max(had) - min(had))
        shares.charge(min(sorted(present), key=shares.had), cost)
        had = [shares.had(tenant) for tenant in present]
        assert max(had) - min(had) <= max(apart, cost)
