"""Bodies of requests and answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from server.catalog import chosen, find
from server.messages import (
    Appended,
    ChatMessage,
    GenerationCompleted,
    Inspected,
    LayerMemory,
    Ready,
    Remembered,
    SampledLogprobs,
    SamplingParams,
)
from server.pairs import Pair
from server.store.base import Page, SessionRecord

TEN_YEARS = 10 * 366 * 86400
VISIBLE = r"^[!-~]{1,128}$"


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair at character {error.start}") from None
    return text


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Text = Annotated[str, AfterValidator(_encodable)]
OperationId = Annotated[str, Field(pattern=VISIBLE, description="1 to 128 visible ASCII characters.")]
MetadataKey = Annotated[Text, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[Text, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Lifetime = Annotated[int, Field(ge=1, le=TEN_YEARS, description="Seconds of disuse until it is deleted.")]
EventNumber = Annotated[int, Field(ge=-1, lt=1 << 31, description="Number of the last event received; -1: none.")]
Moment = Annotated[AwareDatetime, PlainSerializer(_rfc3339, return_type=str)]


class RequestBody(BaseModel):
    """Base of what clients send: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class MessageBody(RequestBody):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


Messages = Annotated[list[MessageBody], Field(min_length=1)]


class CreateSession(RequestBody):
    """`POST /v1/sessions`. `model` and `memory`, if named, must be a pair that is served."""

    model: str | None = None
    memory: str | None = None
    system: Annotated[Text, Field(min_length=1)] | None = None
    metadata: Metadata = Field(default_factory=dict)
    ttl_seconds: Lifetime | None = None
    op_id: OperationId | None = None


class ForkSession(RequestBody):
    """`POST /v1/sessions/{id}/fork`. A field that is left out is as the parent has it."""

    metadata: Metadata = Field(default_factory=dict)
    ttl_seconds: Lifetime | None = None
    op_id: OperationId | None = None


class PatchSession(RequestBody):
    """`PATCH /v1/sessions/{id}`. A field that is left out stays; `metadata` replaces all of it."""

    metadata: Metadata = Field(default_factory=dict)
    ttl_seconds: Lifetime | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing to change: give metadata, ttl_seconds, or both")
        return self


class AppendBody(RequestBody):
    """`POST /v1/sessions/{id}/segments`: text or messages."""

    text: Annotated[Text, Field(min_length=1)] | None = None
    messages: Messages | None = None
    op_id: OperationId | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        return self


class GenerateBody(RequestBody):
    """`POST /v1/sessions/{id}/generate`. Without prompt and messages the session goes on as it stands."""

    prompt: Annotated[Text, Field(min_length=1)] | None = None
    messages: Messages | None = None
    max_tokens: Annotated[int, Field(ge=1)] = SamplingParams().max_tokens
    temperature: Annotated[float, Field(ge=0, le=2)] = SamplingParams().temperature
    top_p: Annotated[float, Field(gt=0, le=1)] = SamplingParams().top_p
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] = SamplingParams().top_k
    min_p: Annotated[float, Field(ge=0, le=1)] = SamplingParams().min_p
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = SamplingParams().repetition_penalty
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Annotated[list[Annotated[Text, Field(min_length=1, max_length=256)]], Field(max_length=8)] = Field(
        default_factory=list, description="Up to 8 strings; one string alone is taken too."
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool = False
    remember: bool = True
    op_id: OperationId | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.prompt is not None and self.messages is not None:
            raise ValueError("give prompt or messages, not both")
        return self

    def sampling(self) -> SamplingParams:
        """The part that says how tokens are chosen."""
        names = SamplingParams.model_fields.keys() - {"stop"}
        return SamplingParams(stop=tuple(self.stop), **{name: getattr(self, name) for name in names})


def chat(messages: list[MessageBody] | None) -> tuple[ChatMessage, ...] | None:
    """Messages of a body as the workers take them."""
    if messages is None:
        return None
    return tuple(ChatMessage(role=message.role, content=message.content) for message in messages)


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
