"""Client of Palimpsest, the language-model server whose sessions never run out of context."""

from palimpsest.aio.client import AsyncClient
from palimpsest.client import Client
from palimpsest.errors import (
    ApiError,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    PalimpsestError,
    PreconditionFailed,
    RateLimited,
    ServerFault,
    SocketClosed,
    StreamBroken,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
)
from palimpsest.types import (
    Generation,
    GenerationCompleted,
    GenerationDelta,
    GenerationStarted,
    Memory,
    Message,
    Segment,
    Session,
)

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Generation",
    "GenerationCompleted",
    "GenerationDelta",
    "GenerationStarted",
    "InvalidRequest",
    "Memory",
    "Message",
    "NotFound",
    "PalimpsestError",
    "PreconditionFailed",
    "RateLimited",
    "Segment",
    "ServerFault",
    "Session",
    "SocketClosed",
    "StreamBroken",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
]
