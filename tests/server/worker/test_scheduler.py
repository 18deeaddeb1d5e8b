from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from server.worker.scheduler import Candidate, Limits, plan
from server.worker.shares import Shares


def nothing(_tenant: str) -> float:
    return 0.0


limits_of = st.builds(
    Limits,
    max_batch=st.integers(1, 6),
    prefill_tokens=st.integers(1, 64),
    prefill_tokens_beside=st.integers(1, 16).map(lambda most: lambda decoding: most),
)
work = st.tuples(st.sampled_from("tu"), st.integers(0, 200), st.booleans(), st.integers(0, 9)).filter(
    lambda made: made[1] or made[2]
)
candidates_of = st.lists(work, max_size=12).map(
    lambda made: [Candidate(f"s{number}", *each) for number, each in enumerate(made)]
)


@given(candidates_of, limits_of)
def test_a_step_keeps_to_its_limits(candidates: list[Candidate], limits: Limits) -> None:
    batch = plan(candidates, limits, nothing)
    if not candidates:
        assert batch is None
        return
    assert batch is not None
    by_key = {candidate.key: candidate for candidate in candidates}
    keys = [*batch.decode, *(key for key, _ in batch.prefill)]
    assert len(keys) == len(set(keys)) > 0
    assert len(batch.decode) <= limits.max_batch
    assert all(by_key[key].pending <= 1 for key in batch.decode)
    assert all(by_key[key].generating or by_key[key].pending == 1 for key in batch.decode)
    assert all(1 <= count <= by_key[key].pending for key, count in batch.prefill)
    streaming = any(by_key[key].generating for key in batch.decode)
    budget = limits.prefill_tokens_beside(len(batch.decode)) if streaming else limits.prefill_tokens
    assert sum(count for _, count in batch.prefill) <= budget


@given(candidates_of, limits_of)
def test_nothing_is_left_undone_while_there_is_room(candidates: list[Candidate], limits: Limits) -> None:
    batch = plan(candidates, limits, nothing)
    if batch is None:
        return
    ready = [c for c in candidates if c.pending == 1 or (c.generating and not c.pending)]
    assert len(batch.decode) == min(limits.max_batch, len(ready))
    reading = sum(c.pending for c in candidates if c.pending > 1)
    generating = {c.key for c in candidates if c.generating} & set(batch.decode)
    budget = limits.prefill_tokens_beside(len(batch.decode)) if generating else limits.prefill_tokens
    assert sum(count for _, count in batch.prefill) == min(budget, reading)


@given(candidates_of, limits_of)
def test_nobody_starves(candidates: list[Candidate], limits: Limits) -> None:
    """Whatever the others have, everybody of one tenant is served again within as many steps as there are sessions."""
    waiting = {candidate.key: replace(candidate, tenant="t") for candidate in candidates}
    last_served = dict.fromkeys(waiting, 10)
    for step in range(11, 11 + 3 * len(candidates)):
        batch = plan(waiting.values(), limits, nothing)
        assert batch is not None
        for key in [*batch.decode, *(key for key, _ in batch.prefill)]:
            assert step - last_served[key] <= len(candidates)
            last_served[key] = step
            # Decoding goes on for ever, and so does reading: more text has come in meanwhile.
            waiting[key] = replace(waiting[key], served=step)
    assert all(11 + 3 * len(candidates) - served <= len(candidates) for served in last_served.values())


def test_the_one_served_longest_ago_reads_first() -> None:
    limits = Limits(max_batch=4, prefill_tokens=10, prefill_tokens_beside=lambda decoding: 5)
    batch = plan([Candidate("new", "t", 8, False, 3), Candidate("old", "t", 7, False, 1)], limits, nothing)
    assert batch is not None
    assert batch.prefill == (("old", 7), ("new", 3))


def test_streams_make_reading_modest() -> None:
    limits = Limits(max_batch=4, prefill_tokens=100, prefill_tokens_beside=lambda decoding: 5)
    batch = plan([Candidate("reads", "t", 80, False, 0), Candidate("speaks", "t", 1, True, 0)], limits, nothing)
    assert batch is not None
    assert batch.decode == ("speaks",)
    assert batch.prefill == (("reads", 5),)


def test_the_tenant_who_had_least_reads_first() -> None:
    limits = Limits(max_batch=4, prefill_tokens=10, prefill_tokens_beside=lambda decoding: 5)
    many = [Candidate(f"many {number}", "many", 8, False, number) for number in range(3)]
    batch = plan([*many, Candidate("one", "one", 90, False, 9)], limits, {"many": 3.0, "one": 2.0}.__getitem__)
    assert batch is not None
    assert batch.prefill == (("one", 10),)


def test_a_full_batch_is_shared_by_tenants() -> None:
    limits = Limits(max_batch=2, prefill_tokens=10, prefill_tokens_beside=lambda decoding: 5)
    many = [Candidate(f"many {number}", "many", 1, True, 0) for number in range(8)]
    batch = plan([*many, Candidate("one", "one", 1, True, 5)], limits, nothing)
    assert batch is not None
    assert batch.decode == ("many 0", "one")


@given(st.integers(1, 9), st.integers(1, 9), st.integers(20, 60))
def test_tenants_who_always_have_work_read_the_same(ones: int, others: int, steps: int) -> None:
    limits = Limits(max_batch=4, prefill_tokens=64, prefill_tokens_beside=lambda decoding: 5)
    shares, read = Shares(), Counter[str]()
    served = {(tenant, number): 0 for tenant, count in (("one", ones), ("other", others)) for number in range(count)}
    for step in range(1, steps):
        shares.present(("one", "other"))
        waiting = [Candidate(f"{t} {n}", t, 500, False, served[t, n]) for t, n in served]
        batch = plan(waiting, limits, shares.had)
        assert batch is not None
        for key, count in batch.prefill:
            tenant, number = key.split()
            served[tenant, int(number)] = step
            shares.charge(tenant, count)
            read[tenant] += count
    assert abs(read["one"] - read["other"]) <= 64
