"""Bodies of answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    Field,
    PlainSerializer,
)

from server.catalog import chosen, find
from server.messages import (
    Appended,
    GenerationCompleted,
    Inspected,
    LayerMemory,
    Ready,
    Remembered,
    SampledLogprobs,
)
from server.pairs import Pair
from server.store.base import Page, SessionRecord


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[AwareDatetime, PlainSerializer(_rfc3339, return_type=str)]


def moment(seconds: float) -> datetime:
    """Seconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


class SessionBody(BaseModel):
    """A session. `state_bytes` is null while no worker has loaded the model, or where it is not served."""

    id: str
    object: Literal["session"] = "session"
    model: str
    memory: str
    position: int
    state_bytes: int | None
    created_at: Moment
    updated_at: Moment
    expires_at: Moment | None
    metadata: dict[str, str]

    @classmethod
    def of(cls, record: SessionRecord, served: Ready | None) -> SessionBody:
        """From a record of the store."""
        offer = find(served, Pair(record.model, record.memory)) if served else None
        return cls(
            id=record.id,
            model=record.model,
            memory=record.memory,
            position=record.position,
            state_bytes=offer.state_bytes if offer else None,
            created_at=moment(record.created_at),
            updated_at=moment(record.updated_at),
            expires_at=None if record.expires_at is None else moment(record.expires_at),
            metadata=dict(record.metadata),
        )


class SessionList(BaseModel):
    """One page of sessions; give `last_id` as `after` for the next."""

    object: Literal["list"] = "list"
    data: list[SessionBody]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, page: Page, served: Ready | None) -> SessionList:
        """From a page of the store."""
        data = [SessionBody.of(record, served) for record in page.records]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=ends[0], last_id=ends[1], has_more=page.has_more)


class DeletedSession(BaseModel):
    """The answer of `DELETE /v1/sessions/{id}`."""

    id: str
    object: Literal["session.deleted"] = "session.deleted"
    deleted: Literal[True] = True


class SegmentBody(BaseModel):
    """What an append did. `tokens` may be 0: the end of a text waits until it is certain how it is cut."""

    object: Literal["segment"] = "segment"
    session_id: str
    op_id: str
    tokens: int
    position: int
    status: Literal["remembered", "journaled"]

    @classmethod
    def of(cls, session_id: str, op_id: str, answer: Appended) -> SegmentBody:
        """From a worker's answer."""
        return cls(
            session_id=session_id,
            op_id=op_id,
            tokens=answer.tokens,
            position=answer.position,
            status=answer.status,
        )


class Usage(BaseModel):
    """Token counts of a generation."""

    prompt_tokens: int
    completion_tokens: int
    context_tokens: int


class GenerationBody(BaseModel):
    """A finished generation. `logprobs` is there if it was asked for and the answer is not a stream."""

    id: str
    object: Literal["generation"] = "generation"
    session_id: str
    text: str
    finish_reason: Literal["stop", "length", "cancelled"]
    usage: Usage
    position: int
    logprobs: list[SampledLogprobs] | None = Field(None, exclude_if=lambda value: value is None)

    @classmethod
    def of(
        cls, session_id: str, event: GenerationCompleted, logprobs: list[SampledLogprobs] | None = None
    ) -> GenerationBody:
        """From the last event of a generation."""
        usage = Usage(
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            context_tokens=event.context_tokens,
        )
        return cls(
            id=event.generation_id,
            session_id=session_id,
            text=event.text,
            finish_reason=event.finish_reason,
            usage=usage,
            position=event.position,
            logprobs=logprobs,
        )


class CancelledGeneration(BaseModel):
    """The answer of `POST /v1/generations/{id}/cancel`: it stops within one step."""

    id: str
    object: Literal["generation.cancelled"] = "generation.cancelled"
    cancelled: Literal[True] = True


class MemoryBody(BaseModel):
    """What a session's memory holds."""

    object: Literal["memory"] = "memory"
    session_id: str
    memory: str
    position: int
    state_bytes: int
    folds: int
    local_tokens: int
    layers: list[LayerMemory]
    remembered: list[Remembered]

    @classmethod
    def of(cls, session_id: str, answer: Inspected) -> MemoryBody:
        """From a worker's answer."""
        return cls(session_id=session_id, **answer.model_dump(exclude={"kind"}))


class OfferedMemory(BaseModel):
    """A memory that a model is offered with, and what a session of it takes."""

    memory: str
    state_bytes: int


class ModelBody(BaseModel):
    """A served model and its memories. `memory` is the one of sessions that name none."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["palimpsest"] = "palimpsest"
    memory: str
    state_bytes: int
    memories: list[OfferedMemory]
    trained_context: int
    parameters: int
    device: str
    dtype: str

    @classmethod
    def of(cls, model: str, served: Ready, created: float) -> ModelBody:
        """From what a worker says of itself; `created` is the start of this server, in seconds."""
        first = chosen(served, model, None)
        memories = [
            OfferedMemory(memory=offer.memory, state_bytes=offer.state_bytes)
            for offer in served.offers
            if offer.model == model
        ]
        about = first.model_dump(exclude={"model", "model_fingerprint"})
        return cls(id=model, created=int(created), memories=memories, device=served.device, dtype=served.dtype, **about)


class ModelList(BaseModel):
    """The served models, that of sessions that name none first."""

    object: Literal["list"] = "list"
    data: list[ModelBody]
    first_id: str | None
    last_id: str | None
    has_more: Literal[False] = False


class ErrorDetail(BaseModel):
    """What went wrong, and what to do about it."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail
