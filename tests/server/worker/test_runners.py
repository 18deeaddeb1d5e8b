"""Several pairs in one worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.state import MemoryState
from models.transformer import Decoder
from server.errors import InvalidRequest, StateRefused
from server.messages import SamplingParams
from server.pairs import Pair
from server.settings import load
from server.worker.runner import Feed, Runner
from server.worker.runners import LOADING_ERRORS, Runners

SLOTS = {"memory": "slots", "options": {"heads": [[1, 0], [2, 1]], "slots": 8}}
TOKENS = [5 + n % 97 for n in range(90)]


def runners_of(tiny_model: Path, rows: int | None = 2, **settings: object) -> Runners:
    options = {"model": str(tiny_model), "memory": "window", "window": 32, "segment": 16, "resident_sessions": rows}
    return Runners(load(dtype="float32", threads=1, **options, **settings), 0)


@pytest.fixture
def runners(tiny_model: Path) -> Runners:
    runners = runners_of(tiny_model, offers=[SLOTS])
    runners.load()
    return runners


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every slab that is laid out, in order."""
    rows: list[int] = []
    empty_state = Decoder.empty_state

    def counted(decoder: Decoder, batch: int = 1) -> MemoryState:
        rows.append(batch)
        return empty_state(decoder, batch)

    monkeypatch.setattr(Decoder, "empty_state", counted)
    return rows


def pair(runners: Runners, memory: str) -> Pair:
    return Pair(runners.default.offered.model, memory)


def read(runner: Runner, tokens: Sequence[int], row: int = 0) -> bytes:
    runner.restore(row, None)
    runner.run([Feed("s", row, tokens, None)])
    return runner.save(row)[1]


def test_the_pairs_are_described_in_order_with_their_own_sizes(runners: Runners) -> None:
    ready = runners.describe()
    assert ready.kernels == "torch"  # float32
    assert [offer.memory for offer in ready.offers] == ["window", "slots"]
    assert ready.offers[0] == runners.default.offered
    window, slots = (offer.state_bytes for offer in ready.offers)
    assert 0 < window < slots
    assert len(read(runners[pair(runners, "slots")], TOKENS)) >= slots


def test_what_is_followed_by_others_is_not_read_to_the_end(runners: Runners, monkeypatch: pytest.MonkeyPatch) -> None:
    slots, ahead = runners[pair(runners, "slots")], []
    read_through = Decoder.read_through

    def counted(decoder: Decoder, tokens: Tensor, state: MemoryState, count: int) -> MemoryState:
        ahead.append(count)
        return read_through(decoder, tokens, state, count)

    monkeypatch.setattr(Decoder, "read_through", counted)
    tokens = TOKENS * 4
    whole = read(slots, tokens)
    slots.restore(0, None)
    for begin in range(0, len(tokens), 30):
        rest = len(tokens) - begin - 30
        slots.run([Feed("s", 0, tokens[begin : begin + 30], None, rest)])
    assert ahead == list(range(330, 0, -30))
    slots.restore(1, slots.save(0)[1])
    slots.restore(0, whole)
    samples = [
        slots.run([Feed("s", row, TOKENS[:1], slots.voice(SamplingParams(logprobs=3)))])["s"].top for row in range(2)
    ]
    assert [token for token, _ in samples[0]] == [token for token, _ in samples[1]]
    assert [score for _, score in samples[0]] == pytest.approx([score for _, score in samples[1]], abs=1e-3)


def test_sessions_that_read_together_read_what_each_reads_alone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = runners_of(tiny_model, rows=4)
    runners.load()
    runner, params = runners.default, SamplingParams(temperature=0, logprobs=1)
    parts = {"short": TOKENS[:7], "long": TOKENS[:70], "alike": TOKENS[20:27], "reading on": TOKENS[5:40]}
    ahead = {"reading on": 50}
    read = Decoder.run, Decoder.read_through
    batches: list[tuple[int, ...]] = []

    def run(decoder: Decoder, tokens: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        batches.append(tuple(tokens.shape))
        return read[0](decoder, tokens, state)

    def read_through(decoder: Decoder, tokens: Tensor, state: MemoryState, ahead: int) -> MemoryState:
        batches.append((*tokens.shape, ahead))
        return read[1](decoder, tokens, state, ahead)

    def feed(name: str, row: int) -> Feed:
        voice = None if name in ahead else runner.voice(params)
        return Feed(name, row, parts[name], voice, ahead.get(name, 0))

    alone: dict[str, float | None] = {}
    for name in parts:
        runner.restore(0, None)
        alone |= {key: sample.logprob for key, sample in runner.run([feed(name, 0)]).items()}
    for row in range(4):
        runner.restore(row, None)
    monkeypatch.setattr(Decoder, "run", run)
    monkeypatch.setattr(Decoder, "read_through", read_through)
    together = runner.run([feed(name, row) for row, name in enumerate(parts)])
    assert batches == [(4, 7), (2, 28, 35), (1, 35)]
    assert {key: sample.logprob for key, sample in together.items()} == pytest.approx(alone, abs=1e-4)
    assert set(together) == {"short", "long", "alike"}


def test_as_many_rows_as_the_budget_holds_are_laid_out_at_once_for_every_pair(
    tiny_model: Path, laid_out: list[int]
) -> None:
    small = runners_of(tiny_model, offers=[SLOTS])
    small.load()
    assert (small.rows, small.places, small.describe().places) == (2, 4, 4)
    each = sum(offer.state_bytes for offer in small.describe().offers)
    laid_out.clear()
    runners = runners_of(tiny_model, rows=None, offers=[SLOTS], resident_mib=5.5 * each / 2**20)
    runners.load()
    assert (runners.rows, runners.places) == (5, 10)
    assert laid_out == [5, 5]
    few = runners_of(tiny_model, rows=7, offers=[SLOTS], resident_mib=5.5 * each / 2**20)
    few.load()
    assert few.rows == 5


def test_a_budget_without_room_for_one_session_of_each_pair_says_what_it_takes(tiny_model: Path) -> None:
    runners = runners_of(tiny_model, offers=[SLOTS], resident_mib=0.001)
    with pytest.raises(LOADING_ERRORS, match=r"PALIMPSEST_RESIDENT_MIB=0\.001 .* that takes \d+ MiB; give more"):
        runners.load()


def test_a_device_without_room_says_what_to_do(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_decoder: Decoder, batch: int = 1) -> MemoryState:
        raise torch.OutOfMemoryError(f"{batch} rows")

    monkeypatch.setattr(Decoder, "empty_state", full)
    with pytest.raises(LOADING_ERRORS, match=r"cpu has no room for 2 sessions .*lower PALIMPSEST_RESIDENT_MIB"):
        runners_of(tiny_model).load()


def test_a_step_with_several_pairs_does_what_each_alone_does(runners: Runners) -> None:
    both = [runners[pair(runners, memory)] for memory in ("window", "slots")]
    params = SamplingParams(temperature=0)
    alone = {}
    for runner in both:
        read(runner, TOKENS)
        sample = runner.run([Feed("s", 0, TOKENS[:1], runner.voice(params))])["s"]
        alone[runner.offered.pair] = sample.token, runner.save(0)
        read(runner, TOKENS)
    feeds = {r.offered.pair: [Feed(r.offered.memory, 0, TOKENS[:1], r.voice(params))] for r in both}
    samples = runners.run(feeds)
    together = {r.offered.pair: (samples[r.offered.memory].token, r.save(0)) for r in both}
    assert together == alone
    assert runners.run({}) == {}


def test_a_state_is_taken_by_its_own_pair_only(runners: Runners) -> None:
    window, slots = runners.default, runners[pair(runners, "slots")]
    state = read(window, TOKENS)
    with pytest.raises(StateRefused):
        slots.restore(0, state)
    with pytest.raises(InvalidRequest):
        slots.check(len(TOKENS), state, ())
    window.check(len(TOKENS), state, ())
    assert window.restore(1, state) == len(TOKENS)


def test_what_a_memory_holds_is_reported_under_its_name(runners: Runners) -> None:
    for memory in ("window", "slots"):
        runner = runners[pair(runners, memory)]
        read(runner, TOKENS)
        report = runner.inspect(0)
        assert (report.memory, report.state_bytes) == (memory, runner.offered.state_bytes)


def test_other_pairs_are_refused_with_a_list_of_those_there_are(runners: Runners) -> None:
    foreign = Pair("m", "window")
    assert foreign not in runners
    refusal = runners.not_served(foreign)
    for offer in runners.describe().offers:
        assert f"{offer.memory} of {offer.model}" in refusal.message


@pytest.mark.parametrize(
    ("offer", "part"),
    [
        ("elephant", "elephant"),
        ({"memory": "window", "model": "/unheard/of"}, "/unheard/of"),
        ({"memory": "slots", "options": {"trunks": 1}}, "trunks"),
        ({"memory": "slots", "options": {"window": "wide"}}, "window|type"),
    ],
)
def test_pairs_that_cannot_be_served_stop_the_start(tiny_model: Path, offer: object, part: str) -> None:
    with pytest.raises(LOADING_ERRORS, match=part):
        runners_of(tiny_model, offers=[offer]).load()
