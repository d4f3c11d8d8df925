"""Steps over one WebSocket: a frame carries one or more steps of many sessions, as lists or packed."""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import msgspec
import numpy as np

from benchmarks import sessions
from benchmarks.bench import Bench
from benchmarks.client import percentiles
from benchmarks.models import GRU, LSTM, NAMES
from benchmarks.raw import CLIENT_CORE, Speed, pinned
from benchmarks.server import Server, application
from benchmarks.sources import Player, players
from benchmarks.tape import Model, Numbers, Tape, WrongAnswer
from benchmarks.websocket import WebSocket

# Sessions, steps of each in a frame, and frames on their way, among which the sessions are shared out: with two, one
# is computed while the other is read and written; with one, it has all sessions in one batch.
SHAPES = ((64, 1, 1), (64, 1, 2), (64, 16, 1))
_WARM_S = 0.3
_ECHOED = b"x" * 27
_ECHOES = 64

Row = dict[str, Any]


class _Head(msgspec.Struct):
    """As much of an answer as has to be read at once."""

    op: str
    id: int


class _Reply(msgspec.Struct):
    first: int
    seq: int
    results: list[Any] | dict[str, bytes]


class _Frame(msgspec.Struct):
    replies: list[_Reply]


_head = msgspec.msgpack.Decoder(_Head).decode
_frame = msgspec.msgpack.Decoder(_Frame).decode


@dataclass(frozen=True)
class Frame:
    """A frame that was answered: when it was sent and answered, who stepped, from where, and the answer."""

    sent: float
    answered: float
    players: Sequence[Player]
    at: list[int]
    answer: bytes


def measure(bench: Bench) -> list[Row]:
    """Every model and shape, in turns with bare ONNX Runtime."""
    rows = []
    with bench.service() as server:
        for name in NAMES:
            model = bench.model(name)
            turns = [_turn(bench, server, model) for _ in range(bench.rounds)]
            rows += [middle([turn[i] for turn in turns]) for i in range(len(turns[0]))]
    return [*rows, echoes(bench)]


def _turn(bench: Bench, server: Server, model: Model) -> list[Row]:
    bare, whole = (
        model.raw.speed(64, model.batches(64, whole=whole), bench.seconds / 2)
        for whole in (False, True)
    )
    # Numbers go either way; of words the best are wanted, and those are few.
    forms = (False, True) if model.name == GRU else (False,)
    rows = [
        steps(bench, server, model, *shape, packed=packed) for shape in SHAPES for packed in forms
    ]
    if model.name in (LSTM, GRU):
        rows.append(steps(bench, server, model, 64, 1, 64, apart=True))
    return [beside(row, bare) | of_file(row, whole) for row in rows]


def beside(row: Row, bare: Speed) -> Row:
    """A row with what bare ONNX Runtime did just before, and its ratio to that, of speed and of CPU time."""
    return row | {
        "raw_steps_s": bare.steps_s,
        "raw_cpu_us": bare.cpu_us,
        "raw_ratio": row["steps_s"] / bare.steps_s,
        "raw_cpu_ratio": bare.cpu_us / row["server_cpu_us"],
    }


def of_file(row: Row, whole: Speed) -> Row:
    """The ratios of a row to bare ONNX Runtime where that gives all the candidates of the file, asked for or not."""
    return {
        "file_ratio": row["steps_s"] / whole.steps_s,
        "file_cpu_ratio": whole.cpu_us / row["server_cpu_us"],
    }


def middle(rows: Sequence[Row]) -> Row:
    """One row of the medians of several."""
    return {
        name: median(row[name] for row in rows) if isinstance(value, float) else value
        for name, value in rows[0].items()
    }


def steps(
    bench: Bench,
    server: Server,
    model: Model,
    count: int,
    size: int,
    ahead: int,
    *,
    packed: bool = False,
    apart: bool = False,
) -> Row:
    """`count` sessions with `size` steps each in every frame, and `ahead` frames on their way.

    Args:
        bench: How long.
        server: Whom.
        model: Of the sessions.
        count: See above.
        size: See above.
        ahead: See above.
        packed: Whether inputs and answers are bytes; of a model of numbers.
        apart: Whether each frame has a socket of its own.
    """
    way = (
        f"socket, {'packed, ' if packed else ''}{ahead} frame{'s' if ahead > 1 else ''} on the way"
    )
    with sessions.opened(server, model.name, count) as ids:
        found = players(model, ids)
        cpu = server.cpu_s
        run = play(server.port, found, size, ahead, bench.seconds, packed=packed, apart=apart)
        cpu = server.cpu_s - cpu
    total = check(run.frames, size)
    inside = [frame for frame in run.frames if run.begin <= frame.answered <= run.end]
    return {
        "model": model.name,
        "way": f"{ahead} sockets, a session each" if apart else way,
        "apart": apart or None,
        # None, as in results of a time when there were lists only.
        "packed": packed or None,
        "sessions": count,
        "steps": size,
        "frames": ahead,
        "steps_s": sum(len(frame.players) for frame in inside) * size / (run.end - run.begin),
        "server_cpu_us": cpu / total * 1e6,
        "client_cpu_us": run.client_cpu_s / total * 1e6,
    } | percentiles(np.array([frame.answered - frame.sent for frame in inside]))


@dataclass(frozen=True)
class Played:
    """Frames, from when to when they count, and what they took of the client."""

    frames: list[Frame]
    begin: float
    end: float
    client_cpu_s: float


class _Sockets:
    """One socket for all frames, or one for each.

    Args:
        port: Of the service.
        count: How many.
    """

    def __init__(self, port: int, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets = []
        for _ in range(count):
            self._sockets.append(WebSocket(port, sessions.STREAM))
            self._selector.register(self._sockets[-1], selectors.EVENT_READ)
        self._ready: deque[WebSocket] = deque()

    def __enter__(self) -> _Sockets:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for socket in self._sockets:
            socket.close()

    def send(self, number: int, payload: bytes) -> None:
        """Send a frame by its number."""
        self._sockets[number % len(self._sockets)].send(payload)

    def receive(self) -> bytes:
        """The next frame of any."""
        if len(self._sockets) == 1:
            return self._sockets[0].receive()
        if not self._ready:
            # One frame at most is on its way on each.
            found = [key.fileobj for key, _ in self._selector.select()]
            self._ready += [socket for socket in found if isinstance(socket, WebSocket)]
        return self._ready.popleft().receive()


def play(
    port: int,
    found: Sequence[Player],
    size: int,
    ahead: int,
    seconds: float,
    *,
    packed: bool,
    apart: bool,
) -> Played:
    """Step all sessions for some time."""
    groups = [found[number::ahead] for number in range(ahead)]
    steps_of = {id(player.tape): _encoded(player.tape, size, packed) for player in found}
    frames: list[Frame] = []
    sent = [0.0] * ahead
    with pinned(CLIENT_CORE), _Sockets(port, ahead if apart else 1) as sockets:
        cpu = time.thread_time()
        begin = time.perf_counter() + min(_WARM_S, seconds)
        end = begin + seconds
        for number, group in enumerate(groups):
            sent[number] = time.perf_counter()
            sockets.send(number, _request(number, group, steps_of))
        while ahead:
            answer = sockets.receive()
            now = time.perf_counter()
            head = _head(answer)
            if head.op != "stepped":
                raise WrongAnswer(f"a step frame was answered by {answer[:200]!r}")
            group = groups[head.id]
            frames.append(Frame(sent[head.id], now, group, [p.at for p in group], answer))
            for player in group:
                player.at += size
            # However slow the machine, one frame is both sent and answered while it is measured.
            more = now < end or frames[-1].sent < begin
            if more and group[0].at + size <= group[0].tape.length:
                sent[head.id] = time.perf_counter()
                sockets.send(head.id, _request(head.id, group, steps_of))
            else:
                ahead -= 1
        cpu = time.thread_time() - cpu
    # A tape may be at its end before the time is, or before it begins.
    begin = min(begin, frames[-1].sent)
    return Played(frames, begin, min(max(end, _first(frames, begin)), frames[-1].answered), cpu)


def _first(frames: Sequence[Frame], begin: float) -> float:
    """When the first frame that counts was answered."""
    return next(frame.answered for frame in frames if frame.answered >= begin) + 1e-6


@cache
def _encoded(tape: Tape, size: int, packed: bool) -> list[bytes]:
    """MessagePack of the inputs of `size` steps, one for each first step that is a multiple of it."""
    encode = msgspec.msgpack.encode
    starts = range(0, tape.length, size)
    if packed:
        values = tape.arrays.astype(tape.arrays.dtype.newbyteorder("<"))
        return [encode(values[at : at + size].tobytes()) for at in starts]
    return [encode(tape.inputs[at : at + size]) for at in starts]


def _request(number: int, group: Sequence[Player], steps_of: dict[int, list[bytes]]) -> bytes:
    steps = []
    for player in group:
        encoded = steps_of[id(player.tape)]
        size = player.tape.length // len(encoded)
        inputs = msgspec.Raw(encoded[player.at // size])
        steps.append({"session": player.session, "inputs": inputs, "seq": player.at + 1})
    return msgspec.msgpack.encode({"op": "step", "id": number, "steps": steps})


def check(frames: Sequence[Frame], size: int) -> int:
    """Compare every answer; returns how many steps they are.

    Raises:
        WrongAnswer: One is not what ONNX Runtime alone computes, or not in its turn.
    """
    found: dict[int, tuple[Tape, list[int], list[Any]]] = {}
    for frame in frames:
        replies = _frame(frame.answer).replies
        for player, at, reply in zip(frame.players, frame.at, replies, strict=True):
            if (reply.first, reply.seq) != (at + 1, at + size):
                raise WrongAnswer(f"steps from {at + 1} were answered by {reply}")
            tape, places, results = found.setdefault(id(player.tape), (player.tape, [], []))
            places += range(at, at + size)
            results += _listed(tape, size, reply.results)
    for tape, places, results in found.values():
        tape.answers.check(np.array(places), results)
    return sum(len(places) for _, places, _ in found.values())


def _listed(tape: Tape, size: int, results: list[Any] | dict[str, bytes]) -> list[Any]:
    """Results as lists have them."""
    if isinstance(results, list):
        return results
    assert isinstance(tape.answers, Numbers)
    name = tape.answers.name
    return [{name: values} for values in np.frombuffer(results[name], "<f4").reshape(size, -1)]


def echoes(bench: Bench) -> Row:
    """The bare echo of short messages on one socket, many on their way."""
    with application("benchmarks.echo:app") as server, pinned(CLIENT_CORE):
        cpu, client = server.cpu_s, time.process_time()
        with WebSocket(server.port, "/") as socket:
            for _ in range(_ECHOES):
                socket.send(_ECHOED)
            begin, count = time.perf_counter(), 0
            while (now := time.perf_counter()) < begin + bench.seconds:
                if socket.receive() != _ECHOED:
                    raise WrongAnswer("the echo is not what was sent")
                socket.send(_ECHOED)
                count += 1
        cpu, client = server.cpu_s - cpu, time.process_time() - client
    return {
        "model": "none",
        "way": "WebSocket echo",
        "sessions": 1,
        "steps": 1,
        "frames": _ECHOES,
        "steps_s": count / (now - begin),
        "server_cpu_us": cpu / count * 1e6,
        "client_cpu_us": client / count * 1e6,
    }
