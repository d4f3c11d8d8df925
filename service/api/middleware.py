"""Around every HTTP request: its id, its log line, its metrics. Plain ASGI; bodies are not touched."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterable

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.metrics import Distribution, Metrics

log = logging.getLogger("service.access")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})


class Requests:
    """Counts requests and writes their log lines.

    Args:
        metrics: Where counts go.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._found: dict[tuple[str, str, int], tuple[Counter, Distribution]] = {}

    def record(
        self, route: str, method: str, status: int, seconds: float, path: str, **ids: str
    ) -> None:
        """Note a request that was answered.

        Args:
            route: Template of its path.
            method: Its method.
            status: Status of the answer.
            seconds: From its head to the end of the answer.
            path: Its path.
            **ids: Ids for the log line, where those at hand are not the request's.
        """
        requests, durations = self._counters(route, method, status)
        requests.inc()
        durations.observe(seconds)
        # Success is counted, and told only to who asks for it: a line costs as much as a step of a small model.
        level = logging.INFO if status >= 400 else logging.DEBUG
        if log.isEnabledFor(level) and route not in _QUIET:
            data = {
                "method": method,
                "path": path,
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                **ids,
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


class Observed:
    """Wraps an application.

    Args:
        app: The application.
        requests: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        identifier = request_id_of(scope["headers"])
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
            route = getattr(scope.get("route"), "path", "unmatched")
            seconds = time.monotonic() - started
            self._requests.record(route, scope["method"], status, seconds, scope["path"])


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's `X-Request-Id`, if it is printable and not too long, else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    # Told apart, not kept secret.
    return f"{random.getrandbits(64):016x}"
