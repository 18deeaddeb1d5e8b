"""The demo's acts: read, crash within an append, read on, crash within a generation, ask."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from palimpsest import Client, GenerationDelta, PalimpsestError
from palimpsest.session import SessionHandle
from palimpsest.types import TokenLogprob

from bench.demo.ledger import Ledger
from bench.demo.outcome import Answer, Outcome
from bench.demo.screen import Screen
from bench.demo.story import Story
from bench.server_process import ServerProcess
from models.probes import Needle

SEEN_BEFORE_CRASH = 12
"""Deltas that the client sees before the server is killed within the generation."""
GENERATED = 128
REHEARSED = 40
CHUNK = 997
"""Characters of a streamed body sent at a time; prime, so that chunks and the server's pieces never coincide."""
ANSWER_TOKENS = 12
JOURNALED_WITHIN = 60.0


class DemoError(RuntimeError):
    """The demo could not be played to its end."""


class Play:
    """One session through two crashes. Needs a `server` that is not running, and leaves one running at the end."""

    def __init__(self, server: ServerProcess, story: Story, screen: Screen, outcome: Outcome) -> None:
        self._server, self._story, self._screen, self.outcome = server, story, screen, outcome
        self._ledger = Ledger()
        self._session_id = ""
        self._restarted = False

    def run(self) -> Outcome:
        """All acts. Raises `DemoError`, `ServerFailedError` or an error of the client."""
        with self._serving() as client:
            session = client.sessions.create(metadata={"name": "demo"})
            self._session_id = session.id
            self._read(session, self._story.before, "before")
            self._crash_within_append(client, session)
        with self._serving(again=True) as client:
            session = client.sessions.get(self._session_id)
            self._recover_append(session)
            self._read(session, self._story.after, "after")
            self._compare(client)
            self._crash_within_generation(session)
        with self._serving(again=True) as client:
            session = client.sessions.get(self._session_id)
            self._recover_generation(session)
            self._ask_all(session)
        self.outcome.lost, self.outcome.twice = self._ledger.lost, self._ledger.twice
        return self.outcome

    def _serving(self, *, again: bool = False) -> Client:
        with self._screen.waiting("starts the server again" if again else "starts a server"):
            began = time.monotonic()
            url = self._server.start()
        self._restarted = again
        self._screen.step(f"server ready at {url} after {time.monotonic() - began:.1f} s")
        # Repeats are part of what is shown, so the client does none of its own.
        return Client(url, retries=0)

    def _read(self, session: SessionHandle, pieces: Sequence[str], part: str) -> None:
        """Append piece by piece, each under an operation id that a second attempt would use again."""
        with self._screen.reading(sum(map(len, pieces)), f"reads the text, {part} the crash") as progress:
            for index, piece in enumerate(pieces):
                began = time.monotonic()
                segment = session.append(piece, op_id=f"demo-{part}-{index}")
                self.outcome.read_seconds += time.monotonic() - began
                self.outcome.read_tokens += segment.tokens
                self._ledger.acknowledge(segment.tokens, segment.position)
                self.outcome.state_bytes_first = self.outcome.state_bytes_first or session.memory().state_bytes
                progress.advance(len(piece), segment.tokens)
        self._screen.step(f"took in {self._ledger.position:,} tokens")

    def _crash_within_append(self, client: Client, session: SessionHandle) -> None:
        """Kill the server while a long body streams in: some of it journaled, some not yet sent, no answer given."""
        text = self._story.interrupted
        position = self._ledger.position

        def body() -> Iterator[str]:
            cut = len(text) * 3 // 5
            yield from _chunks(text[:cut])
            self._wait_beyond(client, position)
            self._server.kill()
            yield from _chunks(text[cut:])

        try:
            session.append_stream(body(), op_id="demo-interrupted")
        except PalimpsestError as error:
            self._screen.crash(f"SIGKILL in the middle of an append: {error}")
        else:
            raise DemoError("the append was answered although the server was killed")

    def _wait_beyond(self, client: Client, position: int) -> None:
        deadline = time.monotonic() + JOURNALED_WITHIN
        while client.sessions.get(self._session_id).info.position == position:
            if time.monotonic() > deadline:
                raise DemoError("nothing of the streamed append was journaled in time")
            time.sleep(0.01)

    def _recover_append(self, session: SessionHandle) -> None:
        """Everything acknowledged is there; then the append in doubt is sent again, under the same operation id."""
        text = self._story.interrupted
        # No more tokens than bytes can have been under way.
        found = self._ledger.after_crash(session.info.position, len(text.encode()))
        self._screen.step(f"all acknowledged tokens are there, and {found:,} of the append that got no answer")
        self._ask(session, self._story.facts[0])
        with self._screen.waiting("sends the same append again"):
            segment = session.append_stream([text], op_id="demo-interrupted")
        # The answer counts all tokens of the operation, those that were there already included.
        self._ledger.acknowledge(segment.tokens, segment.position)
        self._screen.step(f"applied once: {segment.tokens:,} tokens, {found:,} of them before the crash")

    def _compare(self, client: Client) -> None:
        """Read the same text into another session, without a crash. To count its tokens, journaling it is enough."""
        with self._screen.waiting("counts the tokens of the same text in a session without a crash"):
            other = client.sessions.create()
            segment = other.append_stream([self._story.text], wait="journal")
            self._ledger.compare(segment.position)
            client.sessions.delete(other.id)
        self._screen.step(f"the same text without a crash: {segment.position:,} tokens")

    def _crash_within_generation(self, session: SessionHandle) -> None:
        """Kill the server while the client reads what the model writes. Greedy, so that it can be rehearsed."""
        self.outcome.foreseen = _greedy(session, REHEARSED)
        seen: list[TokenLogprob] = []
        with session.connect() as socket, suppress(PalimpsestError):
            generation = socket.generate(temperature=0.0, max_tokens=GENERATED, logprobs=0)
            for delta in generation:
                seen += delta.logprobs or ()
                if delta.index + 1 == SEEN_BEFORE_CRASH:
                    self._server.kill()
            raise DemoError("the generation ended before the server was killed; choose another seed")
        if len(seen) < SEEN_BEFORE_CRASH:
            raise DemoError("the generation broke off before the server was killed")
        self.outcome.seen = len(seen)
        self._screen.crash(f"SIGKILL in the middle of a generation, {len(seen)} tokens of it seen")

    def _recover_generation(self, session: SessionHandle) -> None:
        """A token is durable before the client sees it: so all that was seen must be in the session."""
        ledger, position = self._ledger, session.info.position
        ledger.position += self.outcome.seen
        self.outcome.unseen = ledger.after_crash(position, GENERATED - self.outcome.seen)
        ledger.position = position
        self.outcome.tokens = position
        self._screen.step(f"all seen tokens are there, and {self.outcome.unseen} more that were on their way")

    def _ask_all(self, session: SessionHandle) -> None:
        for fact in self._story.facts:
            self._ask(session, fact)
        taken = self.outcome.seen + self.outcome.unseen
        self.outcome.foreseen = self.outcome.foreseen[taken:]
        self.outcome.continued = _greedy(session, len(self.outcome.foreseen)) if self.outcome.foreseen else ()
        # Questions leave no trace.
        self._ledger.audit(session.refresh().position)
        self.outcome.state_bytes_last = session.memory().state_bytes

    def _ask(self, session: SessionHandle, fact: Needle) -> None:
        began, first = time.monotonic(), 0.0
        with self._screen.waiting(fact.question), session.connect() as socket:
            generation = socket.generate(
                f"\n{fact.question}", remember=False, temperature=0.0, max_tokens=ANSWER_TOKENS, stop=["."]
            )
            text = ""
            for delta in generation:
                first = first or time.monotonic() - began
                text += delta.text
        answer = Answer(
            question=fact.question,
            answer=text,
            expected=fact.answer,
            tokens=session.info.position,
            state_bytes=session.memory().state_bytes,
            first_token_ms=1000 * first,
            resumed=self._restarted,
        )
        self._restarted = False
        self.outcome.answers.append(answer)
        self._screen.answered(answer)


def _chunks(text: str) -> Iterator[str]:
    return (text[start : start + CHUNK] for start in range(0, len(text), CHUNK))


def _greedy(session: SessionHandle, tokens: int) -> list[int]:
    """Ids of the likeliest tokens behind what the session has read, without a trace in it."""
    events = session.stream(remember=False, temperature=0.0, max_tokens=tokens, logprobs=0)
    deltas = [event for event in events if isinstance(event, GenerationDelta)]
    return [token.token_id for delta in deltas for token in delta.logprobs or ()]
