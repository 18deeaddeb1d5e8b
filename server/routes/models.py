"""/v1/models"""

from __future__ import annotations

from fastapi import APIRouter

from server.errors import NotFound
from server.routes.dependencies import ERRORS, Served, Tenant
from server.schemas import ModelBody, ModelList

router = APIRouter(tags=["models"], responses=ERRORS)


@router.get("/v1/models")
async def list_models(service: Served, _tenant: Tenant) -> ModelList:
    """The served models."""
    model = ModelBody.of(service.served(), service.started_at)
    return ModelList(data=[model], first_id=model.id, last_id=model.id)


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, service: Served, _tenant: Tenant) -> ModelBody:
    """One model. Names may hold slashes."""
    served = service.served()
    if model_id != served.model:
        raise NotFound(f"this server serves {served.model}", param="model_id")
    return ModelBody.of(served, service.started_at)
