"""A small real server that speaks the interface from a script: echoes, counts, and fails on demand."""

from __future__ import annotations

import socket
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.clients.python.routes import Routes
from tests.clients.python.script import Script
from tests.clients.python.socket_script import SocketScript


def build_app(routes: Routes) -> Starlette:
    one = "/v1/sessions/{id}"

    async def stream(websocket: WebSocket) -> None:
        await SocketScript(routes.script, websocket).run()

    return Starlette(
        routes=[
            Route("/v1/sessions", routes.sessions, methods=["GET", "POST"]),
            Route("/v1/sessions/import", routes.import_session, methods=["POST"]),
            Route(one, routes.session, methods=["GET", "PATCH", "DELETE"]),
            Route(one + "/segments", routes.segments, methods=["POST"]),
            Route(one + "/generate", routes.generate, methods=["POST"]),
            Route(one + "/fork", routes.fork, methods=["POST"]),
            Route(one + "/export", routes.export),
            Route(one + "/memory", routes.memory),
            Route("/v1/generations/{name}/events", routes.resume),
            WebSocketRoute(one + "/stream", stream),
            Route("/v1/models", routes.models),
            Route("/version", routes.version),
            Route("/readyz", routes.ready),
            Route("/elsewhere/version", routes.page),
        ]
    )


class FakeServer:
    """The script on a real port; `stop` and `start` again are a restart that keeps what was stored."""

    def __init__(self) -> None:
        self._routes = Routes(Script())
        self.port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def script(self) -> Script:
        return self._routes.script

    def forget(self) -> None:
        """Begin a new script; what still runs goes on with the old one."""
        self._routes.script = Script()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self._server is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(build_app(self._routes), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(10)
        self._server = self._thread = None
