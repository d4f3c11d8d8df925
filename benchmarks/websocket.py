"""A lean WebSocket client (RFC 6455), one thread, for frames that are answered one for one or streamed."""

from __future__ import annotations

import os
import socket
import struct
from base64 import b64encode

from benchmarks.server import HOST

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
# A mask of zeros leaves the payload as it is; the client has to send one, and it need not be a good one here.
_MASK = bytes(4)


class WebSocket:
    """One connection.

    Raises:
        OSError: There is nobody.
        RuntimeError: The server does not speak WebSocket here, or closed it.
    """

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection((HOST, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._received = bytearray()
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            self._more()
        if not self._received.startswith(b"HTTP/1.1 101"):
            raise RuntimeError(f"no WebSocket: {bytes(self._received[:end])!r}")
        del self._received[: end + 4]

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def send(self, payload: bytes, *, text: bool = False) -> None:
        """Send one frame."""
        self._send(_TEXT if text else _BINARY, payload)

    def receive(self) -> bytes:
        """The next frame."""
        while True:
            operation, payload = self._frame()
            if operation == _CLOSE:
                raise RuntimeError(f"the server closed the socket: {payload!r}")
            if operation == _PING:
                self._send(_PONG, payload)
            else:
                return payload

    def _send(self, operation: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | operation, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | operation, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | operation, 0x80 | 127, size)
        self._socket.sendall(head + _MASK + payload)

    def _frame(self) -> tuple[int, bytes]:
        self._need(2)
        operation, size, start = self._received[0] & 15, self._received[1], 2
        if size == 126:
            self._need(4)
            (size,), start = struct.unpack_from("!H", self._received, 2), 4
        elif size == 127:
            self._need(10)
            (size,), start = struct.unpack_from("!Q", self._received, 2), 10
        self._need(start + size)
        payload = bytes(memoryview(self._received)[start : start + size])
        del self._received[: start + size]
        return operation, payload

    def _need(self, size: int) -> None:
        while len(self._received) < size:
            self._more()

    def _more(self) -> None:
        data = self._socket.recv(1 << 18)
        if not data:
            raise RuntimeError("the server closed the connection")
        self._received += data
