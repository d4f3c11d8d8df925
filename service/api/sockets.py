"""WebSocket connections: whole messages to a callback, and messages out without waiting.

uvicorn hands messages over by a queue and a task, and pauses the connection after each. The handshake, what ends a
connection and what keeps it alive are left to it, and every frame that is not a whole message that came alone.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.protocol import OPEN

try:
    from websockets.speedups import apply_mask
except ImportError:
    # Not built for this platform.
    from websockets.utils import apply_mask

_EXTENSION = "seqserve.protocol"
# First byte of a message that is one frame (RFC 6455, section 5.2).
_TEXT, _BINARY = 0x81, 0x82
_MASKED = 0x80
_UNKNOWN = -1


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which gives messages to a reader once there is one.

    Most messages are one frame, and come as that and nothing else. Such a one is read here, in a fifth of the time that
    the parser takes, which never hears of it; so it has to be known that the parser is between two frames.
    """

    _reader: _Reader | None = None
    # Bytes missing of the frame that the parser is in; 0 between two.
    _missing = _UNKNOWN
    _begun = False

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol.data_received`."""
        if self._missing == 0 and self._reader is not None:
            message = self._message(data)
            if message is not None:
                self._reader.on_message(message)
                return
        if self._begun:
            self._missing = _missing_after(data, self._missing)
        else:
            # The request that opens it.
            self._begun = True
            self._missing = 0 if data.endswith(b"\r\n\r\n") else _UNKNOWN
        super().data_received(data)

    def _message(self, data: bytes) -> str | bytes | None:
        """The message that data is, if it is one frame, masked, short, and no part of another message."""
        size = len(data)
        if size < 6 or data[0] not in (_TEXT, _BINARY):
            return None
        length, start = data[1] - _MASKED, 2
        if length == 126 and size > 8:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length > 125:
            return None
        first = start + 4
        if (
            size != first + length
            or length > self.config.ws_max_size
            or self.frames
            or self.close_sent
            or self.conn.state is not OPEN
        ):
            return None
        content = apply_mask(data[first:], data[start:first])
        if data[0] == _BINARY:
            return content
        try:
            return content.decode()
        except UnicodeDecodeError:
            # The parser knows what to do.
            return None

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


def _missing_after(data: bytes, missing: int) -> int:
    """How many bytes of the last frame are missing after data that begins with so many of one; perhaps `_UNKNOWN`."""
    at, size = missing, len(data)
    if missing == _UNKNOWN:
        return _UNKNOWN
    while at < size:
        head = data[at : at + 14]
        if len(head) < 2:
            return _UNKNOWN
        length, start = head[1] & ~_MASKED, 2
        if length > 125:
            start = 4 if length == 126 else 10
            length = int.from_bytes(head[2:start], "big")
        if head[1] & _MASKED:
            start += 4
        if len(head) < start:
            return _UNKNOWN
        at += start + length
    return at - size


class _Reader:
    """Stands where uvicorn has its queue."""

    def __init__(
        self,
        on_message: Callable[[str | bytes], None],
        on_writable: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.on_message = on_message
        self.on_writable = on_writable
        self._on_end = on_end

    def put_nowait(self, event: dict[str, Any]) -> None:
        """Take an event of ASGI."""
        if event["type"] == "websocket.receive":
            text = event.get("text")
            self.on_message(event["bytes"] if text is None else text)
        elif event["type"] == "websocket.disconnect":
            self._on_end()


def protocol_of(socket: WebSocket) -> SocketProtocol:
    """The protocol of an accepted connection, once: a protocol and its scope are not to hold each other."""
    protocol: SocketProtocol = socket.scope["extensions"].pop(_EXTENSION)
    return protocol
