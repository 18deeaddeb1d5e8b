"""Builds the HTTP application; its lifespan opens and closes everything behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.answers import error_response
from server.disconnects import ConnectionOver
from server.errors import MethodNotAllowed, NotFound, ServerError
from server.middleware import RequestContext
from server.pool.base import Pool
from server.routes import generate, health, memory, metrics, models, segments, sessions, stream, transfers
from server.routes.dependencies import COMPONENTS
from server.schemas.requests import AppendBody, CreateSession, ForkSession, GenerateBody, PatchSession
from server.service import Service
from server.settings import Settings
from server.store.base import Store
from server.validation import complaint

_SWEEP_SECONDS = 60.0
_CLOSED_BY_CLIENT = 499


class Application(FastAPI):
    """FastAPI, with the bodies that routes read themselves in its schema."""

    def openapi(self) -> dict[str, Any]:
        """The schema of the HTTP interface."""
        schema = super().openapi()
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        for body in (AppendBody, CreateSession, ForkSession, GenerateBody, PatchSession):
            described = body.model_json_schema(ref_template=COMPONENTS)
            components |= described.pop("$defs", {})
            components[body.__name__] = described
        return schema


def create_app(settings: Settings, pool: Pool, store: Store) -> FastAPI:
    """The app. `app.state.service` is its `Service`, for whoever runs it to begin a drain."""
    service = Service(settings, pool, store)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None, None]:
        async with _running(service):
            yield

    app = Application(
        title="Palimpsest",
        summary="Language-model sessions with a memory of fixed size.",
        version=health.server_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(RequestContext, metrics=service.metrics)
    for resource in (sessions, transfers, segments, generate, memory, models, health, metrics, stream):
        app.include_router(resource.router)
    _map_errors(app)
    return app


@asynccontextmanager
async def _running(service: Service) -> AsyncGenerator[None, None]:
    await service.store.open()
    try:
        await service.pool.start()
        try:
            async with asyncio.TaskGroup() as group:
                sweeper = group.create_task(_sweep(service.store))
                try:
                    yield
                finally:
                    sweeper.cancel()
        finally:
            service.begin_drain()
            await service.pool.stop(service.drain_remaining)
    finally:
        await service.store.close()


async def _sweep(store: Store) -> None:
    """Delete what has expired, now and every minute."""
    log = structlog.get_logger("server.sweep")
    while True:
        try:
            gone = await store.sweep()
        except Exception as error:
            # The next minute may be better; nothing that was asked for depends on this one.
            log.warning("sweep failed", error=type(error).__name__)
        else:
            log.debug("swept", sessions=gone)
        await asyncio.sleep(_SWEEP_SECONDS)


def _map_errors(app: FastAPI) -> None:
    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        ServerError: _server_error,
        RequestValidationError: _invalid_parameters,
        HTTPException: _unrouted,
        ConnectionOver: _nobody_there,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _server_error(request: Request, error: ServerError) -> Response:
    return error_response(request, error)


async def _invalid_parameters(request: Request, error: RequestValidationError) -> Response:
    # The first part of a location is "query", "header" or "path": callers know the name alone.
    details = [{**detail, "loc": detail["loc"][1:]} for detail in error.errors()]
    return error_response(request, complaint(details))


async def _unrouted(request: Request, error: HTTPException) -> Response:
    if error.status_code != 405:
        return error_response(request, NotFound("there is nothing at this path; see /openapi.json"))
    # Starlette names the methods of one route only, and a path may have several.
    path = getattr(request.scope.get("route"), "path_format", "")
    methods = sorted(method.upper() for method in request.app.openapi()["paths"].get(path, {}))
    allowed = ", ".join(methods) or (error.headers or {}).get("Allow", "")
    refusal = MethodNotAllowed(f"this path takes {allowed}")
    return error_response(request, refusal, {"Allow": allowed})


async def _nobody_there(_request: Request, _error: ConnectionOver) -> Response:
    # Nobody receives it; the log line of the request shows the status.
    return Response(status_code=_CLOSED_BY_CLIENT)
