"""A lean HTTP client: one thread, one epoll, requests made of bytes prepared beforehand, answers read afterwards.

It shares the machine with the service, and what it takes the service may lack. A request costs it two system calls and
some ten lines of Python; how much CPU that is, it reports.

Open loop: a request is due at its own time, whatever became of those before it, and its latency counts from then. A
client that waits for a slow answer before it sends the next request leaves out the ones that would have waited too
(coordinated omission).
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.raw import CLIENT_CORE, pinned
from benchmarks.server import HOST

# When it was due and when it was sent, when the answer came, what was asked, and the whole response.
Reply = tuple[float, float, float, Any, bytes]

_READ = 1 << 18
# Waits shorter than that are spun: the system would wake up later.
_SPIN_S = 30e-6
# After the last request of an open loop; what is not sent by then is not sent any more.
_PATIENCE_S = 5.0
_WARM_S = 0.3


class Source(Protocol):
    """Who has requests."""

    def take(self) -> tuple[bytes, Any] | None:
        """The next request and a tag of it; None when there is none until an answer comes."""

    def done(self, tag: Any, response: bytes) -> None:
        """Take back what an answer came for."""


@dataclass(frozen=True)
class Run:
    """What happened.

    Attributes:
        replies: Every answer, in the order they came.
        begin: When measuring began; what came before was warm-up.
        end: When it ended.
        asked: Requests that were due, sent and answered or not; in a closed loop those that were answered.
        client_cpu_s: CPU time of the client.
        server_cpu_s: CPU time of the server, if it was watched.
        watched: What `watch` gave, once a second.
        unsent: Requests that were due and found no free connection, even after the end.
    """

    replies: list[Reply]
    begin: float
    end: float
    asked: int
    client_cpu_s: float
    server_cpu_s: float = 0.0
    watched: tuple[Any, ...] = ()
    unsent: int = 0

    @property
    def lost(self) -> int:
        """Requests that were sent and not answered."""
        return self.asked - len(self.replies) - self.unsent

    def within(self, *, status: bytes = b"200") -> list[Reply]:
        """Answers of one status that came while it was measured."""
        return [r for r in self.replies if self.begin <= r[2] < self.end and r[4][9:12] == status]

    def rate(self, status: bytes = b"200") -> float:
        """Answers a second."""
        return len(self.within(status=status)) / (self.end - self.begin)

    def latencies(self) -> npt.NDArray[np.float64]:
        """Seconds from due to answered, of what was due after the beginning and answered well."""
        return np.array(
            [r[2] - r[0] for r in self.replies if r[0] >= self.begin and r[4][9:12] == b"200"]
        )

    @property
    def refused(self) -> int:
        """Answers that say no, warm-up included."""
        return sum(reply[4][9:12] != b"200" for reply in self.replies)

    @property
    def client_us(self) -> float:
        """CPU time of the client for each request."""
        return self.client_cpu_s / max(1, len(self.replies)) * 1e6


def percentiles(latencies: npt.NDArray[np.float64]) -> dict[str, float]:
    """Middle and tail in milliseconds.

    Raises:
        RuntimeError: Nothing was answered.
    """
    if not len(latencies):
        raise RuntimeError("nothing was answered in time; measure for longer")
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


class _Line:
    """One connection and the request on it."""

    __slots__ = ("_port", "busy", "due", "received", "send", "sent", "socket", "source", "tag")

    def __init__(self, port: int, source: Source) -> None:
        self._port = port
        self.source = source
        self.received = b""
        self.due = self.sent = 0.0
        self.tag: Any = None
        self.busy = False
        self.connect()

    def connect(self) -> None:
        """Connect, perhaps again: a server closes what is idle for long."""
        self.socket = socket.create_connection((HOST, self._port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.send = self.socket.send


def closed(port: int, groups: Sequence[tuple[Source, int]], seconds: float) -> Run:
    """Keep a number of requests of each source on their way for some time; an answer brings the next request.

    However short the time and slow the machine, some request is both sent and answered while it is measured.
    """
    with _lines(port, groups) as (poll, lines), _quiet():
        begin = time.perf_counter() + min(_WARM_S, seconds)
        end = begin + seconds
        cpu = time.process_time()
        replies: list[Reply] = []
        idle = list(lines.values())
        busy = 0
        while True:
            now = time.perf_counter()
            if now < end or not (replies and replies[-1][1] >= begin):
                waiting = []
                for line in idle:
                    if _put(line, time.perf_counter(), None):
                        busy += 1
                    else:
                        waiting.append(line)
                idle = waiting
            if not busy:
                break
            for line in _read(poll, lines, 1.0, replies):
                busy -= 1
                idle.append(line)
        cpu = time.process_time() - cpu
    return Run(replies, begin, _end(replies, begin, end), len(replies), cpu)


def _end(replies: Sequence[Reply], begin: float, end: float) -> float:
    """When measuring ended: as planned, unless nothing was answered until then."""
    first = next((reply[2] for reply in replies if reply[2] >= begin), end)
    return end if first < end else first + 1e-6


def opened(
    port: int,
    source: Source,
    lines_count: int,
    arrivals: npt.NDArray[np.float64],
    *,
    watch: Callable[[], Any] | None = None,
) -> Run:
    """Send each request when it is due, or as soon after as a connection and a session are free.

    Args:
        port: Of the server.
        source: Of requests.
        lines_count: Connections.
        arrivals: Seconds from the start, rising; the first of them are not measured.
        watch: Called once a second.
    """
    with _lines(port, [(source, lines_count)]) as (poll, lines), _quiet():
        cpu = time.process_time()
        start = time.perf_counter()
        due = (arrivals + start).tolist()
        begin, end = start + min(_WARM_S, float(arrivals[-1]) / 4), due[-1]
        replies: list[Reply] = []
        watched: list[Any] = []
        free = deque(lines.values())
        backlog: deque[float] = deque()
        at, busy = 0, 0
        while at < len(due) or backlog or busy:
            now = time.perf_counter()
            if watch is not None and now > start + len(watched):
                watched.append(watch())
            while at < len(due) and due[at] <= now:
                backlog.append(due[at])
                at += 1
            # Who has not found a connection by then finds none any more; what was sent is waited for once more as long.
            late = now > end + _PATIENCE_S
            while not late and backlog and free and _put(free[0], now, backlog[0]):
                free.popleft()
                backlog.popleft()
                busy += 1
            if late and (not busy or now > end + 2 * _PATIENCE_S):
                break
            wait = due[at] - time.perf_counter() if at < len(due) else 0.1
            for line in _read(poll, lines, wait, replies):
                free.append(line)
                busy -= 1
        cpu = time.process_time() - cpu
    unsent = len(backlog) + len(due) - at
    return Run(replies, begin, end, len(due), cpu, watched=tuple(watched), unsent=unsent)


def _put(line: _Line, now: float, due: float | None) -> bool:
    taken = line.source.take()
    if taken is None:
        return False
    request, line.tag = taken
    line.sent = now
    line.due = now if due is None else due
    if line.send(request) != len(request):
        raise RuntimeError("the server does not read")
    line.busy = True
    return True


def _read(
    poll: select.epoll, lines: dict[int, _Line], wait_s: float, replies: list[Reply]
) -> Iterator[_Line]:
    """Lines whose answer came; waits for the first for `wait_s` at most."""
    if wait_s > _SPIN_S:
        # Unlike epoll's own, this timeout is finer than a millisecond.
        select.select([poll], (), (), wait_s)
    for file, _ in poll.poll(0):
        line = lines[file]
        data = line.socket.recv(_READ)
        if not data:
            if line.busy:
                raise RuntimeError("the server closed a connection with a request on it")
            poll.unregister(file)
            del lines[file]
            line.socket.close()
            line.connect()
            poll.register(line.socket, select.EPOLLIN)
            lines[line.socket.fileno()] = line
            continue
        if line.received:
            data = line.received + data
        if not whole(data):
            line.received = data
            continue
        line.received = b""
        line.busy = False
        now = time.perf_counter()
        replies.append((line.due, line.sent, now, line.tag, data))
        line.source.done(line.tag, data)
        yield line


def whole(data: bytes) -> bool:
    """Whether a response is all there."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return False
    at = data.find(b"content-length: ", 0, head)
    if at < 0:
        at = data[:head].lower().find(b"content-length: ")
        if at < 0:
            raise RuntimeError(f"a response without a length: {data[:head]!r}")
    return len(data) >= head + 4 + int(data[at + 16 : data.find(b"\r", at)])


@contextmanager
def _lines(
    port: int, groups: Sequence[tuple[Source, int]]
) -> Iterator[tuple[select.epoll, dict[int, _Line]]]:
    # Before the lines, so that its number is one that `select` takes.
    poll = select.epoll()
    made = [_Line(port, source) for source, count in groups for _ in range(count)]
    try:
        for line in made:
            poll.register(line.socket, select.EPOLLIN)
        with pinned(CLIENT_CORE):
            yield poll, {line.socket.fileno(): line for line in made}
    finally:
        poll.close()
        for line in made:
            line.socket.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection: the answers are kept, and it would walk through them again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def poisson(rate: float, seconds: float, seed: int = 1) -> npt.NDArray[np.float64]:
    """Times of independent requests."""
    count = max(2, round(rate * seconds))
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum()


def even(rate: float, seconds: float) -> npt.NDArray[np.float64]:
    """Times at equal distances."""
    return np.arange(max(2, round(rate * seconds))) / rate
