"""HTTP connections: one system call for what is written in one turn of the event loop, steps served directly, limits.

uvicorn writes the head and the body of a response apart, and a system call costs as much as a step of a small model.
Nor has it a deadline for a request to arrive, a bound on its head, or one on connections that is told before the
request was read.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api import http
from service.api.context import Context
from service.api.direct import DirectSteps, Exchange
from service.api.joined import JoinedWrites
from service.api.middleware import given_id, new_request_id
from service.errors import HeadTooLarge, Overloaded, ServiceError, SlowHead

_STEPS = re.compile(rb"/v1/sessions/([A-Za-z0-9._~-]{1,128})/steps")
_LINE_START, _LINE_END = b"POST /v1/sessions/", b"/steps HTTP/1.1\r\n"
_HEAD_END = b"\r\n\r\n"
_MAX_HEAD_BYTES = 65536
# Heads that a connection remembers: requests for steps differ in the digits of their length.
_HEADS = 8
_MAX_REMEMBERED_BYTES = 1024
_OK = STATUS_LINE[200].decode()


class _Head(NamedTuple):
    """What the head of a request for steps said, whatever the session."""

    length: int
    """Bytes of the body."""
    request_id: str | None


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol over joined writes, with steps served directly and limits of its own.

    A request for steps that came whole is answered from here, in a fifth of the time that uvicorn takes to run an
    application for it; any other goes its usual way. A WebSocket that begins as HTTP goes on with joined writes.

    Clients send the same head again and again. A head that the parser has taken before, byte by byte the same but for
    the id of a session that is at hand, and that tells the length of the body that came with it, means the same again;
    so it is not parsed once more.

    A request has to arrive within `request_timeout_s`; a body that the application reads has a deadline of its own
    (`http.read`). A client that does not read what it asked for is read no further, and cut off after the same time.
    """

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        state = config.app.state  # type: ignore[union-attr]
        self._direct: DirectSteps = state.direct_steps
        self._context: Context = state.context
        self._timeout_s: float = self._context.settings.request_timeout_s
        self._keep_alive_s: float = self._context.settings.keep_alive_s
        self._exchange: Exchange | None = None
        # uvicorn's, or our exchange in its place.
        self.cycle: Any = None
        self._session_id = ""
        # Body so far of a request that may be served directly.
        self._body: bytes | None = None
        # Where the parser is: between two messages, or in one whose head is complete or not.
        self._between = True
        self._head_done = False
        self._head_bytes = 0
        # Messages begun in the data at hand; the head of one that was served directly; those known.
        self._begun = 0
        self._served: _Head | None = None
        self._heads: dict[bytes, _Head] = {}
        # Time of the last change: connected, message begun, response complete, writing paused or resumed.
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.BaseProtocol.connection_made`."""
        self._joined = JoinedWrites(transport, self.loop)
        super().connection_made(self._joined)
        limit = self._context.settings.max_connections
        if len(self.connections) > limit:
            self._refuse(Overloaded(f"{limit} connections are open", retry_after_s=1))
            return
        self._since = self.loop.time()
        self._timer = self.loop.call_later(self._look_every_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol.connection_lost`."""
        self._leave()
        super().connection_lost(exc)
        self._forget()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol.pause_writing`."""
        super().pause_writing()
        self._since = self.loop.time()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol.resume_writing`."""
        super().resume_writing()
        self._since = self.loop.time()
        if not self.pipeline:
            self.flow.resume_reading()

    def handle_websocket_upgrade(self) -> None:
        """The connection belongs to another protocol from here on, which alone hears when it is lost."""
        self._leave()
        super().handle_websocket_upgrade()
        self._forget()

    def _leave(self) -> None:
        """There is nobody to answer any more."""
        self._stop_looking()
        if self._exchange is not None:
            self._exchange.leave()

    def _forget(self) -> None:
        """Let go of what knows this protocol, so that it goes now and does not wait for the collector."""
        self._exchange = self.cycle = None
        self.parser = None  # type: ignore[assignment]

    # Deadlines. One timer a connection, that finds out when it is called whether anything is due.

    @property
    def _look_every_s(self) -> float:
        return min(self._timeout_s, self._keep_alive_s)

    def _look(self) -> None:
        now = self.loop.time()
        left_s = self._allowed_s() - (now - self._since)
        if left_s > 0:
            self._timer = self.loop.call_later(min(left_s, self._look_every_s), self._look)
        elif self.flow.write_paused:
            self.transport.abort()
        elif self._between or self._head_done:
            self.transport.close()
        else:
            detail = f"the head of the request did not arrive within {self._timeout_s:g} s"
            self._refuse(SlowHead(detail))

    def _allowed_s(self) -> float:
        """Seconds that what is awaited of the client may take from `_since` on."""
        if self.flow.write_paused:
            return self._timeout_s
        if self.cycle is not None and not self.cycle.response_complete:
            # It waits for us.
            return float("inf")
        if self._between and self.cycle is not None:
            return self._keep_alive_s
        return self._timeout_s

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: ServiceError) -> None:
        """Answer what is no request yet, and close."""
        self._stop_looking()
        self._context.metrics.rejected.labels(error.code).inc()
        problem = http.Problem(error)
        identifier = new_request_id()
        body = problem.body(identifier)
        self.transport.write(_response(problem.status, identifier, problem.fields, body, False))
        self.transport.close()

    # Requests.

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol.data_received`."""
        exchange = self._exchange
        between = self._between
        if exchange is not None and between and self.cycle is exchange:
            line, at = _parts(data)
            head = self._heads.get(data[line:at])
            if (
                head is not None
                and data.startswith(_LINE_START)
                and len(data) - at == head.length
                and exchange.response_complete
                and not self.flow.write_paused
                and exchange.begin(
                    # One that no session has goes the usual way.
                    data[len(_LINE_START) : line].decode("latin-1"),
                    data[at:],
                    head.request_id or new_request_id(),
                )
            ):
                return
        self._begun = 0
        self._served = None
        super().data_received(data)
        if self._body is not None:
            # More is to come, and has to be waited for.
            self._go_the_usual_way()
        elif between:
            self._remember(data)
        if not (self._between or self._head_done):
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                limit = _MAX_HEAD_BYTES
                self._refuse(HeadTooLarge(f"the head has more than {limit} bytes", limit=limit))

    def _remember(self, data: bytes) -> None:
        """Remember the head of data that is one request, served directly, and nothing else."""
        head = self._served
        line, at = _parts(data)
        if (
            head is not None
            # The id ends in the first line, not in what follows.
            and data.startswith(_LINE_START)
            and line == len(_LINE_START) + len(self._session_id)
            and self._begun == 1
            and self._between
            and at <= _MAX_REMEMBERED_BYTES
            and len(data) - at == head.length
            # No line ends otherwise, none is folded, none is empty: so the head does end there.
            and data.count(b"\n", 0, at) == len(self.headers) + 2
            and not any(name == b"transfer-encoding" for name, _ in self.headers)
        ):
            if len(self._heads) == _HEADS:
                self._heads.clear()
            self._heads[data[line:at]] = head

    def on_message_begin(self) -> None:
        """See `httptools.HttpRequestParser`."""
        self._between = self._head_done = False
        self._head_bytes = 0
        self._begun += 1
        self._since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See `httptools.HttpRequestParser`."""
        self._head_done = True
        match = _STEPS.fullmatch(self.url)
        if match is None or not self._may_be_direct():
            super().on_headers_complete()
            return
        self._session_id = match[1].decode()
        self._body = b""

    def _may_be_direct(self) -> bool:
        return (
            (self.cycle is None or self.cycle.response_complete)
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and not self.expect_100_continue
            and not self.flow.write_paused
        )

    def on_body(self, body: bytes) -> None:
        """See `httptools.HttpRequestParser`."""
        if self._body is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """See `httptools.HttpRequestParser`."""
        self._between = True
        body = self._body
        if body is None:
            super().on_message_complete()
            return
        exchange = self._exchange
        if exchange is None:
            exchange = self._exchange = Exchange(self._direct, self._answer)
        given = given_id(self.headers)
        self.cycle, before = exchange, self.cycle
        if exchange.begin(self._session_id, body, given or new_request_id()):
            self._body = None
            self._served = _Head(len(body), given)
            return
        self.cycle = before
        self._go_the_usual_way()
        super().on_message_complete()

    def _go_the_usual_way(self) -> None:
        body, self._body = self._body, None
        super().on_headers_complete()
        if body:
            super().on_body(body)

    # Responses.

    def _answer(self, status: int, request_id: str, fields: str, body: bytes) -> None:
        """Write the response of the exchange."""
        joined = self._joined
        transport = joined.transport
        if transport.is_closing():
            return
        assert self._exchange is not None
        keep_alive = self._exchange.keep_alive
        data = _response(status, request_id, fields, body, keep_alive)
        if joined.kept:
            joined.write(data)
        else:
            transport.write(data)
        if not keep_alive:
            joined.close()
        elif self.pipeline or self.flow.read_paused:
            self.on_response_complete()
        else:
            # As there, where there is nothing to do.
            self.server_state.total_requests += 1
            self._since = self.loop.time()

    def on_response_complete(self) -> None:
        """As uvicorn does, but for its timer: see `_look`."""
        self.server_state.total_requests += 1
        self._since = self.loop.time()
        if self.transport.is_closing():
            return
        flow = self.flow
        if flow.read_paused and not flow.write_paused:
            flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)


def _parts(data: bytes) -> tuple[int, int]:
    """Where the id of the session in the head of a request for steps ends, and the head."""
    return data.find(_LINE_END), data.find(_HEAD_END) + 4


def _response(status: int, request_id: str, fields: str, body: bytes, keep_alive: bool) -> bytes:
    start = _OK if status == 200 else STATUS_LINE[status].decode()
    end = "" if keep_alive else "connection: close\r\n"
    head = f"{start}content-length: {len(body)}\r\n{fields}{end}x-request-id: {request_id}\r\n\r\n"
    return head.encode() + body
