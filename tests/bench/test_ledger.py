"""The demo's accounting finds what is lost and what is applied twice."""

from __future__ import annotations

from bench.demo.ledger import Ledger


def test_agreeing_answers_leave_nothing_to_complain_of() -> None:
    ledger = Ledger()
    ledger.acknowledge(10, 10)
    ledger.acknowledge(0, 10)
    assert ledger.after_crash(10, most_under_way=5) == 0
    ledger.audit(10)
    ledger.compare(10)
    assert (ledger.position, ledger.lost, ledger.twice) == (10, 0, 0)


def test_what_is_missing_after_a_crash_is_lost_and_counted_once() -> None:
    ledger = Ledger(position=10)
    assert ledger.after_crash(7, most_under_way=100) == 0
    ledger.acknowledge(5, 12)
    assert (ledger.lost, ledger.twice) == (3, 0)


def test_part_of_an_append_in_doubt_may_be_there() -> None:
    ledger = Ledger(position=10)
    assert ledger.after_crash(14, most_under_way=8) == 4
    ledger.acknowledge(8, 18)
    assert (ledger.position, ledger.lost, ledger.twice) == (18, 0, 0)


def test_an_append_in_doubt_that_is_applied_again_is_found() -> None:
    ledger = Ledger(position=10)
    assert ledger.after_crash(14, most_under_way=8) == 4
    ledger.acknowledge(8, 22)
    assert (ledger.lost, ledger.twice) == (0, 4)


def test_more_than_was_under_way_cannot_be_right() -> None:
    ledger = Ledger(position=10)
    assert ledger.after_crash(30, most_under_way=8) == 0
    assert (ledger.lost, ledger.twice) == (0, 20)


def test_a_session_without_a_crash_is_a_second_witness() -> None:
    short, long = Ledger(position=90, lost=4), Ledger(position=103)
    short.compare(100)
    long.compare(100)
    assert (short.lost, short.twice) == (10, 0)
    assert (long.lost, long.twice) == (0, 3)
