"""Compares what a session holds with what an undisturbed one holds after the same acknowledged history."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.faults.account import Verdict
from bench.faults.author import Author, Pace, send_text
from bench.faults.ledger import Appended, Entry, Ledger, Said
from bench.faults.wire import Answer, Fields, HasUrl, PatientWire, Wire

CONTINUATION = 24
REPEATED = 6
"""Acknowledged appends that are sent once more, to see that nothing comes of it."""
_NEAR = 1e-3
"""How far logarithms of probabilities may differ: a batch cut otherwise rounds otherwise."""
_SPOKEN_OF = 4
"""Complaints of one kind that are put into words."""


class Judge:
    """Replays ledgers on `undisturbed`, a server that nothing befalls."""

    def __init__(self, undisturbed: HasUrl, choose: random.Random) -> None:
        self._undisturbed, self._choose = undisturbed, choose

    async def judge(
        self, servers: Sequence[HasUrl], session_id: str, ledger: Ledger, *, repeat: bool = True
    ) -> Verdict:
        """What is wrong with a session that `servers` serve, when nobody writes any more.

        First its position, then the position and text that every single operation was acknowledged with, then how it goes on,
        and what its memory holds; with `repeat` also whether operation ids still stand for what they did.
        """
        verdict = Verdict()
        reader = Author("judge", session_id, ledger, servers, self._choose, pace=Pace(patience=10.0))
        async with PatientWire(self._undisturbed) as reference, reader:
            twin = await reference.create()
            await self._replay(reference, twin, ledger.in_order, verdict)
            found = await reader.insist(lambda wire: wire.session(session_id), "reading the session")
            self._compare_position(found.fields["position"], ledger, verdict)
            await self._compare_future(reader, reference, twin, verdict)
            if repeat:
                await self._repeat(reader, ledger, verdict)
            await reference.ask("DELETE", f"/v1/sessions/{twin}")
        return verdict

    async def _replay(self, reference: Wire, twin: str, entries: Sequence[Entry], verdict: Verdict) -> None:
        """Every operation once, in order. A shift of positions is counted where it begins."""
        shift = 0
        for entry in entries:
            expected = await _do_again(reference, twin, entry)
            if isinstance(entry, Said) and entry.answer != expected["text"]:
                verdict.wrong += 1
                _complain(verdict, f"{entry.op_id} said {entry.answer!r} instead of {expected['text']!r}")
            now = entry.position - int(expected["position"])
            if now == shift:
                continue
            verdict.lost += now < shift
            verdict.twice += now > shift
            _complain(verdict, f"{entry.op_id} was acknowledged {now - shift:+d} tokens from where it belongs")
            shift = now

    def _compare_position(self, found: int, ledger: Ledger, verdict: Verdict) -> None:
        if found < ledger.position:
            verdict.lost += sum(entry.position > found for entry in ledger.entries)
        elif found > ledger.position:
            verdict.twice += 1
        if found != ledger.position:
            verdict.complaints.append(f"the session is at {found} instead of {ledger.position}")

    async def _compare_future(self, reader: Author, reference: Wire, twin: str, verdict: Verdict) -> None:
        """How it goes on, to the last probability, and what of the past it can still be asked for."""
        expected, remembered = await _continue(reference, twin), await reference.memory(twin)
        found = await reader.insist(lambda wire: _continue(wire, reader.session_id), "going on")
        memory = await reader.insist(lambda wire: wire.memory(reader.session_id), "reading the memory")
        if not _alike(found, expected):
            verdict.wrong += 1
            verdict.complaints.append(f"goes on with {_text(found)!r} instead of {_text(expected)!r}")
        elif not _same_past(memory, remembered):
            verdict.wrong += 1
            verdict.complaints.append("goes on rightly, but its memory holds something else")

    async def _repeat(self, reader: Author, ledger: Ledger, verdict: Verdict) -> None:
        appends = [entry for entry in ledger.entries if isinstance(entry, Appended)]
        for entry in self._choose.sample(appends, min(REPEATED, len(appends))):

            async def again(wire: Wire, entry: Appended = entry) -> Answer:
                return await send_text(wire, reader.session_id, entry.text, entry.op_id, entry.how)

            answer = await reader.insist(again, f"repeating {entry.op_id}")
            if (answer.fields["tokens"], answer.fields["position"]) != (entry.tokens, entry.position):
                verdict.twice += 1
                _complain(verdict, f"{entry.op_id} was answered otherwise when it was repeated")
        found = await reader.insist(lambda wire: wire.session(reader.session_id), "reading the session")
        if found.fields["position"] != ledger.position and verdict.clean:
            verdict.twice += 1
            verdict.complaints.append(f"repeated operations took it to {found.fields['position']}")


async def _do_again(reference: Wire, twin: str, entry: Entry) -> Fields:
    if isinstance(entry, Appended):
        return (await send_text(reference, twin, entry.text, entry.op_id)).fields
    # One that was cancelled is as long as it got.
    count = entry.sampled if entry.reason == "cancelled" else entry.max_tokens
    if count == 0:
        return {**await _take_prompt(reference, twin, entry), "text": ""}
    fields = {"max_tokens": count, "temperature": 0.0} | ({"prompt": entry.prompt} if entry.prompt else {})
    return (await reference.ask("POST", f"/v1/sessions/{twin}/generate", fields, op_id=entry.op_id)).fields


async def _take_prompt(reference: Wire, twin: str, entry: Said) -> Fields:
    if entry.prompt is None:
        return (await reference.session(twin)).fields
    return (await send_text(reference, twin, entry.prompt, entry.op_id)).fields


async def _continue(wire: Wire, session_id: str) -> list[Fields]:
    fields = {"max_tokens": CONTINUATION, "temperature": 0.0, "remember": False, "logprobs": 0}
    answer = await wire.ask("POST", f"/v1/sessions/{session_id}/generate", fields)
    return list(answer.fields["logprobs"] or ())


def _alike(found: Sequence[Fields], expected: Sequence[Fields]) -> bool:
    return len(found) == len(expected) and all(
        one["token_id"] == other["token_id"] and abs(one["logprob"] - other["logprob"]) <= _NEAR
        for one, other in zip(found, expected, strict=True)
    )


def _same_past(found: Fields, expected: Fields) -> bool:
    return all(found[name] == expected[name] for name in ("position", "folds", "local_tokens", "remembered"))


def _text(tokens: Sequence[Fields]) -> str:
    return "".join(token["token"] for token in tokens)


def _complain(verdict: Verdict, complaint: str) -> None:
    if len(verdict.complaints) < _SPOKEN_OF:
        verdict.complaints.append(complaint)
