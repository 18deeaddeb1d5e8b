"""Runs the app under uvicorn, and drains it when asked to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI

from server.errors import ServerError
from server.farewell import PatientWebSocket
from server.link import MAX_FRAME_BYTES
from server.service import Service
from server.settings import Settings

_LINGER_SECONDS = 5
"""How long connections may take to close once nothing runs on them."""


class DrainingServer(uvicorn.Server):
    """uvicorn cuts WebSockets as soon as it shuts down: here running generations end first.

    While they do, the port still answers: `/readyz` with 503, new work with the error `draining`.
    """

    def __init__(self, config: uvicorn.Config, service: Service, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce
        self.gave_up = False

    def give_up(self) -> None:
        """Stop because nothing can ever be served; the log says why."""
        self.gave_up = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open everything, listen, and say where. A store that must not be used ends it: the log says why."""
        try:
            await self._service.store.open()
        except ServerError as error:
            structlog.get_logger("server.serving").error("the store cannot be used", reason=error.message)
            self.give_up()
            return
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._announce(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then shut down. A second Ctrl-C ends the drain."""
        self._service.begin_drain()
        idle = False
        while not idle and not self.force_exit and self._service.drain_remaining:
            idle = await self._service.wait_idle(min(0.2, self._service.drain_remaining))
        if not idle:
            await self._cut_short()
        await super().shutdown(sockets)

    async def _cut_short(self) -> None:
        """The time is up: end what runs in a way its clients can read."""
        # Generations break off with `draining`, to be taken up again elsewhere; so do appends that still wait to be read. What
        # they journaled is safe.
        await self._service.pool.stop(0)


def create_server(settings: Settings, app: FastAPI, announce: Callable[[str], None]) -> DrainingServer:
    """A server for the app; `announce` is told its address once it listens there."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        ws=PatientWebSocket,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LINGER_SECONDS,
    )
    return DrainingServer(config, app.state.service, announce)
