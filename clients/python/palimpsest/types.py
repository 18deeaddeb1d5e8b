"""What the server answers, as frozen records. Fields this version does not know are ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypedDict

FinishReason = Literal["stop", "length", "cancelled"]


class Message(TypedDict):
    """One turn of a conversation, for the model's own chat template."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(TypedDict, total=False):
    """How tokens are chosen. What is left out is the server's default."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None


@dataclass(frozen=True)
class Session:
    """A session without its memory. `position` counts every token taken in; `state_bytes` never
    grows, and is None while the server is still loading its model, or does not serve this one.

    `etag` names this very state of it, for the `if_match` of whatever changes it; only answers about a single
    session carry it.
    """

    id: str
    model: str
    memory: str
    position: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    state_bytes: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None

    @property
    def name(self) -> str | None:
        """The name given to the session, kept in its metadata."""
        return self.metadata.get("name")


@dataclass(frozen=True)
class SessionPage:
    """One page of a list; go on with `after=last_id` while `has_more`."""

    data: tuple[Session, ...]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


@dataclass(frozen=True)
class Segment:
    """What an append did. `tokens` may be 0: the end of a text is held back until its tokens are certain.

    `etag` is the session's behind it; None for a repeat, which changed nothing.
    """

    tokens: int
    position: int
    op_id: str | None
    status: str = "remembered"
    etag: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one generation; `context_tokens` is what the session held when the first was sampled, prompt
    included."""

    prompt_tokens: int
    completion_tokens: int
    context_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithm of a token's probability; `top` has the likeliest tokens at the same place."""

    token: str
    token_id: int
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Generation:
    """A finished generation. `etag` is the session's behind it, where the server tells it."""

    id: str
    session_id: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    position: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    etag: str | None = None


@dataclass(frozen=True)
class GenerationStarted:
    """The prompt is safe and is being read."""

    generation_id: str


@dataclass(frozen=True)
class GenerationDelta:
    """The next piece of text: whole characters."""

    generation_id: str
    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class GenerationCompleted:
    """The last event of a stream."""

    generation: Generation


GenerationEvent = GenerationStarted | GenerationDelta | GenerationCompleted


@dataclass(frozen=True)
class LayerMemory:
    """What one layer remembers beyond the local window."""

    layer: int
    slots: int
    used: int
    kv_heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Remembered:
    """A run of remembered text; `position` is that of its first token in the session."""

    position: int
    text: str


@dataclass(frozen=True)
class Memory:
    """What a session's memory holds. `local_tokens` are exact; older ones live in `state_bytes` of memory."""

    memory: str
    position: int
    state_bytes: int
    folds: int
    local_tokens: int
    layers: tuple[LayerMemory, ...] = ()
    remembered: tuple[Remembered, ...] = ()


@dataclass(frozen=True)
class OfferedMemory:
    """A memory that a model is offered with, and the bytes of every session of it."""

    memory: str
    state_bytes: int


@dataclass(frozen=True)
class Model:
    """A model the server offers. `memory` is the one of sessions that name none, `memories` are all there are."""

    id: str
    memory: str | None = None
    memories: tuple[OfferedMemory, ...] = ()
