"""The real application behind the real server in the test's own event loop, with models that wait to be let go."""

from __future__ import annotations

import asyncio
import threading
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy.typing as npt

from service.api.context import Context
from service.app import build_context
from service.engine.engine import Engine
from service.engine.graph import Graph
from service.server import make_server
from service.settings import Settings

TIMEOUT_S = 30.0
Array = npt.NDArray[Any]


@dataclass
class Clock:
    """Monotonic seconds that pass only when told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A model whose runs wait until they are let through; it may be told to raise instead.

    It is the loaded graph in every other way. `runs` holds the rows of each run, in order.
    """

    def __init__(self, graph: Graph) -> None:
        self.config = graph.config
        self._graph = graph
        self._permits = threading.Semaphore(0)
        self._shut = False
        self._errors: list[Exception] = []
        self._arrived = threading.Semaphore(0)
        self.runs: list[int] = []

    def shut(self) -> None:
        """From now on every run waits for `let`."""
        self._shut = True

    def let(self, runs: int = 1) -> None:
        """Let some runs through."""
        self._permits.release(runs)

    def open(self) -> None:
        """Let all runs through."""
        self._shut = False
        self._permits.release(1000)

    def raise_once(self, error: Exception) -> None:
        """The next run raises."""
        self._errors.append(error)

    async def arrival(self) -> None:
        """Wait until one more run has come to the gate."""
        arrived = await asyncio.to_thread(self._arrived.acquire, timeout=TIMEOUT_S)
        assert arrived, "no run came to the gate"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """As `Graph.run`."""
        self.runs.append(len(feeds[self.config.lengths]))
        if self._shut:
            self._arrived.release()
            assert self._permits.acquire(timeout=TIMEOUT_S), "never let through"
        if self._errors:
            raise self._errors.pop()
        return self._graph.run(feeds, outputs)


@dataclass
class Running:
    """A service inside the test."""

    context: Context
    clock: Clock
    http: httpx.AsyncClient
    port: int
    gates: dict[str, Gate] = field(default_factory=dict)
    listening: TransportSocket | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def stream_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    def engine(self, model: str) -> Engine:
        return self.context.repository.get(model).engine

    def gate(self, model: str) -> Gate:
        """Put a gate before a model, open at first."""
        if model not in self.gates:
            engine = self.engine(model)
            self.gates[model] = Gate(engine.graph)
            engine._arena.states.graph = self.gates[model]  # type: ignore[attr-defined]
        return self.gates[model]

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the event loop turn until something is so."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - a condition of the service, which knows no test
                await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Running]:
    """Run a service; at the end nothing of it is left: no step, slot or socket in use, no task, no fault."""
    clock = Clock()
    context = build_context(settings, clock)
    before = _other_tasks()
    server = make_server(context)
    task = asyncio.create_task(server.serve())
    client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)
    running = Running(context, clock, client, 0)
    try:
        await running.until(lambda: task.done() or (server.started and context.repository.ready))
        running.listening = server.servers[0].sockets[0]
        running.port = running.listening.getsockname()[1]
        client.base_url = httpx.URL(running.url)
        yield running
        await _check_nothing_is_left(running)
    finally:
        for gate in running.gates.values():
            gate.open()
        await client.aclose()
        context.shutdown.began.set()
        server.should_exit = True
        async with asyncio.timeout(TIMEOUT_S):
            await task
        assert _other_tasks() <= before


Serve = Callable[..., AbstractAsyncContextManager[Running]]
"""Runs the service with settings."""


def _other_tasks() -> set[asyncio.Task[Any]]:
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


async def _check_nothing_is_left(running: Running) -> None:
    context = running.context
    for session in list(context.sessions.of_tenant("default")):
        await running.until(lambda session=session: session.idle)
        await context.sessions.delete(session)
    for entry in context.repository.entries:
        assert entry.served is not None
        engine = entry.served.engine
        await running.until(lambda engine=engine: engine.pending == 0)
        await running.until(lambda engine=engine: engine._arena.used == 0)
    await running.until(lambda: not context.shutdown.sockets)
