"""Text on its way into a session: in one message, or as a stream that is cut into many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import structlog

from server.errors import Internal, InvalidRequest, ServerError
from server.messages import Append, Appended
from server.pieces import pieces
from server.pool.base import Pool
from server.workload import Workload

Wait = Literal["memory", "journal"]
Tags = frozenset[str] | None
"""ETags of which a session's must be one; None where any will do."""


@dataclass(frozen=True)
class Taken:
    """How much of a streamed text has been acknowledged."""

    size: int = 0
    """Bytes of UTF-8."""
    tokens: int = 0
    position: int = 0


class Appends:
    """Sends what is appended to the workers."""

    def __init__(self, pool: Pool, workload: Workload) -> None:
        self._pool, self._workload = pool, workload
        self._log = structlog.get_logger("server.service")

    async def append(self, request: Append) -> Appended:
        """Take text or messages in."""
        with self._workload.at_work():
            answer = await self._pool.call(request)
        if not isinstance(answer, Appended):
            raise Internal(f"a worker answered an append with {answer.kind}")
        return answer

    async def append_stream(
        self, session_id: str, chunks: AsyncIterator[bytes], op_id: str, wait: Wait, if_match: Tags
    ) -> Appended:
        """See `Service.append_stream`."""
        taken, answer = Taken(), None
        try:
            async with aclosing(pieces(chunks)) as cut:
                async for piece in cut:
                    self._workload.refuse_if_draining()
                    answer = await self.append(
                        Append(
                            session_id=session_id,
                            text=piece.text,
                            op_id=f"{op_id}/{piece.index}",
                            wait=wait if piece.last else "journal",
                            if_match=None if piece.index else if_match,
                        )
                    )
                    size = taken.size + len(piece.text.encode())
                    taken = Taken(size, taken.tokens + answer.tokens, answer.position)
        except ServerError as error:
            raise _with_account(error, taken) from None
        finally:
            self._log.info("text taken in", session_id=session_id, bytes=taken.size, tokens=taken.tokens)
        if answer is None:
            raise InvalidRequest("the body is empty: there is no text to append")
        return answer.model_copy(update={"tokens": taken.tokens, "op_id": op_id})


def _with_account(error: ServerError, taken: Taken) -> ServerError:
    """The error, saying also what of the stream is kept."""
    kept = f"{taken.size} bytes ({taken.tokens} tokens, position {taken.position}) were taken in and are kept"
    if not taken.size:
        kept = "nothing of the body was taken in"
    return type(error)(f"{error.message}; {kept}", param=error.param, code=error.code, retry_after=error.retry_after)
