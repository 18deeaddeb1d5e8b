"""/v1/models"""

from __future__ import annotations

from fastapi import APIRouter

from server.catalog import listed
from server.errors import NotFound
from server.routes.dependencies import ERRORS, Served, Tenant
from server.schemas.responses import ModelBody, ModelList

router = APIRouter(tags=["models"], responses=ERRORS)


@router.get("/v1/models")
async def list_models(service: Served, _tenant: Tenant) -> ModelList:
    """The served models."""
    served = service.served()
    names = dict.fromkeys(offer.model for offer in served.offers)
    models = [ModelBody.of(name, served, service.started_at) for name in names]
    return ModelList(data=models, first_id=models[0].id, last_id=models[-1].id)


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, service: Served, _tenant: Tenant) -> ModelBody:
    """One model. Names may hold slashes."""
    served = service.served()
    if all(offer.model != model_id for offer in served.offers):
        raise NotFound(f"this server serves {listed(served)}", param="model_id")
    return ModelBody.of(model_id, served, service.started_at)
