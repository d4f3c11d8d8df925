"""HTTP connections: one system call for what is written in one turn of the event loop, and steps served directly.

uvicorn writes the head and the body of a response apart, and a system call costs as much as a step of a small model.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.api.direct import DirectSteps, Exchange
from service.api.middleware import request_id_of

_STEPS = re.compile(rb"/v1/sessions/([A-Za-z0-9._~-]{1,128})/steps")


class JoinedWrites(asyncio.Transport):
    """A transport that keeps what is written until the turn is over.

    Args:
        transport: Where it goes then.
        loop: The event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._kept: list[Any] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.WriteTransport.write`."""
        if not self._kept:
            self._loop.call_soon(self._flush)
        self._kept.append(data)

    def write_now(self, data: bytes) -> None:
        """Write what is all there will be in this turn."""
        self._flush()
        self._transport.write(data)

    def _flush(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, []
            self._transport.write(kept[0] if len(kept) == 1 else b"".join(kept))

    def close(self) -> None:
        """See `asyncio.BaseTransport.close`."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """See `asyncio.WriteTransport.abort`."""
        self._kept.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport.is_closing`."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.BaseTransport.get_extra_info`."""
        return self._transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See `asyncio.BaseTransport.set_protocol`."""
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See `asyncio.BaseTransport.get_protocol`."""
        return self._transport.get_protocol()

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport.pause_reading`."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport.resume_reading`."""
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport.is_reading`."""
        return self._transport.is_reading()

    def get_write_buffer_size(self) -> int:
        """See `asyncio.WriteTransport.get_write_buffer_size`."""
        return self._transport.get_write_buffer_size() + sum(map(len, self._kept))


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol over joined writes, with steps served directly.

    A request for steps that came whole is answered from here, in a fifth of the time that uvicorn takes to run an
    application for it; any other goes its usual way. A WebSocket that begins as HTTP goes on with joined writes.
    """

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._direct: DirectSteps = config.app.state.direct_steps  # type: ignore[union-attr]
        self._session_id = ""
        # Body so far of a request that may be served directly.
        self._body: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.BaseProtocol.connection_made`."""
        self._joined = JoinedWrites(transport, self.loop)
        super().connection_made(self._joined)

    def write_now(self, data: bytes) -> None:
        """Write the only data of this turn."""
        self._joined.write_now(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol.connection_lost`."""
        if isinstance(self.cycle, _Direct):
            self.cycle.leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol.data_received`."""
        super().data_received(data)
        if self._body is not None:
            # More is to come, and has to be waited for.
            self._go_the_usual_way()

    def on_headers_complete(self) -> None:
        """See `httptools.HttpRequestParser`."""
        match = _STEPS.fullmatch(self.url)
        if match is None or not self._may_be_direct():
            super().on_headers_complete()
            return
        self._session_id = match[1].decode()
        self._body = b""

    def _may_be_direct(self) -> bool:
        return (
            getattr(self.cycle, "response_complete", True)
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
        if self._body is None:
            super().on_message_complete()
            return
        cycle = _Direct(self, request_id_of(self.headers))
        self.cycle, before = cast("RequestResponseCycle", cycle), self.cycle
        if cycle.begin(self._direct, self._session_id, self._body):
            self._body = None
            return
        self.cycle = before
        self._go_the_usual_way()
        super().on_message_complete()

    def _go_the_usual_way(self) -> None:
        body, self._body = self._body, None
        super().on_headers_complete()
        if body:
            super().on_body(body)


class _Direct:
    """A request served directly, where uvicorn has its own."""

    __slots__ = ("_exchange", "_protocol", "_request_id", "keep_alive", "response_complete")

    disconnected = False
    # Nobody waits for it.
    message_event = asyncio.Event()

    def __init__(self, protocol: HttpProtocol, request_id: str) -> None:
        self._protocol = protocol
        self._request_id = request_id
        self._exchange: Exchange | None = None
        self.response_complete = False
        self.keep_alive = True

    def begin(self, direct: DirectSteps, session_id: str, body: bytes) -> bool:
        """Put the step on its way; False when it has to go the usual way."""
        exchange = direct.begin(session_id, body, self._request_id, self._answer)
        self._exchange = exchange
        return exchange is not None

    def leave(self) -> None:
        """The connection was lost."""
        if self._exchange is not None and not self.response_complete:
            self._exchange.leave()

    def _answer(self, status: int, head: dict[str, str], body: bytes) -> None:
        protocol = self._protocol
        self.response_complete = True
        if protocol.transport.is_closing():
            return
        fields = "".join([f"{name}: {value}\r\n" for name, value in head.items()])
        end = "" if self.keep_alive else "connection: close\r\n"
        start = (
            f"content-length: {len(body)}\r\n{fields}{end}x-request-id: {self._request_id}\r\n\r\n"
        )
        protocol.write_now(STATUS_LINE[status] + start.encode() + body)
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()
