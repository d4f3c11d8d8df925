"""Over the wire: sessions that each send the next step when the last is answered, by HTTP or on one socket.

The client is as lean as Python allows, since it shares the machine with the service: one connection a session, requests
joined from bytes made beforehand, answers put by and compared when the clock has stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.server import HOST, Server
from benchmarks.tape import LENGTH, Model, Tape, WrongAnswer

SESSIONS = (1, 16, 64, 256)
_WARM_S = 0.3
_OPENING = 16  # frames on their way at once
# Two frames on their way, each with half of the sessions: while one is computed the other is read and written.
_FRAMES = 2


@dataclass
class Player:
    """One session of a client.

    Attributes:
        tape: What it sends.
        session: Its id.
        at: Steps answered.
        times: When each answer came.
        latencies: Seconds each answer took.
        answers: The answers, still encoded.
    """

    tape: Tape
    session: str
    at: int = 0
    times: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    def note(self, sent: float, answer: Any) -> None:
        """Put an answer by."""
        now = time.perf_counter()
        self.times.append(now)
        self.latencies.append(now - sent)
        self.answers.append(answer)
        self.at += 1

    def check(self, decode: Callable[[Any], Any]) -> None:
        """Compare every answer.

        Raises:
            WrongAnswer: One is not what ONNX Runtime alone computes.
        """
        for at, encoded in enumerate(self.answers):
            answer = decode(encoded)
            if answer.get("seq") != at + 1:
                raise WrongAnswer(f"step {at + 1} was answered by {answer}")
            self.tape.check_answer(at, answer["results"][0])


class Http:
    """One keep-alive connection for each session, one step in each request."""

    name = "HTTP"
    decode = staticmethod(msgspec.json.decode)

    async def play(self, port: int, players: Sequence[Player], seconds: float) -> float:
        """Let every player step for some time; returns when that began."""
        loop = asyncio.get_running_loop()
        bodies = {id(p.tape): _http_bodies(p.tape) for p in players}
        connections = [_Connection(p, bodies[id(p.tape)], loop.create_future()) for p in players]
        for each in connections:
            await loop.create_connection(lambda made=each: made, HOST, port)
        begin = time.perf_counter() + _WARM_S
        for each in connections:
            each.start(begin + seconds)
        await asyncio.gather(*(each.ended for each in connections))
        return begin


class _Connection(asyncio.Protocol):
    def __init__(self, player: Player, bodies: list[bytes], ended: asyncio.Future[None]) -> None:
        self._player = player
        self._bodies = bodies
        self.ended = ended
        self._head = (
            f"POST /v1/sessions/{player.session}/steps HTTP/1.1\r\nHost: {HOST}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._received = b""
        self._sent = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def start(self, end: float) -> None:
        self._end = end
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._head + self._bodies[self._player.at])

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        at = head.find(b"content-length: ") + 16
        if at < 16 or len(body) < int(head[at : head.find(b"\r", at)]):
            return
        self._received = b""
        self._player.note(self._sent, body)
        if self._player.at < LENGTH and time.perf_counter() < self._end:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


def _http_bodies(tape: Tape) -> list[bytes]:
    """What follows `Content-Length: `, for each step."""
    bodies = [
        msgspec.json.encode({"inputs": [value], "seq": number})
        for number, value in enumerate(tape.inputs, 1)
    ]
    return [b"%d\r\n\r\n%b" % (len(body), body) for body in bodies]


class _Frame(msgspec.Struct):
    """As much of a `stepped` frame as has to be read at once."""

    op: str
    id: int
    replies: list[msgspec.Raw] = []


class Socket:
    """All sessions on one WebSocket, many steps in each frame.

    Args:
        name: For the report.
        format_: `msgspec.json` or `msgspec.msgpack`.
    """

    def __init__(self, name: str, format_: Any) -> None:
        self.name = name
        self.decode = format_.decode
        self._frames = format_.Decoder(_Frame)
        self._encode = format_.encode
        self._text = format_ is msgspec.json

    async def play(self, port: int, players: Sequence[Player], seconds: float) -> float:
        """Let every player step for some time; returns when that began."""
        count = min(_FRAMES, len(players))
        groups = [players[number::count] for number in range(count)]
        sent = [0.0] * count
        async with _socket(port) as socket:
            begin = time.perf_counter() + _WARM_S
            end = begin + seconds
            for number, group in enumerate(groups):
                sent[number] = time.perf_counter()
                await self._send(socket, number, group)
            while count:
                frame = self._frames.decode(await socket.recv())
                if frame.op != "stepped":
                    raise WrongAnswer(f"a step frame was answered by {frame}")
                group = groups[frame.id]
                for player, reply in zip(group, frame.replies, strict=True):
                    player.note(sent[frame.id], reply)
                if time.perf_counter() < end and group[0].at < LENGTH:
                    sent[frame.id] = time.perf_counter()
                    await self._send(socket, frame.id, group)
                else:
                    count -= 1
        return begin

    async def _send(self, socket: ClientConnection, number: int, group: Sequence[Player]) -> None:
        steps = [
            {"session": p.session, "inputs": [p.tape.inputs[p.at]], "seq": p.at + 1} for p in group
        ]
        frame = self._encode({"op": "step", "id": number, "steps": steps})
        await socket.send(frame, text=self._text)


WAYS = (
    Http(),
    Socket("one socket, MessagePack", msgspec.msgpack),
    Socket("one socket, JSON", msgspec.json),
)


@asynccontextmanager
async def _socket(port: int) -> Iterator[ClientConnection]:
    url = f"ws://{HOST}:{port}/v1/stream"
    async with connect(url, compression=None, max_size=None, ping_interval=None) as socket:
        yield socket


async def open_sessions(port: int, model: str, count: int) -> list[str]:
    """Open sessions; returns their ids."""
    frames = [{"op": "open", "model": model}] * count
    return [reply["session"] for reply in await _asked(port, frames)]


async def close_sessions(port: int, sessions: Sequence[str]) -> None:
    """End sessions."""
    await _asked(port, [{"op": "close", "session": session} for session in sessions])


async def _asked(port: int, frames: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    replies = []
    async with _socket(port) as socket:
        for number, frame in enumerate(frames):
            await socket.send(msgspec.json.encode(frame), text=True)
            if number >= _OPENING:
                replies.append(msgspec.json.decode(await socket.recv()))
        replies += [msgspec.json.decode(await socket.recv()) for _ in frames[len(replies) :]]
    return replies


async def measure(
    way: Http | Socket, server: Server, model: Model, count: int, seconds: float
) -> dict[str, float]:
    """Let `count` sessions play for some seconds, and compare every answer."""
    ids = await open_sessions(server.port, model.name, count)
    players = [Player(model.tapes[i % len(model.tapes)], name) for i, name in enumerate(ids)]
    cpu = server.cpu_s
    begin = await way.play(server.port, players, seconds)
    cpu = server.cpu_s - cpu
    await close_sessions(server.port, ids)
    for player in players:
        player.check(way.decode)
    times = np.concatenate([player.times for player in players])
    latencies = np.concatenate([player.latencies for player in players])
    # A tape that was played to its end ends the measurement for all.
    end = min([begin + seconds, *(p.times[-1] for p in players if p.at == LENGTH)])
    inside = (times >= begin) & (times < end)
    p50, p99 = np.percentile(latencies[inside], (50, 99)) * 1e3
    return {
        "steps_s": float(inside.sum() / (end - begin)),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "server_cpu_us": cpu / len(times) * 1e6,
    }
