"""Bodies of requests."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from server.messages import ChatMessage, SamplingParams

TEN_YEARS = 10 * 366 * 86400
VISIBLE = r"^[!-~]{1,128}$"


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
OperationId = Annotated[str, Field(pattern=VISIBLE, description="1 to 128 visible ASCII characters.")]
MetadataKey = Annotated[Text, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[Text, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Lifetime = Annotated[int, Field(ge=1, le=TEN_YEARS, description="Seconds of disuse until it is deleted.")]
EventNumber = Annotated[int, Field(ge=-1, lt=1 << 31, description="Number of the last event received; -1: none.")]


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
