"""Who is let in: as many steps as can wait, by number and by time, and none that would begin too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract import Batching
from service.engine.engine import Engine
from service.errors import Overloaded
from tests import models
from tests.engines import Clock, WatchedGraph, add, load_graph, running, turned

ROWS = 4
RUN_S = 1.0
"""What a full batch takes, so that a row takes a quarter of a second."""


@dataclass
class Queue:
    """Steps on their way, each in a slot of its own."""

    engine: Engine
    clock: Clock
    futures: list[asyncio.Future[Any]] = field(default_factory=list)

    def put(self, timeout_s: float = np.inf) -> None:
        """Queue one more."""
        slot = self.engine.take()
        assert slot is not None
        try:
            _, future = add(self.engine, slot, 1.0, deadline=self.clock.now + timeout_s)
        except Overloaded:
            self.engine.give_back(slot)
            raise
        # Takes effect when the step has ended.
        self.engine.give_back(slot)
        self.futures.append(future)

    def fill(self) -> int:
        """Queue until there is no room; returns how many there are then."""
        while self.engine.room > 0:
            self.put()
        return self.engine.pending

    async def ended(self) -> None:
        """Wait for all."""
        await asyncio.gather(*self.futures)
        self.futures.clear()


@pytest.fixture
def graph(tmp_path: Path) -> WatchedGraph:
    """The accumulator, with few rows in a batch."""
    return load_graph(models.accumulator(tmp_path), Batching(max_batch_size=ROWS))


@asynccontextmanager
async def queue(graph: WatchedGraph, *, known: bool = True, **limits: Any) -> AsyncIterator[Queue]:
    """A queue behind a run that is held back; `known`: after a full batch has shown what it takes."""
    clock = Clock()

    def pass_time(_: object) -> None:
        clock.now += RUN_S

    graph.before = pass_time
    async with running(graph, clock, capacity=200, **limits) as engine:
        waiting = Queue(engine, clock)
        if known:
            for _ in range(ROWS):
                waiting.put()
            await waiting.ended()
            assert graph.runs[-1].lengths == [1] * ROWS
        graph.shut()
        waiting.put()
        await turned()
        await graph.entered()
        yield waiting
        graph.open()
        await waiting.ended()


async def test_as_many_wait_as_begin_in_time(graph: WatchedGraph) -> None:
    async with queue(graph, max_queue_s=3 * RUN_S) as waiting:
        assert waiting.fill() == 3 * ROWS
        with pytest.raises(Overloaded) as refused:
            waiting.put()
        assert refused.value.extra["retry_after_s"] == 3
        graph.open()
        await waiting.ended()
        waiting.put()


async def test_the_next_batch_is_always_let_in(graph: WatchedGraph) -> None:
    async with queue(graph, max_queue_s=RUN_S / 100) as waiting:
        assert waiting.fill() == 2 * ROWS
        assert waiting.engine.refusal().extra["retry_after_s"] == 2


async def test_as_many_wait_as_may_while_their_time_is_not_known(graph: WatchedGraph) -> None:
    async with queue(graph, known=False, max_queue_s=RUN_S, max_pending=100) as waiting:
        assert waiting.fill() == 100
        assert waiting.engine.refusal().extra["retry_after_s"] == 1


async def test_no_more_wait_than_may_however_fast_they_are(graph: WatchedGraph) -> None:
    async with queue(graph, max_queue_s=1000 * RUN_S, max_pending=20) as waiting:
        assert waiting.fill() == 20


async def test_a_step_that_would_begin_too_late_is_refused_at_once(graph: WatchedGraph) -> None:
    async with queue(graph, max_queue_s=1000 * RUN_S) as waiting:
        while waiting.engine.pending < 2 * ROWS:
            waiting.put()
        assert waiting.engine.wait_s == 2 * RUN_S
        with pytest.raises(Overloaded):
            waiting.put(timeout_s=1.9 * RUN_S)
        waiting.put(timeout_s=2.1 * RUN_S)


async def test_steps_of_many_time_steps_take_as_long_as_they_were_seen_to(
    graph: WatchedGraph,
) -> None:
    """However fast single steps are, of those that take four times as long fewer may wait."""
    async with queue(graph, max_queue_s=12 * RUN_S) as waiting:
        assert waiting.fill() == 12 * ROWS
        graph.open()
        await waiting.ended()

        def pass_more_time(_: object) -> None:
            waiting.clock.now += 4 * RUN_S

        graph.before = pass_more_time
        for _ in range(60):
            for _ in range(ROWS):
                slot = waiting.engine.take()
                assert slot is not None
                waiting.futures.append(add(waiting.engine, slot, *([1.0] * 8))[1])
                waiting.engine.give_back(slot)
            await waiting.ended()
        graph.shut()
        waiting.put()
        await turned()
        await graph.entered()
        assert waiting.fill() == pytest.approx(3 * ROWS, abs=1)
        graph.open()


async def test_what_goes_on_is_not_refused_for_want_of_room(graph: WatchedGraph) -> None:
    async with queue(graph, max_queue_s=RUN_S) as waiting:
        engine, slot = waiting.engine, waiting.engine.take()
        assert slot is not None
        waiting.fill()
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        arguments = (slot, {"x": np.ones(1)}, np.zeros(1, np.intp), ("total",), np.inf)
        with pytest.raises(Overloaded):
            engine.begin(*arguments, ended.set_result)
        engine.begin(*arguments, ended.set_result, goes_on=True)
        engine.give_back(slot)
        graph.open()
        assert list((await ended)["total"]) == [1]
