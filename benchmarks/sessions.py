"""Opening and closing sessions over one socket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from benchmarks.server import Server
from benchmarks.websocket import WebSocket

STREAM = "/v1/stream"
_ON_THEIR_WAY = 16


def open_(server: Server, model: str, count: int) -> list[str]:
    """Open sessions; returns their ids."""
    frames = [{"op": "open", "model": model}] * count
    return [reply["session"] for reply in ask(server, frames, "opened")]


def close(server: Server, sessions: Sequence[str]) -> None:
    """End sessions."""
    ask(server, [{"op": "close", "session": session} for session in sessions], "closed")


@contextmanager
def opened(server: Server, model: str, count: int) -> Iterator[list[str]]:
    """Sessions for a while."""
    ids = open_(server, model, count)
    try:
        yield ids
    finally:
        close(server, ids)


def ask(server: Server, frames: Sequence[dict[str, Any]], due: str) -> list[dict[str, Any]]:
    """Send frames, a few ahead of their answers.

    Raises:
        RuntimeError: One was not answered as it is due.
    """
    replies = []
    with WebSocket(server.port, STREAM) as socket:
        for number in range(len(frames) + _ON_THEIR_WAY):
            if number < len(frames):
                socket.send(msgspec.msgpack.encode(frames[number]))
            if number >= _ON_THEIR_WAY:
                replies.append(msgspec.msgpack.decode(socket.receive()))
                if replies[-1]["op"] != due:
                    raise RuntimeError(f"answered by {replies[-1]}")
    return replies
