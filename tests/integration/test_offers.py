"""One server, every memory: sessions of each side by side, through streams, a kill, a resumption, and on to other servers.

Two servers offer the same pairs in opposite order: one is killed, the other is not. What they say of a session must be the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from palimpsest import Client, GenerationCompleted, GenerationDelta, InvalidRequest, PalimpsestError

from bench.server_process import ServerProcess
from models.load import LoadedModel, Offer, load_offers
from models.memory import MECHANISMS
from models.state import spec_nbytes
from models.weights.checkpoint import load_checkpoint
from tests.integration.conftest import server_in
from tests.integration.continuing import assert_alike
from tests.integration.offers import every_memory, offer_settings
from tests.integration.stored import assert_same_state, saved_state
from tests.integration.texts import plain_text

ANSWER = 80
"""Tokens of a generation."""
KEY = "hmac:" + "A" * 43 + "="

memories = pytest.mark.parametrize("memory", sorted(MECHANISMS))


@pytest.fixture(scope="module")
def offers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Offer]:
    folder = tmp_path_factory.mktemp("adapters")
    return every_memory(tiny_model, load_checkpoint(str(tiny_model), dtype=torch.float32), folder)


@pytest.fixture(scope="module")
def loaded(offers: list[Offer]) -> Mapping[tuple[str, str], LoadedModel]:
    """What the servers have loaded."""
    return load_offers(offers, dtype=torch.float32)


@pytest.fixture(scope="module")
def common(server_settings: dict[str, object]) -> dict[str, object]:
    kept = {name: server_settings[name] for name in ("dtype", "threads", "drain_seconds")}
    return {**kept, "snapshot_tokens": 16, "idle_seconds": 0.1, "export_keys": f'{{"both": "{KEY}"}}'}


@pytest.fixture(scope="module")
def victim(
    offers: list[Offer], common: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with server_in(tmp_path_factory.mktemp("victim"), {**common, **offer_settings(offers)}) as process:
        yield process


@pytest.fixture(scope="module")
def spared(
    offers: list[Offer], common: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with server_in(tmp_path_factory.mktemp("spared"), {**common, **offer_settings(offers[::-1])}) as process:
        yield process


@dataclass
class Story:
    """A session of each server with the same past, and what the killed one's stream had told."""

    session_id: str
    twin_id: str
    text: str
    """The answer of the one that was spared."""
    seen: str = ""
    generation_id: str = ""
    ended: bool = False


def begin(memory: str, victim: Client, spared: Client) -> Story:
    """Two sessions with a text after which the model goes on for long; the spared one's has."""
    for seed in range(100):
        text = plain_text(seed, 60)
        twin = spared.sessions.create(memory=memory)
        twin.append(text)
        answer = twin.generate(max_tokens=ANSWER, temperature=0)
        if answer.usage.completion_tokens == ANSWER and answer.finish_reason == "length":
            session = victim.sessions.create(memory=memory)
            session.append(text)
            return Story(session.id, twin.id, answer.text)
    raise AssertionError(f"with {memory} the tiny model has become too curt for this test")


def listen(client: Client, story: Story, begun: threading.Semaphore) -> None:
    """Take the stream's deltas until the server is gone."""
    with client.sessions.get(story.session_id).stream(max_tokens=ANSWER, temperature=0) as events:
        try:
            for event in events:
                if isinstance(event, GenerationDelta):
                    story.seen += event.text
                    begun.release()
                story.ended = story.ended or isinstance(event, GenerationCompleted)
        except PalimpsestError:
            pass
        story.generation_id = events.generation_id or ""


@pytest.fixture(scope="module")
def stories(victim: ServerProcess, spared: ServerProcess) -> dict[str, Story]:
    """Streams of all memories at once, and a kill amid them."""
    with victim.client() as client, spared.client() as other:
        told = {memory: begin(memory, client, other) for memory in MECHANISMS}
        begun = {memory: threading.Semaphore(0) for memory in told}
        threads = [
            threading.Thread(target=listen, args=(client, story, begun[memory])) for memory, story in told.items()
        ]
        for thread in threads:
            thread.start()
        heard = [semaphore.acquire(timeout=30) for semaphore in begun.values() for _ in range(3)]
        victim.kill()
        for thread in threads:
            thread.join()
    assert all(heard)
    victim.start()
    return told


@memories
def test_every_memory_is_listed_with_its_size(
    memory: str, victim: ServerProcess, spared: ServerProcess, loaded: Mapping[tuple[str, str], LoadedModel]
) -> None:
    for server in (victim, spared):
        with server.client() as client:
            [model] = client.models()
            sizes = {offered.memory: offered.state_bytes for offered in model.memories}
            expected = spec_nbytes(loaded[model.id, memory].kind.spec)
            assert sizes[memory] == expected
            assert client.sessions.create(memory=memory).info.state_bytes == expected
            assert client.sessions.create().info.memory == model.memory == model.memories[0].memory


@memories
def test_a_killed_stream_goes_on_as_if_nothing_had_been(
    memory: str,
    stories: dict[str, Story],
    victim: ServerProcess,
    spared: ServerProcess,
    loaded: Mapping[tuple[str, str], LoadedModel],
) -> None:
    story = stories[memory]
    assert not story.ended
    assert story.text.startswith(story.seen)
    with victim.client() as client, spared.client() as other:
        session, twin = client.sessions.get(story.session_id), other.sessions.get(story.twin_id)
        assert session.info.memory == twin.info.memory == session.memory().memory == memory
        with client.resume(story.generation_id) as events:
            completed = list(events)[-1]
        assert isinstance(completed, GenerationCompleted)
        assert completed.generation.text == story.text
        assert_alike(session, twin)
        kind = loaded[session.info.model, memory].kind
        assert_same_state(saved_state(victim.data_dir, session.id, kind), saved_state(spared.data_dir, twin.id, kind))


@memories
def test_every_way_in_and_out_leads_to_the_same_session(
    memory: str, victim: ServerProcess, spared: ServerProcess
) -> None:
    text = plain_text(7, 40)
    with victim.client() as client, spared.client() as other:
        session, twin = client.sessions.create(memory=memory, op_id=memory), other.sessions.create(memory=memory)
        assert client.sessions.create(memory=memory, op_id=memory).id == session.id
        session.append_stream(iter([text[:50], text[50:]]), wait="journal")
        twin.append(text)
        expected = twin.generate("kelo", max_tokens=10, temperature=0, remember=False)
        with session.connect() as socket:
            over_socket = socket.generate("kelo", max_tokens=10, temperature=0, remember=False)
            assert "".join(delta.text for delta in over_socket) == expected.text
        imported = other.import_session(session.export())
        assert imported.info.memory == memory
        for one in (session, session.fork(), imported):
            assert_alike(one, twin, 10)


def test_a_session_that_is_not_served_waits_for_one_that_serves_it(
    victim: ServerProcess,
    spared: ServerProcess,
    stories: dict[str, Story],
    common: dict[str, object],
    offers: list[Offer],
) -> None:
    served, other = offers[0].memory, offers[-1].memory
    with victim.client() as client, spared.client() as uninterrupted:
        kept, doomed = (client.sessions.create(memory=other).id for _ in range(2))
        twin = uninterrupted.sessions.create(memory=other)
        for session in (client.sessions.get(kept), twin):
            session.append(plain_text(8, 60))
    victim.stop()
    lacking = ServerProcess(
        {**common, **offer_settings(offers[:1]), "data_dir": victim.data_dir}, victim.log, alone=True
    )
    with lacking, lacking.client() as client:
        assert client.sessions.get(stories[served].session_id).generate(max_tokens=3).usage.completion_tokens == 3
        session = client.sessions.get(kept)
        assert (session.info.memory, session.info.state_bytes) == (other, None)
        for refused in (lambda: session.append("x"), lambda: session.generate(), session.fork, session.export):
            with pytest.raises(InvalidRequest, match=f"{served} of ") as raised:
                refused()
            assert (raised.value.status, raised.value.code) == (400, "model_not_served")
        client.sessions.delete(doomed)
    victim.start()
    with victim.client() as client, spared.client() as uninterrupted:
        assert_alike(client.sessions.get(kept), uninterrupted.sessions.get(twin.id))
        assert doomed not in [session.id for session in client.sessions.all()]
