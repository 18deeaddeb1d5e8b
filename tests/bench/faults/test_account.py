"""Figures say what the points came to; texts are told apart; a matrix names what it has."""

from __future__ import annotations

import pytest

from bench.faults.account import Account, Verdict, summary
from bench.faults.ledger import Appended, Ledger
from bench.faults.registry import FAULTS, chosen
from bench.faults.scenarios.damage import flipped, truncated
from bench.faults.texts import numbered_text


def appended(position: int) -> Appended:
    return Appended(f"op-{position}", "text", "memory", 5, position)


def test_a_fault_passes_when_every_point_does() -> None:
    account = Account("one")
    assert not account.clean
    account.settle("first", Verdict(), Verdict())
    account.check("second", True, "never said")
    assert account.clean
    account.check("third", False, "said")
    assert not account.clean
    assert (account.passed, account.failed, account.complaints) == (["first", "second"], ["third"], ["third: said"])


def test_one_that_broke_off_has_not_passed() -> None:
    account = Account("one")
    account.settle("first", Verdict())
    account.broke("the server did not start")
    assert not account.clean


def test_the_summary_adds_up() -> None:
    good, bad = Account("good"), Account("bad")
    good.settle("point", Verdict())
    bad.settle("point", Verdict(lost=2, wrong=1), Verdict(twice=1))
    assert summary([good, bad]) == {
        "faults": 2,
        "passed": 1,
        "acknowledged_lost": 2,
        "applied_twice": 1,
        "wrong_continuations": 1,
    }


def test_a_ledger_is_in_the_order_of_the_session_and_can_be_rewound() -> None:
    ledger = Ledger([appended(20), appended(10), appended(30)])
    assert [entry.position for entry in ledger.in_order] == [10, 20, 30]
    assert ledger.position == 30
    assert ledger.rewind(20) == [appended(30)]
    assert ledger.position == 20
    assert Ledger().position == 0


def test_no_two_texts_are_alike() -> None:
    texts = {numbered_text(name, number, 5) for name in ("ada", "bob") for number in range(50)}
    assert len(texts) == 100
    assert numbered_text("ada", 1, 5) == numbered_text("ada", 1, 5)


def test_damage_damages() -> None:
    content = bytes(100)
    assert sum(flipped(content, 17)) == 1 << 1
    assert len(flipped(content, 99)) == 100
    assert truncated(content, 40) == bytes(40)


def test_faults_are_found_by_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert chosen(None, quick=False) == list(FAULTS)
    assert 0 < len(chosen(None, quick=True)) < len(FAULTS)
    assert [fault.name for fault in chosen("12s", quick=True)] == ["holder-stalled-12s"]
    with pytest.raises(ValueError, match="worker-killed-embedded"):
        chosen("volcano", quick=False)
