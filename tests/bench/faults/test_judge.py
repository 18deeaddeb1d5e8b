"""The judge finds what is lost, doubled or changed, and nothing else."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from bench.faults.account import Verdict
from bench.faults.author import Author, Pace, StuckError
from bench.faults.hearing import Lost
from bench.faults.judge import Judge
from bench.faults.ledger import Appended, Ledger
from bench.faults.wire import Refused, Wire
from tests.bench.faults.conftest import FakeServer

PACE = Pace(between=0, retry=0.01, stuck=1.0)


@pytest.fixture
async def author(fake: FakeServer) -> AsyncIterator[Author]:
    async with Wire(fake) as wire:
        session_id = await wire.create()
    async with Author("ada", session_id, Ledger(), [fake], random.Random(3), pace=PACE) as author:
        yield author


async def judged(author: Author, fake: FakeServer, undisturbed: FakeServer) -> Verdict:
    return await Judge(undisturbed, random.Random(1)).judge([fake], author.session_id, author.ledger)


async def write(author: Author, count: int) -> None:
    for number in range(count):
        await author.append(number)


async def test_an_honest_server_is_found_clean(author: Author, fake: FakeServer, undisturbed: FakeServer) -> None:
    await write(author, 8)
    verdict = await judged(author, fake, undisturbed)
    assert verdict.clean, verdict
    assert not undisturbed.sessions


async def test_refused_appends_are_sent_again_and_counted_once(
    author: Author, fake: FakeServer, undisturbed: FakeServer
) -> None:
    fake.refuse_next = 3
    await write(author, 2)
    assert [refusal.code for refusal in author.refusals] == ["store_unavailable"] * 3
    assert len(author.ledger.entries) == 2
    assert (await judged(author, fake, undisturbed)).clean


async def test_an_author_does_not_try_for_ever(author: Author, fake: FakeServer) -> None:
    fake.refuse_next = 10**6
    with pytest.raises(StuckError, match="ada-0"):
        await author.append(0)


async def test_a_lost_end_is_counted(author: Author, fake: FakeServer, undisturbed: FakeServer) -> None:
    await write(author, 6)
    last = author.ledger.entries[-1]
    assert isinstance(last, Appended)
    fake.sessions[author.session_id] = fake.sessions[author.session_id][: -last.tokens]
    verdict = await judged(author, fake, undisturbed)
    assert (verdict.lost, verdict.wrong) == (1, 1)
    assert not verdict.clean


async def test_a_gap_in_the_middle_is_counted_once(author: Author, fake: FakeServer, undisturbed: FakeServer) -> None:
    await write(author, 3)
    held = fake.sessions[author.session_id]
    fake.sessions[author.session_id] = held[: -(author.ledger.position // 3)]
    for number in range(3, 6):
        await author.append(number)
    verdict = await judged(author, fake, undisturbed)
    assert (verdict.lost, verdict.twice, verdict.wrong) == (1, 0, 1)


async def test_one_applied_twice_is_counted_once(author: Author, fake: FakeServer, undisturbed: FakeServer) -> None:
    await write(author, 3)
    last = author.ledger.entries[-1]
    assert isinstance(last, Appended)
    fake.sessions[author.session_id] += last.text
    for number in range(3, 6):
        await author.append(number)
    verdict = await judged(author, fake, undisturbed)
    assert (verdict.lost, verdict.twice, verdict.wrong) == (0, 1, 1)


async def test_another_past_of_the_same_length_is_seen(
    author: Author, fake: FakeServer, undisturbed: FakeServer
) -> None:
    await write(author, 5)
    fake.sessions[author.session_id] = fake.sessions[author.session_id].replace("ada 1", "ada 9")
    verdict = await judged(author, fake, undisturbed)
    assert (verdict.lost, verdict.twice, verdict.wrong) == (0, 0, 1)


async def test_forgotten_operation_ids_are_seen(author: Author, fake: FakeServer, undisturbed: FakeServer) -> None:
    await write(author, 3)
    fake.operations.clear()
    verdict = await judged(author, fake, undisturbed)
    assert verdict.twice == 3


async def test_a_session_that_is_gone_is_lost(author: Author, fake: FakeServer) -> None:
    fake.gone = True
    with pytest.raises(Lost, match="404"):
        await author.append(0)


async def test_what_no_retry_mends_is_not_tried_again(author: Author, fake: FakeServer) -> None:
    fake.sessions.clear()
    with pytest.raises(Refused, match="500"):
        await author.append(0)
    assert fake.answers == 0
