"""WebSocket connections: whole messages to a callback, and messages out without waiting.

uvicorn hands messages over by a queue and a task, and pauses the connection after each. The handshake, what ends a
connection and what keeps it alive are left to it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

_EXTENSION = "seqserve.protocol"
# First byte of a message that is one frame (RFC 6455, section 5.2).
_TEXT, _BINARY = 0x81, 0x82


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which gives messages to a reader once there is one."""

    _reader: _Reader | None = None

    def handle_connect(self, event: Request) -> None:
        """See uvicorn; the application finds the protocol in its scope."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            # The task that serves the connection has not begun yet.
            cast("dict[str, Any]", self.scope["extensions"])[_EXTENSION] = self

    def read(
        self,
        on_message: Callable[[str | bytes], None],
        on_writable: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        """Give messages to a callback from now on; the application must not receive any more.

        Args:
            on_message: Called with each message, text or binary.
            on_writable: Called when `writable` changes: whether what was sent goes out, or the client does not read it.
            on_end: Called when nothing more will come, perhaps more than once.
        """
        self._reader = _Reader(on_message, on_writable, on_end)
        waiting, self.queue = self.queue, cast(Any, self._reader)
        # uvicorn pauses after every message unless it has already; here the reader says when.
        self.read_paused = True
        while not waiting.empty():
            self._reader.put_nowait(cast(Any, waiting.get_nowait()))
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol.connection_lost`."""
        super().connection_lost(exc)
        # Who reads knows this protocol, and a parser that waits for more knows itself; so they go now and do not wait
        # for the collector.
        self.conn.parser.close()
        if self._reader is not None:
            self._reader = None
            self.queue = asyncio.Queue()

    def pause(self) -> None:
        """Leave what comes unread."""
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self.transport.resume_reading()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol.pause_writing`."""
        super().pause_writing()
        if self._reader is not None:
            self._reader.on_writable()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol.resume_writing`."""
        super().resume_writing()
        if self._reader is not None:
            self._reader.on_writable()

    def write(self, data: bytes, *, binary: bool) -> None:
        """Send a message at once; dropped when the connection is ending.

        What the client does not read is kept: see `writable`.
        """
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return
        # By hand, in a tenth of the time: no extension is in use, and a server's frames are not masked.
        head, size = _BINARY if binary else _TEXT, len(data)
        if size < 126:
            start = struct.pack("!BB", head, size)
        elif size < 65536:
            start = struct.pack("!BBH", head, 126, size)
        else:
            start = struct.pack("!BBQ", head, 127, size)
        self.transport.write(start + data)


class _Reader:
    """Stands where uvicorn has its queue."""

    def __init__(
        self,
        on_message: Callable[[str | bytes], None],
        on_writable: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._on_message = on_message
        self.on_writable = on_writable
        self._on_end = on_end

    def put_nowait(self, event: dict[str, Any]) -> None:
        """Take an event of ASGI."""
        if event["type"] == "websocket.receive":
            text = event.get("text")
            self._on_message(event["bytes"] if text is None else text)
        elif event["type"] == "websocket.disconnect":
            self._on_end()


def protocol_of(socket: WebSocket) -> SocketProtocol:
    """The protocol of an accepted connection, once: a protocol and its scope are not to hold each other."""
    protocol: SocketProtocol = socket.scope["extensions"].pop(_EXTENSION)
    return protocol
