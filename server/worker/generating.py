"""What happens to a generation when a token was sampled for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from server.messages import GenerationCompleted, GenerationDelta, GenerationEvent
from server.store.base import JournalEntry
from server.worker.journal import Journal
from server.worker.runner import Sample
from server.worker.session import Generation, Session

Drop = Callable[[Session, Exception], None]
Reason = Literal["stop", "length", "cancelled"]


def advance(session: Session, generation: Generation, sample: Sample, journal: Journal, drop: Drop) -> None:
    """Take a sampled token: journal it, feed it back, and send what became certain once it is durable.

    The model's own end token closes a chat turn and is remembered with it. After raw text it is not: the session's text would
    end there for ever.
    """
    generation.sampled += 1
    ended = generation.voice.ends(sample.token)
    text = "" if ended else generation.voice.push(sample.token)
    if (logprobs := generation.voice.logprobs(sample)) is not None:
        generation.logprobs.append(logprobs)
    reason: Reason | None = None
    if ended or generation.voice.stopped:
        reason = "stop"
    elif generation.sampled >= generation.max_tokens:
        reason = "length"
    if not ended or session.turn == "open":
        turn = "ended" if ended and session.turn == "open" else session.turn
        start = session.journaled
        session.turn = turn
        session.take([sample.token])
        if session.lease is not None:
            entry = JournalEntry(session.lease, start, [sample.token], "", 0, turn)
            generation.durable = journal.add(entry)
            session.changed_since = session.changed_since or time.monotonic()
    if reason is not None:
        text += generation.voice.finish()
    events = _delta(generation, text)
    if reason is not None:
        events.append(_completed(session, generation, reason))
        session.generation = None
    _send(session, generation, events, drop)


def cancel(session: Session, generation: Generation, drop: Drop) -> None:
    """End a generation now. What was sampled stays in the session; text held back is sent."""
    events = _delta(generation, generation.voice.finish())
    events.append(_completed(session, generation, "cancelled"))
    session.generation = None
    _send(session, generation, events, drop)


def _delta(generation: Generation, text: str) -> list[GenerationEvent]:
    if not text and not generation.logprobs:
        return []
    delta = GenerationDelta(
        generation_id=generation.id,
        index=generation.deltas,
        text=text,
        logprobs=tuple(generation.logprobs) or None,
    )
    generation.deltas += 1
    generation.text += text
    generation.logprobs.clear()
    return [delta]


def _completed(session: Session, generation: Generation, reason: Reason) -> GenerationCompleted:
    return GenerationCompleted(
        generation_id=generation.id,
        text=generation.text,
        finish_reason=reason,
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.sampled,
        context_tokens=generation.context_tokens,
        position=session.position if generation.stays_at is None else generation.stays_at,
    )


def _send(session: Session, generation: Generation, events: list[GenerationEvent], drop: Drop) -> None:
    """Emit in order, each event only after the tokens behind it are durable."""

    def deliver(durable: asyncio.Future[None] | None) -> None:
        if generation.done.done():
            return
        if durable is not None and (error := durable.exception()) is not None:
            assert isinstance(error, Exception)
            generation.done.set_exception(error)
            generation.done.exception()
            drop(session, error)
            return
        for event in events:
            generation.emit(event)
            if isinstance(event, GenerationCompleted):
                generation.done.set_result(None)

    if generation.durable is None:
        deliver(None)
    else:
        generation.durable.add_done_callback(deliver)
