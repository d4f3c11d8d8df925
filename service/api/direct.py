"""Steps over HTTP without a task for each request: read, queued and answered by callbacks of the HTTP protocol.

This is the route `POST /v1/sessions/{session}/steps` for the case that counts: a session at hand, and a request that
came whole and can be read. Whatever is out of the ordinary goes to the route itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from service.api import http
from service.api.context import TENANT, Context
from service.api.middleware import Requests
from service.api.schema import StepsRequest
from service.api.stepping import Prepared, prepare, steps_answer
from service.errors import ServiceError
from service.sessions.session import Session
from service.sessions.table import Applied, Step

log = logging.getLogger(__name__)

ROUTE = "/v1/sessions/{session}/steps"

OnAnswer = Callable[[int, dict[str, str], bytes], None]
"""Takes the status, the fields of the head and the body of a response."""

_JSON = {"content-type": "application/json"}
_read = msgspec.json.Decoder(StepsRequest).decode
_write = msgspec.json.Encoder().encode


class DirectSteps:
    """The route, by callbacks.

    Args:
        context: The service.
        requests: Where requests are counted.
    """

    def __init__(self, context: Context, requests: Requests) -> None:
        self.context = context
        self.requests = requests

    def begin(
        self, session_id: str, body: bytes, request_id: str, on_answer: OnAnswer
    ) -> Exchange | None:
        """Begin to serve a request.

        Args:
            session_id: From its path.
            body: All of it.
            request_id: Id of the request.
            on_answer: Called with the response, unless the caller left; perhaps before this returns.

        Returns:
            The exchange, to be told when the caller leaves; None for a request that has to go the usual way.
        """
        context = self.context
        if len(body) > context.settings.max_body_bytes or context.shutdown.began.is_set():
            return None
        session = context.sessions.at_hand(session_id, TENANT)
        if session is None:
            return None
        try:
            request = _read(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        exchange = Exchange(self, request_id, on_answer)
        exchange.begin(session, request)
        return exchange


class Exchange:
    """One request and its answer.

    Args:
        direct: Whose.
        request_id: Id of the request.
        on_answer: Called with the response.
    """

    __slots__ = (
        "_direct",
        "_on_answer",
        "_prepared",
        "_request_id",
        "_session_id",
        "_started",
        "_step",
    )

    def __init__(self, direct: DirectSteps, request_id: str, on_answer: OnAnswer) -> None:
        self._direct = direct
        self._request_id = request_id
        self._on_answer = on_answer
        self._started = time.monotonic()
        self._session_id = ""
        self._prepared: Prepared | None = None
        self._step: Step | None = None

    def begin(self, session: Session, request: StepsRequest) -> None:
        """Put the step on its way."""
        context = self._direct.context
        self._session_id = session.identity.id
        try:
            prepared = self._prepared = prepare(
                context, session, request.inputs, request.parameters, request.timeout_s
            )
            self._step = context.sessions.begin(
                session, prepared.chunk, prepared.wanted, request.seq, self._ended
            )
        except Exception as error:
            # Of the parser's callbacks none may raise: it would take that for a fault of the request.
            self._fail(error)

    def leave(self) -> None:
        """The caller left."""
        if self._step is not None:
            self._step.leave()
        self._record(http.CLIENT_LEFT)

    def _ended(self, outcome: Applied | Exception) -> None:
        if isinstance(outcome, Exception):
            self._fail(outcome)
            return
        assert self._prepared is not None
        try:
            body = _write(steps_answer(self._session_id, self._prepared, outcome))
        except Exception as error:
            # A fault of ours; the caller gets an answer all the same.
            self._fail(error)
            return
        self._answer(200, _JSON, body)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, ServiceError):
            data = {"request_id": self._request_id, "session": self._session_id}
            log.error("steps failed", exc_info=error, extra={"data": data})
            error = http.fault()
        self._direct.context.metrics.rejected.labels(error.code).inc()
        self._answer(*http.problem_parts(error, self._request_id))

    def _answer(self, status: int, head: dict[str, str], body: bytes) -> None:
        self._record(status)
        self._on_answer(status, head, body)

    def _record(self, status: int) -> None:
        seconds = time.monotonic() - self._started
        path = f"/v1/sessions/{self._session_id}/steps"
        ids = {"request_id": self._request_id, "session": self._session_id}
        self._direct.requests.record(ROUTE, "POST", status, seconds, path, **ids)
