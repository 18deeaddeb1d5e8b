"""Who of those that share a WebSocket gets which record, and what to send again on a new connection. No I/O."""

from __future__ import annotations

from collections import deque

from palimpsest.errors import NotFound
from palimpsest.records import Record, cancel_record, resume_record
from palimpsest.telling import Telling
from palimpsest.wire import api_error


class _Pending:
    """One operation: what was asked, what has been answered."""

    def __init__(self, key: str, record: Record) -> None:
        self.key = key
        self.record = record
        self.answers: deque[Record] = deque()
        self.telling = Telling()
        self.resumed = False
        self.left = False
        """Nobody waits any more; it is kept only to be cancelled."""
        self.unwanted = False
        self.cancel_sent = False
        self.done = False
        """The last record of the answer has come."""

    def again(self) -> Record:
        """What asks for the rest of the answer; the server does nothing twice."""
        self.cancel_sent = self.done = False
        generation_id = self.telling.generation_id
        if generation_id is None:
            return self.record
        self.resumed = True
        return resume_record(self.key, generation_id, self.telling.after)


class Mailbox:
    """Sorts the records of one socket by the operation they answer, over all of its connections.

    A generation's deltas name only the generation, so `generation.started` ties that name to the operation.
    Records that nobody waits for (an abandoned generation's last deltas) and those that came before are dropped.
    """

    def __init__(self) -> None:
        self._pending: dict[str, _Pending] = {}
        self._cancels = 0

    def open(self, key: str, record: Record) -> None:
        """Keep what answers `record`, which is about to be sent, from now on."""
        self._pending[key] = _Pending(key, record)

    def close(self, key: str) -> None:
        """Drop what is left of an operation, and what is still to come."""
        pending = self._pending.get(key)
        if pending is None:
            return
        pending.left = True
        pending.answers.clear()
        if pending.done or not pending.unwanted:
            del self._pending[key]

    def cancel(self, key: str) -> Record | None:
        """What to send to stop a generation; None while it has no name: `deliver` will ask for it then."""
        pending = self._pending.get(key)
        if pending is None:
            return None
        pending.unwanted = True
        return self._cancel_due(pending)

    def take(self, key: str) -> Record | None:
        """The oldest record for an operation, None if there is none yet. Raises the error that answers it."""
        pending = self._pending[key]
        if not pending.answers:
            return None
        record = pending.answers.popleft()
        if record.get("type") != "error":
            return record
        error = api_error(None, record)
        if pending.resumed and isinstance(error, NotFound):
            raise pending.telling.not_resumable(error)
        raise error

    def again(self, key: str) -> Record:
        """What to send after an error that may pass."""
        return self._pending[key].again()

    def reconnect(self) -> list[Record]:
        """What to send on a new connection, in the order it was first sent: all that has no whole answer yet."""
        self._cancels = 0
        # The server has stopped what was left already.
        self._pending = {key: pending for key, pending in self._pending.items() if not pending.left}
        return [pending.again() for pending in self._pending.values() if not pending.done]

    def deliver(self, record: Record) -> Record | None:
        """File a record; returns what must be sent because of it.

        An error that answers no operation in particular is raised at once.
        """
        kind, pending = record.get("type"), self._addressee(record)
        if pending is None:
            self._unclaimed(record)
            return None
        pending.done = kind not in ("generation.started", "generation.delta")
        fresh = pending.done or pending.telling.take(*_place(record))
        if fresh and not pending.left:
            pending.answers.append(record)
        if pending.done and pending.left:
            del self._pending[pending.key]
        return None if pending.done else self._cancel_due(pending)

    def _cancel_due(self, pending: _Pending) -> Record | None:
        generation_id = pending.telling.generation_id
        if not pending.unwanted or pending.cancel_sent or generation_id is None:
            return None
        pending.cancel_sent = True
        self._cancels += 1
        return cancel_record(generation_id)

    def _unclaimed(self, record: Record) -> None:
        if record.get("type") != "error":
            return
        error = api_error(None, record)
        if not (isinstance(error, NotFound) and self._cancels):
            raise error
        # A cancel that missed: the generation has ended, or is not running again yet.
        self._cancels -= 1
        for pending in self._pending.values():
            pending.cancel_sent = False

    def _addressee(self, record: Record) -> _Pending | None:
        if record.get("op_id") is not None:
            return self._pending.get(str(record["op_id"]))
        waiting = self._pending.values()
        if record.get("type") == "pong":
            return next((ping for ping in waiting if ping.record["type"] == "ping" and not ping.answers), None)
        generation = record.get("generation")
        named = generation.get("id") if isinstance(generation, dict) else record.get("generation_id")
        return next((one for one in waiting if named is not None and one.telling.generation_id == named), None)


def _place(record: Record) -> tuple[str, int | None]:
    """The generation of an event and its number: 0 for the start, one more than its index for a delta."""
    index = -1 if record["type"] == "generation.started" else record.get("index")
    return str(record.get("generation_id")), index + 1 if isinstance(index, int) else None
