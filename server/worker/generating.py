"""What happens to a generation when a token was sampled for it, and how one is told again.

The same tokens give the same events, numbered alike, whether they are sampled now or read from the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from server.errors import SessionBusy
from server.messages import (
    GenerationCompleted,
    GenerationDelta,
    GenerationEvent,
    GenerationStarted,
    SampledLogprobs,
)
from server.store.base import Finish, GenerationRecord, JournalEntry, Reason, Turn
from server.worker.journal import Journal
from server.worker.runner import Sample
from server.worker.session import Emit, Generation, Session

Drop = Callable[[Session, Exception], None]
log = structlog.get_logger()


def advance(session: Session, generation: Generation, sample: Sample, journal: Journal, drop: Drop) -> None:
    """Take a sampled token: journal it, feed it back, and send what became certain once it is durable.

    The model's own end token closes a chat turn and is remembered with it. After raw text it is not: the session's text would
    end there for ever.
    """
    generation.sampled += 1
    ended = generation.voice.ends(sample.token)
    text = "" if ended else generation.voice.push(sample.token)
    reason: Reason | None = None
    if ended or generation.voice.stopped:
        reason = "stop"
    elif generation.sampled >= generation.max_tokens:
        reason = "length"
    kept = [] if ended and session.turn != "open" else [sample.token]
    _remember(session, generation, kept, "ended" if ended and kept else session.turn, reason, journal)
    if reason is not None:
        text += generation.voice.finish()
    events = _delta(generation, text, generation.voice.logprobs(sample))
    _send(session, generation, events, reason, drop)


def cancel(session: Session, generation: Generation, journal: Journal, drop: Drop) -> None:
    """End a generation for good. What was sampled stays in the session; text held back is sent."""
    _remember(session, generation, [], session.turn, "cancelled", journal)
    text = generation.voice.finish()
    _send(session, generation, _delta(generation, text) if text else [], "cancelled", drop)


def interrupt(session: Session, generation: Generation) -> None:
    """Break a generation off, unfinished: nobody listens. What was sampled stays, and somebody may go on with it."""
    session.generation = None
    if not generation.done.done():
        generation.done.set_result(None)


def take_up(generation: Generation, after: int, emit: Emit, listener: int) -> None:
    """Send a running generation to somebody else from here on, beginning behind event number `after`."""
    former, generation.emit, generation.listener = generation.done, emit, listener
    generation.done = asyncio.get_running_loop().create_future()
    if not former.done():
        former.set_exception(SessionBusy("this stream was taken up by another connection", code="stream_moved"))
        former.exception()  # marks it as seen: whoever listened may be gone
    for event in numbered_after(generation.told, after):
        emit(event)


def numbered_after(events: Sequence[GenerationEvent], after: int) -> Sequence[GenerationEvent]:
    """The events of a generation behind number `after`; the first of all is number 0."""
    return events[max(0, after + 1) :]


def told_again(generation: Generation, record: GenerationRecord) -> None:
    """Bring a generation that has done nothing yet to where its record ends, events included."""
    finish = record.finish
    generation.told.append(GenerationStarted(generation_id=record.id, prompt_tokens=record.prompt_tokens))
    steps: list[int | None] = list(record.tokens)
    if finish is not None and finish.sampled > len(steps):
        steps.append(None)  # an end token that was not remembered
    closing = finish is not None and finish.reason != "cancelled"
    for number, token in enumerate(steps, start=1):
        text = "" if token is None or generation.voice.ends(token) else generation.voice.push(token)
        if closing and number == len(steps):
            text += generation.voice.finish()
        generation.told += _delta(generation, text)
    generation.sampled, generation.tokens = len(steps), list(record.tokens)
    generation.voice.skip(len(steps))
    if finish is not None:
        if not closing and (rest := generation.voice.finish()):
            generation.told += _delta(generation, rest)
        generation.told.append(_completed(generation, finish.reason, finish.sampled, finish.position))


def _remember(
    session: Session,
    generation: Generation,
    tokens: list[int],
    turn: Turn,
    reason: Reason | None,
    journal: Journal,
) -> None:
    """Journal what was sampled, and how it ended; a copy of a session journals nothing but a whole result."""
    start = session.journaled
    session.turn = turn
    session.take(tokens)
    session.echo += len(tokens)
    generation.tokens += tokens
    if not tokens and reason is None:
        return
    position = session.position if generation.stays_at is None else generation.stays_at
    finish = None if reason is None else Finish(reason, generation.sampled, position)
    if session.lease is not None:
        entry = JournalEntry(session.lease, start, tokens, "", 0, session.turn, sampled_by=generation.id, finish=finish)
        generation.durable = journal.add(entry)
        session.changed_since = session.changed_since or time.monotonic()
    elif finish is not None and generation.record is not None:
        generation.durable = journal.add(generation.record(generation.tokens, finish))


def _delta(generation: Generation, text: str, logprobs: SampledLogprobs | None = None) -> list[GenerationEvent]:
    # With logprobs every token has an event of its own, also when it is told again and they are not known any more.
    if not text and not generation.voice.tells_logprobs:
        return []
    delta = GenerationDelta(
        generation_id=generation.id,
        index=generation.deltas,
        text=text,
        logprobs=None if logprobs is None else (logprobs,),
    )
    generation.deltas += 1
    generation.text += text
    return [delta]


def _completed(generation: Generation, reason: Reason, sampled: int, position: int) -> GenerationCompleted:
    return GenerationCompleted(
        generation_id=generation.id,
        text=generation.text,
        finish_reason=reason,
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=sampled,
        context_tokens=generation.context_tokens,
        position=position,
    )


def _send(
    session: Session, generation: Generation, events: list[GenerationEvent], reason: Reason | None, drop: Drop
) -> None:
    """Emit in order, each event only after the tokens behind it are durable."""
    if reason is not None:
        position = session.position if generation.stays_at is None else generation.stays_at
        events = [*events, _completed(generation, reason, generation.sampled, position)]
        session.generation = None

    def deliver(durable: asyncio.Future[str] | None) -> None:
        if generation.done.done():
            return
        error = None if durable is None else durable.exception()
        if isinstance(error, Exception) and session.lease is not None:
            generation.done.set_exception(error)
            generation.done.exception()
            drop(session, error)
            return
        if error is not None:
            # The answer is right all the same; only a repeat of the request will be answered anew.
            log.warning("result not recorded", generation_id=generation.id, error=type(error).__name__)
        etag = durable.result() if durable is not None and session.lease is not None else None
        for event in events:
            if isinstance(event, GenerationCompleted):
                generation.tell(event.model_copy(update={"etag": etag}))
                generation.done.set_result(None)
            else:
                generation.tell(event)

    if generation.durable is None:
        deliver(None)
    else:
        generation.durable.add_done_callback(deliver)
