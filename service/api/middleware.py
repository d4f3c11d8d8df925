"""Around every HTTP request: its id, its log line, its metrics. Plain ASGI; bodies are not touched."""

from __future__ import annotations

import logging
import random
import re
import time

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.metrics import Distribution, Metrics

log = logging.getLogger("service.access")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})


class Observed:
    """Wraps an application.

    Args:
        app: The application.
        metrics: Where counts go.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._found: dict[tuple[str, str, int], tuple[Counter, Distribution]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        identifier = _request_id(scope)
        logs.request_id.set(identifier)
        logs.session_id.set("")
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", identifier.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            self._record(scope, status, time.monotonic() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        requests, durations = self._counters(route, scope["method"], status)
        requests.inc()
        durations.observe(seconds)
        # Success is counted, and told only to who asks for it: a line costs as much as a step of a small model.
        level = logging.INFO if status >= 400 else logging.DEBUG
        if log.isEnabledFor(level) and route not in _QUIET:
            data = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
            }
            log.log(level, "request", extra={"data": data})

    def _counters(self, route: str, method: str, status: int) -> tuple[Counter, Distribution]:
        found = self._found.get((route, method, status))
        if found is None:
            found = self._found[route, method, status] = (
                self._metrics.requests.labels(route, method, str(status)),
                self._metrics.request_seconds.labels(route),
            )
        return found


def _request_id(scope: Scope) -> str:
    """The caller's `X-Request-Id`, if it is printable and not too long, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    # Told apart, not kept secret.
    return f"{random.getrandbits(64):016x}"
