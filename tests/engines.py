"""What tests of the engine and of sessions stand on: a watched graph, a clock, a journal that waits or fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from service.contract import CONFIG_FILE, MODEL_FILE, Batching, decode_config
from service.engine.arena import Slot
from service.engine.engine import Engine, Limits
from service.engine.graph import Graph
from service.engine.shapes import Shapes
from service.engine.work import Work
from service.journal.memory import MemoryJournal
from service.journal.protocol import Entry, Identity, Snapshot, Stored, Tombstone
from service.metrics import EngineMetrics, Metrics
from service.sessions.session import Chunk
from service.sessions.step import Wanted
from service.sessions.table import Policy, Sessions

PATIENCE_S = 20.0
"""Longest wait for something that is about to happen; only a broken test or program waits so long."""


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)


async def turned() -> None:
    """Let the turn of the event loop end, so that all that was submitted in it is with the engine's thread."""
    await asyncio.sleep(0)


@dataclass(frozen=True)
class Run:
    """A run of a graph: its rows and padded time steps, and the valid ones of each row."""

    feeds: dict[str, np.ndarray]

    @property
    def lengths(self) -> list[int]:
        return [int(length) for length in self.feeds["lengths"]]

    @property
    def tokens(self) -> int:
        name = "x" if "x" in self.feeds else "tokens"
        return int(np.prod(self.feeds[name].shape[:2]))


class WatchedGraph(Graph):
    """The real graph; a test reads what ran, holds runs back, and has a word before each."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.runs: list[Run] = []
        self.before: Callable[[Run], None] = lambda run: None
        self._entered = threading.Semaphore(0)
        self._gate = threading.Event()
        self._gate.set()

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        run = Run(dict(feeds))
        self.runs.append(run)
        self._entered.release()
        assert self._gate.wait(PATIENCE_S), "nobody opened the gate"
        self.before(run)
        return super().run(feeds, outputs)

    def shut(self) -> None:
        """Hold back every run from now on."""
        self._gate.clear()
        while self._entered.acquire(blocking=False):
            pass

    def open(self) -> None:
        """Let runs go."""
        self._gate.set()

    async def entered(self) -> None:
        """Wait until a run began since `shut` or the last call."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=PATIENCE_S)


def load_graph(directory: Path, batching: Batching | None = None) -> WatchedGraph:
    """The graph of an exported model, perhaps with other limits of a batch."""
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    if batching is not None:
        config = msgspec.structs.replace(config, batching=batching)
    return WatchedGraph((directory / MODEL_FILE).read_bytes(), config)


@asynccontextmanager
async def running(
    graph: Graph,
    clock: Callable[[], float] = time.monotonic,
    shapes: Shapes | None = None,
    **limits: int,
) -> AsyncIterator[Engine]:
    """A started engine; at the end it is closed and must have no work and no slot left."""
    bounds = Limits(
        **({"capacity": 32, "max_pending": 1000, "max_pending_tokens": 100_000} | limits)
    )
    metrics = EngineMetrics(Metrics(), graph.config.name, graph.config.version)
    engine = Engine(graph, bounds, metrics, clock, shapes)
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(graph, WatchedGraph):
            graph.open()
        await engine.close()
    assert engine.pending == 0


def used(engine: Engine) -> int:
    """Slots given out."""
    return engine._arena.used


def numbers(*values: float) -> dict[str, np.ndarray]:
    """Inputs of the accumulator."""
    return {"x": np.array(values, np.float64)}


def add(
    engine: Engine, slot: Slot, *values: float, deadline: float = np.inf
) -> tuple[Work, asyncio.Future[Any]]:
    """Have the accumulator add numbers; the total after each is wanted."""
    keep = np.arange(len(values))
    return engine.submit(slot, numbers(*values), keep, ("total",), deadline)


async def total(future: asyncio.Future[Any]) -> list[float]:
    """The totals that `add` is answered with."""
    outputs = await asyncio.wait_for(future, PATIENCE_S)
    return [float(value) for value in outputs["total"]]


def chunk(*values: float) -> Chunk:
    """One request to an accumulator session, an input for each number."""
    return Chunk(numbers(*values), np.arange(len(values)))


WANTED = Wanted(("total",), deadline=np.inf)


def table(
    engine: Engine,
    journal: Any = None,
    clock: Callable[[], float] = time.monotonic,
    **policy: Any,
) -> Sessions:
    """Sessions of one engine."""
    bounds = Policy(**({"max_sessions": 100, "evict_idle_s": 60.0, "snapshot_every": 5} | policy))
    wall = Clock(1_700_000_000.0)
    store = MemoryJournal(100) if journal is None else journal
    return Sessions(store, lambda model, version: engine, bounds, Metrics(), clock, wall)


class RemoteJournal(MemoryJournal):
    """A journal that answers later, as one on disk or over the network does, and fails when told to.

    Attributes:
        fails: Names of methods that fail once each.
        lands: Whether a failing call is carried out before it fails.
    """

    def __init__(self, max_tombstones: int = 100) -> None:
        super().__init__(max_tombstones)
        self.fails: set[str] = set()
        self.lands = False
        self.calls: list[str] = []

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        await asyncio.sleep(0)
        if name in self.fails and not self.lands:
            self._fail(name)

    async def _answered(self, name: str) -> None:
        await asyncio.sleep(0)
        if name in self.fails:
            self._fail(name)

    def _fail(self, name: str) -> None:
        self.fails.remove(name)
        raise ConnectionError("the store is away")

    async def create(self, identity: Identity) -> bool:
        await self._called("create")
        result = await super().create(identity)
        await self._answered("create")
        return result

    async def fence(self, session: str) -> Stored | None:
        await self._called("fence")
        result = await super().fence(session)
        await self._answered("fence")
        return result

    def commit_now(self, entries: Sequence[Entry]) -> Sequence[bool] | None:
        """It has to be waited for."""
        return None

    async def commit(self, entries: Sequence[Entry]) -> Sequence[bool]:
        await self._called("commit")
        result = await super().commit(entries)
        await self._answered("commit")
        return result

    async def snapshot(self, session: str, epoch: int, snapshot: Snapshot) -> bool:
        await self._called("snapshot")
        result = await super().snapshot(session, epoch, snapshot)
        await self._answered("snapshot")
        return result

    async def end(self, session: str, tombstone: Tombstone) -> bool:
        await self._called("end")
        result = await super().end(session, tombstone)
        await self._answered("end")
        return result
