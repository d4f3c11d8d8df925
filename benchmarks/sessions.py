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
    """End sessions; one with a step in flight as soon as that has ended."""
    left = list(sessions)
    while left:
        frames = [{"op": "close", "session": session} for session in left]
        replies = ask(server, frames, "closed", tolerated="session_busy")
        left = [name for name, reply in zip(left, replies, strict=True) if reply["op"] == "error"]


@contextmanager
def opened(server: Server, model: str, count: int) -> Iterator[list[str]]:
    """Sessions for a while."""
    ids = open_(server, model, count)
    try:
        yield ids
    finally:
        close(server, ids)


def ask(
    server: Server, frames: Sequence[dict[str, Any]], due: str, tolerated: str = ""
) -> list[dict[str, Any]]:
    """Send frames, a few ahead of their answers; returns the answers in the order of the frames.

    Args:
        server: Whom.
        frames: What.
        due: What each is to be answered by.
        tolerated: Code of an error that may be the answer as well.

    Raises:
        RuntimeError: One was answered by something else.
    """
    replies: dict[int, dict[str, Any]] = {}
    with WebSocket(server.port, STREAM) as socket:
        for number in range(len(frames) + _ON_THEIR_WAY):
            if number < len(frames):
                socket.send(msgspec.msgpack.encode(frames[number] | {"id": number}))
            if number >= _ON_THEIR_WAY:
                reply = msgspec.msgpack.decode(socket.receive())
                if reply["op"] != due and reply.get("error", {}).get("code") != tolerated:
                    raise RuntimeError(f"answered by {reply}")
                replies[reply["id"]] = reply
    return [replies[number] for number in range(len(frames))]
