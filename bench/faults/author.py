"""Somebody who writes into a session and does not rest until all of it is acknowledged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlencode

from bench.faults.hearing import Hearing, Lost
from bench.faults.ledger import Appended, Entry, How, Ledger, Said
from bench.faults.texts import numbered_text
from bench.faults.wire import RETRYABLE, Answer, Fields, HasUrl, NoAnswer, Refused, Wire

Result = TypeVar("Result")
NOT_FOUND = 404
SAYS_EVERY = 6
"""Every so many operations one is a generation."""


class StuckError(Exception):
    """An operation was not acknowledged in time, however often it was tried."""


@dataclass(frozen=True)
class Pace:
    """How an author works: seconds between operations and between attempts, the longest an answer may be silent, and how
    long one operation may take with all attempts."""

    between: float = 0.02
    retry: float = 0.1
    patience: float = 20.0
    stuck: float = 60.0


class Author:
    """Sends numbered texts and greedy generations to `servers` in turn, each again under its operation id until it is answered.

    What is acknowledged goes into the ledger. Some streams it leaves in the middle, to take them up again. Use as a
    context manager. Raises `StuckError`, `Refused` for what no retry mends, `Lost` when session or generation are gone, and
    `WrongStory`.
    """

    def __init__(
        self,
        name: str,
        session_id: str,
        ledger: Ledger,
        servers: Sequence[HasUrl],
        choose: random.Random,
        *,
        pace: Pace | None = None,
    ) -> None:
        self.name, self.session_id, self.ledger = name, session_id, ledger
        self._pace = pace or Pace()
        self._wires = [Wire(server, patience=self._pace.patience) for server in servers]
        self._choose = choose
        self._open = AsyncExitStack()
        self._number = self._turn = 0
        self.refusals: list[Refused] = []
        """Every refusal that was met on the way."""

    async def write(self, count: int) -> None:
        """So many operations more."""
        for _ in range(count):
            await self.step()

    async def write_until(self, over: asyncio.Event, *, least: int = 1) -> None:
        """Operations until `over` is set, but `least` so many."""
        began = self._number
        while not over.is_set() or self._number - began < least:
            await self.step()

    async def step(self) -> Entry:
        """One operation more."""
        number, self._number = self._number, self._number + 1
        await asyncio.sleep(self._pace.between)
        if number % SAYS_EVERY == SAYS_EVERY - 1:
            return await self.say(number)
        return await self.append(number)

    async def append(self, number: int) -> Appended:
        """The text of this number, by one of the ways there are."""
        text = numbered_text(self.name, number, self._choose.randint(4, 30))
        return await self.send(f"{self.name}-{number}", text, self._choose.choice(["memory", "journal", "body"]))

    async def send(self, op_id: str, text: str, how: How) -> Appended:
        """This text, until it is acknowledged."""

        async def attempt(wire: Wire) -> Answer:
            return await send_text(wire, self.session_id, text, op_id, how)

        answer = await self.insist(attempt, op_id)
        entry = Appended(op_id, text, how, answer.fields["tokens"], answer.fields["position"], answer.etag)
        self.ledger.add(entry)
        return entry

    async def say(self, number: int) -> Said:
        """A generation: streamed and taken up again when it breaks, or told in one answer."""
        prompt = f"{self.name} asks {number}:" if self._choose.random() < 0.5 else None
        op_id, max_tokens = f"{self.name}-{number}", self._choose.randint(4, 24)
        fields = {"max_tokens": max_tokens, "temperature": 0.0} | ({"prompt": prompt} if prompt else {})
        streamed = self._choose.random() < 0.75
        told = await (self._hear(fields, op_id) if streamed else self._ask(fields, op_id))
        entry = Said(
            op_id,
            prompt,
            max_tokens,
            told["text"],
            told["finish_reason"],
            told["usage"]["completion_tokens"],
            told["position"],
        )
        self.ledger.add(entry)
        return entry

    async def insist(self, attempt: Callable[[Wire], Awaitable[Result]], what: str) -> Result:
        """Try with one server after the other until one does it, beginning with the one that did the last."""
        loop = asyncio.get_running_loop()
        deadline, last = loop.time() + self._pace.stuck, ""
        while loop.time() < deadline:
            try:
                return await attempt(self._wires[self._turn % len(self._wires)])
            except Refused as refusal:
                if refusal.status == NOT_FOUND:
                    raise Lost(f"{what}: {refusal}") from None
                if refusal.status not in RETRYABLE:
                    raise
                self.refusals.append(refusal)
                last = str(refusal)
            except NoAnswer as silence:
                last = str(silence)
            self._turn += 1
            await asyncio.sleep(self._pace.retry)
        raise StuckError(f"{what} was not acknowledged within {self._pace.stuck:g} s; last: {last}")

    async def _ask(self, fields: Fields, op_id: str) -> Fields:
        async def attempt(wire: Wire) -> Answer:
            return await wire.ask("POST", f"/v1/sessions/{self.session_id}/generate", fields, op_id=op_id)

        return (await self.insist(attempt, op_id)).fields

    async def _hear(self, fields: Fields, op_id: str) -> Fields:
        hearing = Hearing(leave_after=self._choose.choice([None, None, 0, 2, 5]))

        async def attempt(wire: Wire) -> Fields:
            if hearing.generation_id is None:
                telling = wire.stream(self.session_id, fields, op_id)
            else:
                telling = wire.resume(hearing.generation_id, hearing.last)
            async with telling as events:
                return await hearing.listen(events)

        return await self.insist(attempt, op_id)

    async def __aenter__(self) -> Self:
        for wire in self._wires:
            await self._open.enter_async_context(wire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()


async def send_text(wire: Wire, session_id: str, text: str, op_id: str, how: How = "memory") -> Answer:
    """One append."""
    path = f"/v1/sessions/{session_id}/segments"
    if how == "body":
        return await wire.ask("POST", path, body=text.encode(), op_id=op_id)
    return await wire.ask("POST", f"{path}?{urlencode({'wait': how})}", {"text": text}, op_id=op_id)
