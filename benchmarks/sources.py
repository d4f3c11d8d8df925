"""What is asked over HTTP: steps of sessions, generations, whole texts, and the same of the plain services."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np

from benchmarks.client import Reply
from benchmarks.server import HOST
from benchmarks.tape import TAPES, Model, Tape, WrongAnswer


def post(path: str, body: bytes, fields: bytes = b"application/json") -> bytes:
    """A request."""
    return _head(path) + _rest(body, fields)


def _head(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\n".encode()


def _rest(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)


@dataclass(slots=True)
class Player:
    """One session of a client.

    Attributes:
        tape: What it sends.
        session: Its id.
        head: Of its requests.
        at: Steps that were answered.
    """

    tape: Tape
    session: str
    head: bytes
    at: int = 0


@dataclass
class Steps:
    """Sessions that step, the one that has waited longest first.

    Attributes:
        players: The sessions.
        size: Steps of one request.
    """

    players: Sequence[Player]
    size: int = 1

    def __post_init__(self) -> None:
        """Write the requests."""
        self._requests = {id(p.tape): _requests(p.tape, self.size) for p in self.players}
        self._idle = deque(self.players)

    def take(self) -> tuple[bytes, Player] | None:
        """See `Source`."""
        if not self._idle:
            return None
        player = self._idle.popleft()
        return player.head + self._requests[id(player.tape)][player.at // self.size], player

    def done(self, tag: Player, response: bytes) -> None:
        """See `Source`: a refused step is the next one still. A tape that is at its end is not played on."""
        if response[9:12] == b"200":
            tag.at += self.size
        if tag.at + self.size <= tag.tape.length:
            self._idle.append(tag)

    def check(self, replies: Iterable[Reply]) -> int:
        """Compare every answer that is none of a refusal; returns how many steps they are.

        Raises:
            WrongAnswer: One is not what ONNX Runtime alone computes, or not in its turn.
        """
        expected: dict[str, int] = {}
        found: dict[int, tuple[Tape, list[int], list[Any]]] = {}
        for *_, player, response in replies:
            if response[9:12] != b"200":
                continue
            answer = _decode(response.partition(b"\r\n\r\n")[2])
            first = expected.get(player.session, 0) + 1
            if (answer.first, answer.seq) != (first, first + self.size - 1):
                raise WrongAnswer(f"steps from {first} were answered by {answer}")
            expected[player.session] = answer.seq
            _, places, results = found.setdefault(id(player.tape), (player.tape, [], []))
            places += range(answer.first - 1, answer.seq)
            results += answer.results
        for tape, places, results in found.values():
            tape.answers.check(np.array(places), results)
        return sum(len(places) for _, places, _ in found.values())


@cache
def _requests(tape: Tape, size: int) -> list[bytes]:
    """What follows the head of each request of so many steps."""
    return [
        _rest(b'{"inputs":[%b],"seq":%d}' % (b",".join(tape.encoded[at : at + size]), at + 1))
        for at in range(0, tape.length - size + 1, size)
    ]


class _Answer(msgspec.Struct):
    first: int
    seq: int
    results: list[Any]


_decode = msgspec.json.Decoder(_Answer).decode


def players(model: Model, sessions: Sequence[str], kind: str = "") -> list[Player]:
    """One for each session, of one tape after the other."""
    return [
        Player(model.tapes[i % TAPES], name, _head(f"/v1/sessions/{name}/steps"))
        for i, name in enumerate(sessions)
    ]


@dataclass
class Plain:
    """The same steps for the plain service, which has no sequence numbers."""

    model: Model
    count: int

    def __post_init__(self) -> None:
        """Write the requests."""
        self._at = [0] * self.count
        self._idle = deque(range(self.count))

    def take(self) -> tuple[bytes, tuple[int, int]] | None:
        """See `Source`."""
        if not self._idle:
            return None
        session = self._idle.popleft()
        at = self._at[session]
        value = self.model.tapes[session % TAPES].encoded[at]
        body = b'{"session":"%d","input":%b}' % (session, value)
        return post("/step", body), (session, at)

    def done(self, tag: tuple[int, int], response: bytes) -> None:
        """See `Source`."""
        session, at = tag
        self._at[session] = at + 1
        if at + 1 < self.model.tapes[session % TAPES].length:
            self._idle.append(session)

    def check(self, replies: Iterable[Reply]) -> None:
        """Compare every answer."""
        for *_, (session, at), response in replies:
            result = msgspec.json.decode(response.partition(b"\r\n\r\n")[2])["result"]
            self.model.tapes[session % TAPES].answers.check(np.array([at]), [result])


@dataclass
class Same:
    """One request again and again, answered by what was sent: the echo."""

    request: bytes
    body: bytes

    def take(self) -> tuple[bytes, None]:
        """See `Source`."""
        return self.request, None

    def done(self, tag: None, response: bytes) -> None:
        """See `Source`."""

    def check(self, replies: Iterable[Reply]) -> None:
        """Compare every answer."""
        if any(response.partition(b"\r\n\r\n")[2] != self.body for *_, response in replies):
            raise WrongAnswer("the echo is not what was sent")
