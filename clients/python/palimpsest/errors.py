"""Errors of the client.

PalimpsestError
├── ConnectionFailed           no answer came; `refused` when the request cannot have reached the server
├── StreamBroken               a stream ended before its last event and could not be taken up in time
│   ├── NotResumable           it cannot be taken up again at all
│   └── SocketClosed           the WebSocket was closed; `code` says why, `reconnect` if to try again
├── UnexpectedAnswer           an answer this client does not understand
└── ApiError                   the server said no   status  code
    ├── InvalidRequest                              400, 415, 422 and other 4xx
    │   ├── TooLarge                                413     too_large
    │   └── NotFound                                404     not_found
    ├── Unauthenticated                             401, 403
    ├── Conflict                                    409     session_busy
    ├── PreconditionFailed                          412     precondition_failed
    ├── RateLimited                                 429
    └── ServerFault                                 5xx
        └── Unavailable                             503     draining, overloaded, worker_lost …
"""

from __future__ import annotations

from collections.abc import Mapping

RECONNECT_CODES = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1015})
"""WebSocket close codes after which a new connection may work."""


class PalimpsestError(Exception):
    """Base of every error this package raises on purpose."""


class ConnectionFailed(PalimpsestError):
    """The server did not answer. With `refused`, nothing of the request can have been applied."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class StreamBroken(PalimpsestError):
    """A stream of events ended without `generation.completed` or an error, and taking it up again failed.

    `generation_id` and `after` are what `Client.resume` wants to try it later; None and -1 where nothing is known.
    """

    def __init__(self, message: str, *, generation_id: str | None = None, after: int = -1) -> None:
        super().__init__(message)
        self.generation_id = generation_id
        self.after = after


class NotResumable(StreamBroken):
    """The server cannot tell the rest of a generation: it left no trace, or is too long ago, or its session is gone."""


class SocketClosed(StreamBroken):
    """The WebSocket is closed. `code` is the close code (1006: the connection was lost)."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code

    @property
    def reconnect(self) -> bool:
        """Whether connecting again may work."""
        return self.code in RECONNECT_CODES


class UnexpectedAnswer(PalimpsestError):
    """The answer lacks what the interface promises: another version, or not a Palimpsest server."""


class ApiError(PalimpsestError):
    """The server answered with an error object.

    `status` is the HTTP status, None for errors inside a stream; `retry_after` is in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after


class InvalidRequest(ApiError):
    """The request cannot be done as it stands; `param` names the field at fault, if one is."""


class TooLarge(InvalidRequest):
    """The body is larger than the server takes in one request."""


class NotFound(InvalidRequest):
    """No such resource for this API key."""


class Unauthenticated(ApiError):
    """The API key is missing, unknown or not allowed to do this."""


class Conflict(ApiError):
    """The session is generating, here or on another server; try again when it has finished."""


class PreconditionFailed(ApiError):
    """The session changed since the ETag given as `if_match` was read."""


class RateLimited(ApiError):
    """A quota is used up; `retry_after` says when to come back."""


class ServerFault(ApiError):
    """A fault of the server's; its log has the details under `request_id`."""


class Unavailable(ServerFault):
    """Draining, overloaded, or starting; the same request may succeed after `retry_after`."""


_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: Unauthenticated,
    403: Unauthenticated,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: TooLarge,
    429: RateLimited,
    503: Unavailable,
}
_BY_CODE: Mapping[str, type[ApiError]] = {
    "not_found": NotFound,
    "too_large": TooLarge,
    "session_busy": Conflict,
    "precondition_failed": PreconditionFailed,
}
_BY_TYPE: Mapping[str, type[ApiError]] = {
    "invalid_request_error": InvalidRequest,
    "authentication_error": Unauthenticated,
    "conflict_error": Conflict,
    "rate_limit_error": RateLimited,
    "unavailable_error": Unavailable,
    "server_error": ServerFault,
}


def error_class(status: int | None, code: str | None, kind: str | None) -> type[ApiError]:
    """The class for an error: by HTTP status where there is one, else by its code, else by its type."""
    if status is not None:
        fallback = InvalidRequest if 400 <= status < 500 else ServerFault
        return _BY_STATUS.get(status, fallback)
    return _BY_CODE.get(code or "") or _BY_TYPE.get(kind or "") or ApiError
