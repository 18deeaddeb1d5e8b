"""/healthz, /readyz and /version: for load balancers, without a key."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.routes.dependencies import ERRORS, Served

router = APIRouter(tags=["health"], responses=ERRORS)


class Health(BaseModel):
    """The answer of both probes."""

    status: Literal["ok", "ready"]


class Version(BaseModel):
    """Which build answers."""

    name: Literal["palimpsest-server"] = "palimpsest-server"
    version: str


def server_version() -> str:
    """The installed version; `unknown` when run from a folder that was never installed."""
    try:
        return version("palimpsest-server")
    except PackageNotFoundError:
        return "unknown"


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(service: Served) -> Health:
    """Requests are taken: workers have the model, the store writes, nobody asked to shut down."""
    await service.check_ready()
    return Health(status="ready")


@router.get("/version")
async def get_version() -> Version:
    """Which build answers."""
    return Version(version=server_version())
