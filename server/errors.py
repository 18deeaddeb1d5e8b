"""Errors the server answers with.

ServerError                      status  code
├── InvalidRequest               422     invalid_request (or a narrower code)
│   └── OperationMismatch        422     op_id_reused
├── MalformedBody                400     malformed_body
├── ModelNotServed               400     model_not_served
├── Unauthenticated              401     unauthenticated
├── NotFound                     404     not_found
├── MethodNotAllowed             405     method_not_allowed
├── SessionBusy                  409     session_busy           Retry-After
├── PreconditionFailed           412     precondition_failed
├── TooLarge                     413     too_large
├── WrongMediaType               415     wrong_media_type
├── QuotaExceeded                429     quota_exceeded         Retry-After
├── StateRefused                 500     state_refused          saved state that must not be loaded
├── Internal                     500     internal_error
└── Unavailable                  503     unavailable            Retry-After
    ├── WorkerLost               503     worker_lost            Retry-After
    ├── Draining                 503     draining               Retry-After
    ├── Overloaded               503     overloaded             Retry-After
    ├── StaleLease               503     stale_lease            Retry-After
    ├── SessionHeld              503     session_held           Retry-After
    └── StoreUnavailable         503     store_unavailable      Retry-After
"""

from __future__ import annotations

from typing import ClassVar


class ServerError(Exception):
    """Base of every error a caller may see. `message` says what to do about it."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    default_retry_after: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after = retry_after if retry_after is not None else self.default_retry_after

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error object of docs/api.md: `{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ServerError):
    """The request is well formed but asks for something that cannot be done."""

    status = 422
    type = "invalid_request_error"
    default_code = "invalid_request"


class OperationMismatch(InvalidRequest):
    """An operation id was used before with another body."""

    default_code = "op_id_reused"


class MalformedBody(ServerError):
    """The body is not what its content type promises."""

    status = 400
    type = "invalid_request_error"
    default_code = "malformed_body"


class ModelNotServed(ServerError):
    """This server does not offer the model or the memory: the text lists what it does. Another one on the same store may."""

    status = 400
    type = "invalid_request_error"
    default_code = "model_not_served"


class Unauthenticated(ServerError):
    """No API key, or one that is not known."""

    status = 401
    type = "authentication_error"
    default_code = "unauthenticated"


class MethodNotAllowed(ServerError):
    """The path exists, but not for this method."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class NotFound(ServerError):
    """No such resource, or it is another tenant's."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class SessionBusy(ServerError):
    """The session is generating; try again when it has finished."""

    status = 409
    type = "conflict_error"
    default_code = "session_busy"
    default_retry_after = 1.0


class PreconditionFailed(ServerError):
    """`If-Match` names a version that is no longer the newest."""

    status = 412
    type = "conflict_error"
    default_code = "precondition_failed"


class TooLarge(ServerError):
    """The body is larger than this endpoint takes."""

    status = 413
    type = "invalid_request_error"
    default_code = "too_large"


class WrongMediaType(ServerError):
    """The content type is not one this endpoint takes."""

    status = 415
    type = "invalid_request_error"
    default_code = "wrong_media_type"


class QuotaExceeded(ServerError):
    """The tenant has as much under way as it may have."""

    status = 429
    type = "rate_limit_error"
    default_code = "quota_exceeded"
    default_retry_after = 1.0


class StateRefused(ServerError):
    """A saved state is damaged or was made by another model or memory."""

    default_code = "state_refused"


class Internal(ServerError):
    """A fault of ours; the log has it under the request id."""


class Unavailable(ServerError):
    """Nothing was lost; the same request may succeed after `Retry-After`."""

    status = 503
    type = "unavailable_error"
    default_code = "unavailable"
    default_retry_after = 1.0


class WorkerLost(Unavailable):
    """The worker died and is being restarted. What was acknowledged is in the store."""

    default_code = "worker_lost"


class Draining(Unavailable):
    """The server is shutting down; reconnect to the one that replaces it."""

    default_code = "draining"
    default_retry_after = 5.0


class Overloaded(Unavailable):
    """Every place in the queue is taken."""

    default_code = "overloaded"
    default_retry_after = 2.0


class StaleLease(Unavailable):
    """Another worker has taken the session over; this writer's fencing number is too old."""

    default_code = "stale_lease"


class SessionHeld(Unavailable):
    """Another server holds the session and does not answer; when its lease ends, anybody may take over."""

    default_code = "session_held"


class StoreUnavailable(Unavailable):
    """The store did not answer, or refused to write."""

    default_code = "store_unavailable"


def _families(root: type[ServerError]) -> dict[str, type[ServerError]]:
    known = {root.__name__: root}
    for child in root.__subclasses__():
        known |= _families(child)
    return known


FAMILIES: dict[str, type[ServerError]] = _families(ServerError)
"""Class name to class: how an error is named when it crosses from a worker to the HTTP process."""
