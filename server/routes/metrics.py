"""/metrics: figures for Prometheus, without a key. It names routes and methods, and nothing of anybody's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response

from server.routes.dependencies import ERRORS, Served

router = APIRouter(tags=["health"], responses=ERRORS)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Served, accept: Annotated[str, Header()] = "") -> Response:
    """Figures of the server and its workers, in Prometheus' text format, or as OpenMetrics where that is asked for."""
    page, content_type = await service.measure(accept)
    return Response(page, headers={"content-type": content_type})
