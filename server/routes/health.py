"""/healthz, /readyz and /version: for load balancers, without a key."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.routes.dependencies import ERRORS, Served
from server.store.base import Durability

router = APIRouter(tags=["health"], responses=ERRORS)


class Health(BaseModel):
    """The answer of both probes."""

    status: Literal["ok", "ready"]


class Version(BaseModel):
    """Which build answers, and where sessions live."""

    name: Literal["palimpsest-server"] = "palimpsest-server"
    version: str
    store: Literal["embedded", "redis"]
    durability: Durability | None
    """None while the store has not been reached."""


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
async def get_version(service: Served) -> Version:
    """Which build answers, and what becomes durable how."""
    kind: Literal["embedded", "redis"] = "embedded" if service.settings.store == "embedded" else "redis"
    return Version(version=server_version(), store=kind, durability=service.durability())
