"""One system call for all that is written to a connection in one turn of the event loop."""

from __future__ import annotations

import asyncio
from typing import Any


class JoinedWrites(asyncio.Transport):
    """A transport that keeps what is written until the turn is over.

    Args:
        transport: Where it goes then.
        loop: The event loop.

    Attributes:
        transport: The same.
        kept: What was written in this turn.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.transport = transport
        self._loop = loop
        self.kept: list[Any] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.WriteTransport.write`."""
        if not self.kept:
            self._loop.call_soon(self._flush)
        self.kept.append(data)

    def _flush(self) -> None:
        if self.kept:
            kept, self.kept = self.kept, []
            self.transport.write(kept[0] if len(kept) == 1 else b"".join(kept))

    def close(self) -> None:
        """See `asyncio.BaseTransport.close`."""
        self._flush()
        self.transport.close()

    def abort(self) -> None:
        """See `asyncio.WriteTransport.abort`."""
        self.kept.clear()
        self.transport.abort()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport.is_closing`."""
        return self.transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.BaseTransport.get_extra_info`."""
        return self.transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See `asyncio.BaseTransport.set_protocol`."""
        self.transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See `asyncio.BaseTransport.get_protocol`."""
        return self.transport.get_protocol()

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport.pause_reading`."""
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport.resume_reading`."""
        self.transport.resume_reading()

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport.is_reading`."""
        return self.transport.is_reading()

    def get_write_buffer_size(self) -> int:
        """See `asyncio.WriteTransport.get_write_buffer_size`."""
        return self.transport.get_write_buffer_size() + sum(map(len, self.kept))
