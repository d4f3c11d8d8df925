"""Every error a caller can meet, drawn as one tree. No I/O, no web framework.

Each class carries its HTTP status, a machine-readable code and a title (RFC 9457); the instance carries the detail
and the extension members that help the caller go on (`committed`, `path`, `retry_after_s`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ServiceError(Exception):
    """An error with an answer for the caller.

    Args:
        detail: What happened, in one sentence, naming the thing it happened to.
        **extra: Members of the problem document beside the standard ones.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra

    @property
    def close_code(self) -> int:
        """WebSocket close code, where the error ends a socket: 4000 + the HTTP status (application range)."""
        return 4000 + self.status

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem document."""
        return {
            "type": f"urn:seqserve:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.extra,
        }


class Malformed(ServiceError):
    """The body or frame is not JSON or MessagePack at all."""

    status, code, title = 400, "malformed", "Malformed body"


class UnknownModel(ServiceError):
    """No such model, or no such version of it."""

    status, code, title = 404, "unknown_model", "Unknown model"


class UnknownSession(ServiceError):
    """No such session for this caller."""

    status, code, title = 404, "unknown_session", "Unknown session"


class UnknownRoute(ServiceError):
    """No such path."""

    status, code, title = 404, "unknown_route", "Unknown route"


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"


class SlowBody(ServiceError):
    """The body did not arrive in time."""

    status, code, title = 408, "slow_body", "Request body too slow"


class SlowHead(ServiceError):
    """The head of a request did not arrive in time."""

    status, code, title = 408, "slow_head", "Request head too slow"


class HeadTooLarge(ServiceError):
    """The head of a request is above the limit."""

    status, code, title = 431, "head_too_large", "Request head too large"


class SessionBusy(ServiceError):
    """A step of this session is still in flight."""

    status, code, title = 409, "session_busy", "Session busy"


class WrongSeq(ServiceError):
    """The step is neither the next one nor a retry of the last one."""

    status, code, title = 409, "wrong_seq", "Wrong sequence number"


class SessionExists(ServiceError):
    """The chosen session id is taken by a session of another model."""

    status, code, title = 409, "session_exists", "Session exists"


class SessionFenced(ServiceError):
    """Another replica took the session; nothing was applied here."""

    status, code, title = 409, "session_fenced", "Session moved"


class SessionGone(ServiceError):
    """The session was deleted, expired or evicted; `reason` and `ended_at` say why and when."""

    status, code, title = 410, "session_gone", "Session gone"


class TooLarge(ServiceError):
    """The body, frame or number of inputs is above a stated limit."""

    status, code, title = 413, "too_large", "Too large"

    @property
    def close_code(self) -> int:
        """1009, message too big."""
        return 1009


class Invalid(ServiceError):
    """The request is well formed but not valid; `path` names the field."""

    status, code, title = 422, "invalid", "Invalid request"


class PayloadMismatch(ServiceError):
    """A sequence number was sent again with another payload."""

    status, code, title = 422, "payload_mismatch", "Other payload for the same seq"


class NotStreaming(ServiceError):
    """The model cannot do what was asked of it: keep a session, or generate."""

    status, code, title = 422, "not_supported", "Not supported by this model"


class UpgradeRequired(ServiceError):
    """The path speaks WebSocket only."""

    status, code, title = 426, "upgrade_required", "Upgrade required"
    headers: ClassVar[Mapping[str, str]] = {"Upgrade": "websocket", "Connection": "Upgrade"}


class NonFinite(ServiceError):
    """The model computed NaN or infinity for this row; the step was not applied."""

    status, code, title = 422, "non_finite", "Non-finite result"


class ModelFailed(ServiceError):
    """The model raised; the step was not applied."""

    status, code, title = 500, "model_failed", "Model failed"


class Overloaded(ServiceError):
    """A bounded queue or table is full."""

    status, code, title = 503, "overloaded", "Overloaded"


class ModelNotReady(ServiceError):
    """The model is loading, or was refused at load."""

    status, code, title = 503, "model_not_ready", "Model not ready"


class Draining(ServiceError):
    """This process is shutting down."""

    status, code, title = 503, "draining", "Draining"

    @property
    def close_code(self) -> int:
        """1012, service restart."""
        return 1012


class DeadlineExceeded(ServiceError):
    """The deadline passed before the step ran; it was not applied."""

    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"


class StepCancelled(Exception):
    """A queued step was dropped because its caller left. Nobody waits for an answer."""
