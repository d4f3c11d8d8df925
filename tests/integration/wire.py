"""Clients of the protocols, as strict as their standards: the WebSocket in both encodings, server-sent events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import msgpack
from websockets.sync.client import ClientConnection, connect

Record = dict[str, Any]


class Socket:
    """One WebSocket that speaks JSON or MessagePack; frames are asked one at a time, or sent and received freely."""

    def __init__(self, url: str, *, binary: bool = False) -> None:
        self.binary = binary
        self._connect = connect(url, compression=None, proxy=None)
        self._id = 0

    def __enter__(self) -> Socket:
        self.connection: ClientConnection = self._connect.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._connect.__exit__(kind, error, at)

    def send(self, frame: Any) -> None:
        self.connection.send(msgpack.packb(frame) if self.binary else json.dumps(frame))

    def receive(self, timeout: float = 30) -> Record:
        """The next frame; one of the wrong encoding fails the test."""
        data = self.connection.recv(timeout)
        assert isinstance(data, bytes) == self.binary
        frame: Record = msgpack.unpackb(data) if isinstance(data, bytes) else json.loads(data)
        return frame

    def ask(self, op: str, **fields: Any) -> Record:
        """Send a frame and return the one answer it gets."""
        self._id += 1
        self.send({"op": op, "id": self._id, **fields})
        answer = self.receive()
        assert answer["id"] == self._id
        return answer

    def step(self, *steps: Record) -> list[Record]:
        """Replies to one frame of steps."""
        answer = self.ask("step", steps=list(steps))
        assert answer["op"] == "stepped", answer
        replies: list[Record] = answer["replies"]
        return replies


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    name: str
    data: Record
    id: str | None


_LINE = re.compile(r"(id|event|data): (.+)")


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Parse server-sent events; anything but whole events of one `event` and one `data` line fails the test."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            match = _LINE.fullmatch(line)
            assert match is not None, line
            assert match[1] not in fields, line
            fields[match[1]] = match[2]
        else:
            assert {"event", "data"} <= fields.keys()
            yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
            fields = {}
    assert not fields, "the stream ended inside an event"
