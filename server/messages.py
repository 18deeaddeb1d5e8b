"""Every message between the service and a worker: small frozen records, packed with msgpack.

service → worker   Append, Generate, Resume, Cancel, Inspect, Check, Forget, Measure, Drain
worker → service   Ready, Appended, GenerationStarted, GenerationDelta, GenerationCompleted, Inspected, Measured, Done, Failed

Each travels in an envelope `[request_id, message]`; every answer carries the request's id. `Generate` is answered by one
`GenerationStarted`, any number of `GenerationDelta`, then `GenerationCompleted` or `Failed`, and so is `Resume`, from the event
it asks for; the others by one answer. The events of a generation are numbered: 0 is `GenerationStarted`, a delta's number is its
`index` plus one, and `GenerationCompleted` comes last.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from server.errors import FAMILIES, Internal, ServerError
from server.pairs import Pair


class Message(BaseModel):
    """Base of all records here: frozen, and strict about fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChatMessage(Message):
    """One turn of a conversation, for the model's own chat template."""

    role: Literal["system", "user", "assistant"]
    content: str


class SamplingParams(Message):
    """How the next token is chosen. Temperature 0 is greedy and ignores the rest of the distribution settings."""

    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


class Append(Message):
    """Take text, or chat messages, into a session. Exactly one of `text` and `messages` is set."""

    kind: Literal["append"] = "append"
    session_id: str
    text: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    op_id: str | None = None
    wait: Literal["memory", "journal"] = "memory"
    if_match: frozenset[str] | None = None


class Generate(Message):
    """Continue a session, after an optional prompt or chat messages. `remember=False` leaves no trace.

    With an `op_id` that was used before, the events are those of the generation it began then, under that one's id: told again as
    far as it got, and gone on with if it broke off.
    """

    kind: Literal["generate"] = "generate"
    session_id: str
    generation_id: str
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    sampling: SamplingParams = SamplingParams()
    remember: bool = True
    op_id: str | None = None
    if_match: frozenset[str] | None = None


class Resume(Message):
    """Tell a remembered generation again from behind event number `after` (-1: from its start), and go on with it if it broke off.

    It takes the place of whoever was told before. Where the session has moved on since, the generation ends as cancelled.
    """

    kind: Literal["resume"] = "resume"
    session_id: str
    generation_id: str
    after: int = -1


class Cancel(Message):
    """Stop a generation within one step. Unknown ids are answered `Done(found=False)`.

    With `listener`, the id of the request that was answered with events, nobody listens to those any more: whatever generation it
    was told breaks off, unless somebody else has taken it up, and may be resumed if it is remembered.
    """

    kind: Literal["cancel"] = "cancel"
    session_id: str
    generation_id: str
    listener: int | None = None


class Inspect(Message):
    """Report what a session's memory holds."""

    kind: Literal["inspect"] = "inspect"
    session_id: str


class Check(Message):
    """Whether a saved state from outside may be loaded: whole, of that model and memory, its numbers finite, `tail` in the
    vocabulary. Answered by `Done`, or by `Failed` with `InvalidRequest`, which says what is wrong."""

    kind: Literal["check"] = "check"
    session_id: str
    model: str
    memory: str
    position: int
    state: bytes | None
    tail: tuple[int, ...]


class Forget(Message):
    """The session was deleted: drop it from residency, stop what runs for it, write nothing more."""

    kind: Literal["forget"] = "forget"
    session_id: str


class Measure(Message):
    """Report the worker's own figures."""

    kind: Literal["measure"] = "measure"


class Drain(Message):
    """Take no new work, let running generations finish until `seconds` have passed, snapshot everything, exit."""

    kind: Literal["drain"] = "drain"
    seconds: float


class Offered(Message):
    """A pair that a worker serves; `state_bytes` is what each session of it takes."""

    model: str
    model_fingerprint: str
    memory: str
    state_bytes: int
    trained_context: int
    parameters: int

    @property
    def pair(self) -> Pair:
        """The names of both."""
        return Pair(self.model, self.memory)


class Ready(Message):
    """The worker has loaded its models and takes requests. Sent once, unasked, with request id 0.

    `offers` are the pairs that it serves, the default first; each is there once. `places` are the sessions of all of them that its
    memory holds at once.
    """

    kind: Literal["ready"] = "ready"
    worker: int
    offers: Annotated[tuple[Offered, ...], Field(min_length=1)]
    places: int
    device: str
    dtype: str
    kernels: Literal["native", "torch"]
    """What attends to long texts: our own kernel, or torch's where ours was not built or the processor lacks the instructions."""


class Appended(Message):
    """`tokens` is how far this operation moved `position`; `applied` is False when `op_id` had been seen before."""

    kind: Literal["appended"] = "appended"
    op_id: str | None
    tokens: int
    position: int
    status: Literal["remembered", "journaled"]
    applied: bool
    state_bytes: int
    etag: str | None = None
    """The session's behind this append, also in the answer to a repeat."""


class GenerationStarted(Message):
    """The prompt is journaled and waits for, or is in, prefill."""

    kind: Literal["generation.started"] = "generation.started"
    generation_id: str
    prompt_tokens: int


class TokenLogprob(Message):
    """Natural logarithm of a token's probability before temperature and filters."""

    token: str
    token_id: int
    logprob: float


class SampledLogprobs(TokenLogprob):
    """The sampled token, and the most likely ones at its place, most likely first."""

    top: tuple[TokenLogprob, ...] = ()


class GenerationDelta(Message):
    """Text that became certain in one step: whole UTF-8 characters, never part of a stop string."""

    kind: Literal["generation.delta"] = "generation.delta"
    generation_id: str
    index: int
    text: str
    logprobs: tuple[SampledLogprobs, ...] | None = None


class GenerationCompleted(Message):
    """The last event of a generation; `text` is all of its deltas together."""

    kind: Literal["generation.completed"] = "generation.completed"
    generation_id: str
    text: str
    finish_reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    completion_tokens: int
    context_tokens: int
    position: int
    etag: str | None = None
    """The session's behind the generation; None where it did not change it, or is told again."""


class Remembered(Message):
    """A run of remembered text: `position` is that of its first token in the session."""

    position: int
    text: str


class LayerMemory(Message):
    """What one layer's memory holds beyond the local window."""

    layer: int
    kv_heads: tuple[int, ...]
    slots: int
    used: int


class Inspected(Message):
    """`folds` counts completed folds; `local_tokens` are exact, everything older lives in the fixed-size memory."""

    kind: Literal["inspected"] = "inspected"
    memory: str
    position: int
    state_bytes: int
    folds: int
    local_tokens: int
    layers: tuple[LayerMemory, ...]
    remembered: tuple[Remembered, ...]


class Point(Message):
    """One sample of a family: its name has the suffix that the kind of family gives it."""

    name: str
    labels: dict[str, str]
    value: float


class Family(Message):
    """Samples of one name, as Prometheus has them; `type` is one of its kinds."""

    name: str
    documentation: str
    type: str
    points: tuple[Point, ...]


class Measured(Message):
    """A worker's figures."""

    kind: Literal["measured"] = "measured"
    families: tuple[Family, ...]


class Done(Message):
    """The answer of Cancel, Check, Forget and Drain."""

    kind: Literal["done"] = "done"
    found: bool = True


class Failed(Message):
    """A `ServerError` on its way to the caller, named by its class."""

    kind: Literal["failed"] = "failed"
    family: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """Pack an error. Errors that are not ours become `Internal` without their text, which could hold a prompt."""
        if not isinstance(error, ServerError):
            error = Internal("internal error; the server's log has it under this request's id")
        return cls(
            family=type(error).__name__,
            message=error.message,
            param=error.param,
            code=error.code,
            retry_after=error.retry_after,
        )

    def error(self) -> ServerError:
        """The error again, ready to raise."""
        family = FAMILIES.get(self.family, Internal)
        return family(self.message, param=self.param, code=self.code, retry_after=self.retry_after)


Request = Append | Generate | Resume | Cancel | Inspect | Check | Forget | Measure | Drain
Answer = (
    Ready | Appended | GenerationStarted | GenerationDelta | GenerationCompleted | Inspected | Measured | Done | Failed
)
GenerationEvent = GenerationStarted | GenerationDelta | GenerationCompleted

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="kind")])


def pack(request_id: int, message: Request | Answer) -> bytes:
    """One envelope as bytes."""
    return msgpack.packb([request_id, message.model_dump()], default=sorted)  # type: ignore[no-any-return]  # sets as lists


def unpack_request(frame: bytes) -> tuple[int, Request]:
    """Read an envelope that the service sent."""
    request_id, fields = msgpack.unpackb(frame)
    return request_id, _REQUEST.validate_python(fields)


def unpack_answer(frame: bytes) -> tuple[int, Answer]:
    """Read an envelope that a worker sent."""
    request_id, fields = msgpack.unpackb(frame)
    return request_id, _ANSWER.validate_python(fields)
