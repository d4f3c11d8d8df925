"""Around every HTTP request: its id, its log line, its metrics. Plain ASGI; bodies are not touched."""

from __future__ import annotations

import itertools
import logging
import random
import re
import time
from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.metrics import Count, Distribution, Metrics

log = logging.getLogger("service.access")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PROCESS = f"{random.getrandbits(32):08x}"
_numbers = itertools.count(1)
_QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})


class Answered:
    """Requests that were answered alike.

    Args:
        count: How many.
        durations: Their times.
        level: Level at which the log is told of each; None if it is not.
    """

    __slots__ = ("_count", "_durations", "_level")

    def __init__(self, count: Count, durations: Distribution, level: int | None) -> None:
        self._count = count
        self._durations = durations
        self._level = level

    def count(self, seconds: float) -> bool:
        """Count a request; returns whether the log is to be told.

        Args:
            seconds: From its head to the end of the answer.
        """
        self._count.value += 1
        self._durations.observe(seconds)
        return self.told

    def count_all(self, seconds: Sequence[float]) -> None:
        """Count requests, each as `count` does; the log is to be told of each if `told`."""
        self._count.value += len(seconds)
        self._durations.observe_all(seconds)

    @property
    def told(self) -> bool:
        """Whether the log is to be told of each."""
        return self._level is not None and log.isEnabledFor(self._level)


class Requests:
    """Counts requests and writes their log lines.

    Args:
        metrics: Where counts go.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._found: dict[tuple[str, str, int], Answered] = {}

    def answered(self, route: str, method: str, status: int) -> Answered:
        """The requests of a route, by its template, that were answered with a status."""
        found = self._found.get((route, method, status))
        if found is None:
            found = self._found[route, method, status] = Answered(
                self._metrics.requests.labels(route, method, str(status)),
                self._metrics.request_seconds.labels(route),
                None if route in _QUIET else _level(status),
            )
        return found

    def tell(self, method: str, status: int, seconds: float, path: str, **ids: str) -> None:
        """Write the log line of a request.

        Args:
            method: Its method.
            status: Status of the answer.
            seconds: From its head to the end of the answer.
            path: Its path.
            **ids: Ids, where those at hand are not the request's.
        """
        data = {
            "method": method,
            "path": path,
            "status": status,
            "duration_ms": round(seconds * 1000, 3),
            **ids,
        }
        log.log(_level(status), "request", extra={"data": data})


def _level(status: int) -> int:
    # Success is counted, and told only to who asks for it: a line costs as much as a step of a small model.
    return logging.INFO if status >= 400 else logging.DEBUG


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
            method = scope["method"]
            if self._requests.answered(route, method, status).count(seconds):
                self._requests.tell(method, status, seconds, scope["path"])


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's id of a request, or a new one."""
    return given_id(headers) or new_request_id()


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The caller's `X-Request-Id`, if there is one, it is printable and not too long."""
    for name, value in headers:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return None


def new_request_id() -> str:
    """An id of our own. Told apart from others, also from another process's; not kept secret."""
    return f"{_PROCESS}{next(_numbers):08x}"
