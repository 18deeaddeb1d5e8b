"""uvicorn's WebSocket, which hears a client out before it hangs up."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_FAREWELL_SECONDS = 5
"""How long a client may take to send the rest of what was refused, and to read why."""


class PatientWebSocket(WebSocketsSansIOProtocol):
    """Whoever breaks the protocol, by a frame that is too large for example, is told why and then listened to for a while.

    A connection that is closed while its client still sends is reset, and many clients then never read why. So it is closed for
    writing first (RFC 6455, section 7.1.1), and wholly once the client has closed its side or has had its time.
    """

    def handle_parser_exception(self) -> None:
        """Send the close frame and nothing after it. What still comes in, `conn` throws away."""
        if self.close_timer is not None:  # more of the same frame
            return
        assert self.conn.close_sent is not None
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():  # not through TLS
            self.transport.write_eof()
        self.close_timer = self.loop.call_later(_FAREWELL_SECONDS, self.transport.close)
